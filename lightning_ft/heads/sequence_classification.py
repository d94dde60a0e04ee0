"""SequenceClassificationHead: classes, or a number, for a sequence of tokens."""

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_ft.features import FeatureInfo, Features, TokenFeatures
from lightning_ft.heads.classification import ClassificationHead


class SequenceClassificationHead(ClassificationHead):
    """A classifier or regressor over a pooled sequence of tokens.

    Args:
        features: What the backbone gives.
        pooling: ``"mean"`` over the tokens that are no padding, ``"cls"`` for the first token (BERT), ``"last"`` for
            the last one that is no padding (GPT).
        **kwargs: What every ClassificationHead takes: num_classes, task, dropout, hidden_size, class_weights,
            label_smoothing.

    Raises:
        ValueError: If the backbone gives maps, or an option is wrong.
    """

    reads = "tokens"

    def __init__(
        self, features: FeatureInfo, *, pooling: Literal["mean", "cls", "last"] = "mean", **kwargs: Any
    ) -> None:
        if pooling not in ("mean", "cls", "last"):
            raise ValueError(f"expected pooling to be 'mean', 'cls' or 'last', but got {pooling!r}")
        self.expect(features)
        super().__init__(features, **kwargs)
        self.pooling = pooling

    def pool(self, features: Features) -> Tensor:
        """Return one vector a sample, shape (batch, feature)."""
        assert isinstance(features, TokenFeatures)
        states, mask = features.states, features.mask
        if self.pooling == "mean":
            weights = mask.to(states.dtype).unsqueeze(-1)
            return (states * weights).sum(1) / weights.sum(1).clamp(min=1)
        # padding may stand on either side
        positions = torch.arange(mask.shape[1], device=mask.device) * mask
        index = positions.argmax(1) if self.pooling == "last" else mask.argmax(1)
        # not len(states), which a traced program would take for a constant
        return states[torch.arange(states.shape[0], device=states.device), index]
