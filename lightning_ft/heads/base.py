"""Head: features to prediction, its loss, its metrics, and decoding a prediction for a person."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torchmetrics import MetricCollection

from lightning_ft.features import FeatureInfo, Features


class Head(nn.Module, ABC):
    """The part that is new: it turns a backbone's features into the prediction of one task.

    A head knows nothing of training. FineTuner asks it for a loss, for metrics, and for rows that a person can read.

    Attributes:
        num_classes: Classes it tells apart; None where the task has none.
        main_metric: The metric that a person watches, one of those of ``metrics``.
    """

    num_classes: int | None = None
    main_metric: str | None = None

    @abstractmethod
    def forward(self, features: Features) -> Tensor:
        """Return the prediction."""

    @abstractmethod
    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar."""

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """Return fresh metrics, named as they are logged without their stage: ``accuracy``, ``macro_f1``."""

    def compared(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return a prediction and its target as the metrics take them; here as they are."""
        return prediction, target

    @abstractmethod
    def decode(
        self, prediction: Tensor, label_names: Sequence[str] | None, batch: Mapping[str, Tensor]
    ) -> list[dict[str, Any]]:
        """Return one row a sample, for a person to read.

        Args:
            prediction: What ``forward`` returned.
            label_names: Names of the classes, in their order; None where they have none.
            batch: The batch that it is of.
        """

    @staticmethod
    def expect(features: FeatureInfo, kind: str, head: str) -> None:
        """Raise unless a backbone's features are of the kind that a head reads.

        Raises:
            ValueError: If they are of another kind.
        """
        if features.kind != kind:
            raise ValueError(f"{head} reads {kind}, but this backbone gives {features.kind}")
