"""Fine-tune pretrained models with PyTorch Lightning."""

from lightning_ft.backbones.base import Backbone as Backbone
from lightning_ft.backbones.timm import TimmBackbone as TimmBackbone
from lightning_ft.backbones.transformers import TransformersBackbone as TransformersBackbone
from lightning_ft.checkpoint_io import AtomicCheckpointIO as AtomicCheckpointIO
from lightning_ft.checkpoint_io import load_checkpoint as load_checkpoint
from lightning_ft.data.base import FineTuningData as FineTuningData
from lightning_ft.data.image_classification import ImageClassificationData as ImageClassificationData
from lightning_ft.data.sampler import EpochSampler as EpochSampler
from lightning_ft.data.text_classification import TextClassificationData as TextClassificationData
from lightning_ft.features import FeatureInfo as FeatureInfo
from lightning_ft.features import MapFeatures as MapFeatures
from lightning_ft.features import TokenFeatures as TokenFeatures
from lightning_ft.heads.base import Head as Head
from lightning_ft.heads.image_classification import ImageClassificationHead as ImageClassificationHead
from lightning_ft.heads.sequence_classification import SequenceClassificationHead as SequenceClassificationHead
from lightning_ft.module import FineTuner as FineTuner
