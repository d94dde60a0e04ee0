"""Backbones: one library each."""
