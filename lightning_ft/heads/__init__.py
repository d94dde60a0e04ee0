"""Heads: one file each."""

from lightning_ft.heads.base import Head as Head
from lightning_ft.heads.image_classification import ImageClassificationHead as ImageClassificationHead
from lightning_ft.heads.sequence_classification import SequenceClassificationHead as SequenceClassificationHead
