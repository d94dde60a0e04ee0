"""Backbone: the pretrained network, ending in features."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_ft.features import FeatureInfo, Features
from lightning_ft_callbacks import BlockMap


class Backbone(nn.Module, ABC):
    """A pretrained network that turns a batch's inputs into features.

    Attributes:
        features: What a head must know to be built for this backbone.
        model: The network that it wraps.
        prefix_inputs: Names of the inputs that its lowest blocks alone read: not a mask, which all layers read.
    """

    prefix_inputs: frozenset[str] = frozenset({"input_ids", "token_type_ids", "pixel_values"})
    features: FeatureInfo
    model: Any

    @abstractmethod
    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        """Return the features of a batch.

        Args:
            inputs: The batch without its targets: ``input_ids`` and ``attention_mask`` of shape (batch, token) for
                texts, ``pixel_values`` of shape (batch, channel, height, width) for images.
        """

    def blocks(self) -> dict[str, list[str]]:
        """Return the network's blocks, input first: their names without the wrapper's level, and their paths."""
        return {block.name: [f"model.{path}" for path in block.paths] for block in BlockMap.of(self.model)}

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Return what a checkpoint needs to build this network again without its source: plain data and tensors."""

    @classmethod
    @abstractmethod
    def rebuilt_from(cls, checkpoint: Path, init_args: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments that build this backbone from a run's checkpoint, reading nothing else.

        Args:
            checkpoint: A checkpoint of a run.
            init_args: The arguments that built it in that run.
        """
