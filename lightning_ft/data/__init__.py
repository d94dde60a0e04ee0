"""Data: one file a LightningDataModule."""

from lightning_ft.data.base import FineTuningData as FineTuningData
from lightning_ft.data.sampler import EpochSampler as EpochSampler
from lightning_ft.data.text_classification import TextClassificationData as TextClassificationData
