"""Predictions: written in order, in parts that survive a kill, merged into one file."""

from lightning_ft.predictions.writer import PredictionWriter as PredictionWriter
