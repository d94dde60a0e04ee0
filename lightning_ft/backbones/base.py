"""Backbone: the pretrained network, ending in features."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ft.features import FeatureInfo, Features
from lightning_ft.run.adapted_base import AdaptedBase
from lightning_ft_callbacks import BlockMap
from lightning_ft_callbacks.caching.prefix_runs import PrefixState, run_prefix, run_suffix
from lightning_ft_callbacks.caching.sample_shapes import Samples


class Backbone(nn.Module, ABC):
    """A pretrained network that turns a batch's inputs into features.

    Attributes:
        features: What a head must know to be built for this backbone.
        model: The network that it wraps.
        base: With adapters, the weights under them, where they can be had from their source again; else None.
        prefix_inputs: Names of the inputs that its lowest blocks alone read: not a mask, which all layers read.
    """

    prefix_inputs: frozenset[str] = frozenset({"input_ids", "token_type_ids", "pixel_values"})
    features: FeatureInfo
    model: Any
    base: AdaptedBase | None = None

    @abstractmethod
    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        """Return the features of a batch.

        Args:
            inputs: The batch without its targets: ``input_ids`` and ``attention_mask`` of shape (batch, token) for
                texts, ``pixel_values`` of shape (batch, channel, height, width) for images.
        """

    def prefix(self, inputs: Mapping[str, Tensor], block: str) -> PrefixState:
        """Run the blocks below one of them, without gradients: what is frozen need run once only.

        Args:
            inputs: As ``forward`` takes them.
            block: The lowest block that does not run, one of ``blocks()`` but the first.

        Raises:
            ValueError: If there is no such block, or a dropout or norm below it is in train mode.
        """
        return run_prefix(self, inputs, block, self.prefix_inputs)

    def suffix(self, state: PrefixState, block: str) -> Features:
        """Return the features of a batch whose lower blocks have run.

        Args:
            state: What ``prefix`` returned, with the same block.
            block: The lowest block that runs.

        Raises:
            ValueError: If the state is of another block or backbone.
        """
        return run_suffix(self, state, block, self.blank)

    def blank(self, samples: Samples) -> dict[str, Tensor]:
        """Return inputs of any values for what lower blocks alone read.

        Args:
            samples: The samples of a batch.
        """
        device = next(self.parameters()).device
        if samples.num_tokens is None:
            size = getattr(self, "data_config", None) or {"input_size": (3, 1, 1)}
            return {"pixel_values": torch.zeros(1, device=device).expand(len(samples.ids), *size["input_size"])}
        return {"input_ids": torch.zeros(len(samples.ids), samples.num_tokens, dtype=torch.long, device=device)}

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
