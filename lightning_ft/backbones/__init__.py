"""Backbones: one library each."""

from lightning_ft.backbones.base import Backbone as Backbone
from lightning_ft.backbones.timm import TimmBackbone as TimmBackbone
from lightning_ft.backbones.transformers import TransformersBackbone as TransformersBackbone
