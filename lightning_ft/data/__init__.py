"""Data: one file a LightningDataModule."""
