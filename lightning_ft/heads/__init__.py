"""Heads: one file each."""
