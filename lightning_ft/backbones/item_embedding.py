"""ItemEmbedding: a learned vector an item, for items that have no text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ft.backbones.base import Backbone
from lightning_ft.features import FeatureInfo, TokenFeatures


class ItemEmbedding(Backbone):
    """A vector for each item, learned from nothing but who used it; the only backbone without pretrained weights.

    Args:
        num_items: Items of the catalogue; None is filled in by the command from the data.
        num_features: Numbers an item.

    Raises:
        ValueError: If num_items is missing or not positive.
    """

    prefix_inputs = frozenset({"items"})

    def __init__(self, num_items: int | None = None, *, num_features: int = 64) -> None:
        super().__init__()
        if num_items is None or num_items < 1:
            raise ValueError(f"ItemEmbedding: expected num_items to be a positive integer, but got {num_items}")
        self.model = nn.Embedding(num_items, num_features)
        # so small that at the start no item is liked for its random vector
        nn.init.normal_(self.model.weight, std=num_features**-0.5)
        self.features = FeatureInfo(num_features, "tokens")

    def forward(self, inputs: Mapping[str, Tensor]) -> TokenFeatures:
        """Return the vectors of items as one token each.

        Args:
            inputs: ``items``, the numbers of items, shape (item,).
        """
        states = self.model(inputs["items"])[:, None]
        return TokenFeatures(states, torch.ones_like(states[..., 0]))

    def blocks(self) -> dict[str, list[str]]:
        """Return its one block."""
        return {"items": ["model"]}

    def description(self) -> dict[str, Any]:
        """Return the number of items."""
        return {"num_items": self.model.num_embeddings}

    @classmethod
    def rebuilt_from(cls, checkpoint: Path, init_args: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG003
        """Return the arguments that build it again; the number of items is that of the checkpoint's labels."""
        return dict(init_args)
