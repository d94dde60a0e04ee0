"""Head: features to prediction, its loss, its metrics, and decoding a prediction for a person."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torchmetrics import MetricCollection

from lightning_ft.features import FeatureInfo, FeatureKind, Features


class Head(nn.Module, ABC):
    """The part that is new: it turns a backbone's features into the prediction of one task.

    A head knows nothing of training. FineTuner asks it for a loss, for metrics, and for rows that a person can read.

    Attributes:
        reads: The features that it reads.
        tasks: What the labels of its data may be.
        inputs: Entries of a batch that ``forward`` takes beside the features, under their names.
        num_classes: Classes it tells apart; None where the task has none.
        main_metric: The metric that a person watches, one of those of ``metrics``.
    """

    reads: ClassVar[FeatureKind]
    tasks: ClassVar[tuple[str, ...]] = ()
    inputs: ClassVar[tuple[str, ...]] = ()
    num_classes: int | None = None
    main_metric: str | None = None

    @abstractmethod
    def forward(self, features: Features) -> Tensor:
        """Return the prediction."""

    def judged(self, features: Features, target: Tensor) -> tuple[Features, Tensor]:
        """Return what of a batch's features is to be predicted, and its target; here all of both."""
        return features, target

    def predict_from(self, features: Features, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the prediction of a batch, from its features and what ``inputs`` names.

        Args:
            features: What the backbone made of the batch.
            batch: The batch.
        """
        return self(features, **{name: batch[name] for name in self.inputs})

    @abstractmethod
    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar."""

    def count(self, target: Tensor) -> int:
        """Return of how many things ``loss`` is the mean, so that the loss of an epoch is that of all; here samples."""
        return len(target)

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """Return fresh metrics, named as they are logged without their stage: ``accuracy``, ``macro_f1``."""

    def compared(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return a prediction and its target as the metrics take them; here as they are."""
        return prediction, target

    def evaluated(
        self,
        prediction: Tensor,
        target: Tensor,
        batch: Mapping[str, Tensor],  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """Return what the metrics take of a batch, where its target does not say all; here what ``compared`` returns.

        Args:
            prediction: What ``forward`` returned.
            target: The target, as ``judged`` returned it.
            batch: The batch that both are of.
        """
        return self.compared(prediction, target)

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

    def predict(
        self,
        backbone: Callable[[Mapping[str, Tensor]], Features],
        batch: Mapping[str, Tensor],
        label_names: Sequence[str] | None,
    ) -> list[dict[str, Any]]:
        """Return one row a sample of a batch to predict, as ``decode`` does; here what ``decode`` makes of one pass.

        Args:
            backbone: The backbone.
            batch: The batch.
            label_names: Names of the classes, in their order; None where they have none.
        """
        return self.decode(self.predict_from(backbone(batch), batch), label_names, batch)

    def choose_output(self, probabilities: bool | None, top_k: int | None) -> None:
        """Choose what ``predict`` returns from now on; here there is nothing to choose from.

        Args:
            probabilities: Whether to return the probability of each class; None as is usual.
            top_k: How many of the best to return; None as is usual.

        Raises:
            ValueError: If there are no probabilities, or nothing of which some are the best.
        """
        if probabilities is not None:
            raise ValueError(
                f"{type(self).__name__} predicts no probabilities of classes; predictions.probabilities is for "
                "classification, of one class or several"
            )
        if top_k is not None:
            raise ValueError(
                f"{type(self).__name__} predicts nothing of which {top_k} are the best; predictions.top_k is "
                "for classification and recommendation"
            )

    @classmethod
    def expect(cls, features: FeatureInfo) -> None:
        """Raise unless a backbone's features are of the kind that this head reads.

        Raises:
            ValueError: If they are of another kind, with the heads that read it.
        """
        if features.kind != cls.reads:
            fitting = ", ".join(head.__name__ for head in heads() if head.reads == features.kind)
            raise ValueError(
                f"{cls.__name__} reads {cls.reads}, but this backbone gives {features.kind}; for them there are "
                f"{fitting}"
            )


def heads() -> list[type[Head]]:
    """Return all heads that are no base of others, those of other packages too, once they are imported."""

    def below(head: type[Head]) -> list[type[Head]]:
        known = head.__subclasses__()
        return [one for child in known for one in below(child)] if known else [head]

    return sorted(below(Head), key=lambda head: head.__name__)


def heads_for(task: str) -> list[type[Head]]:
    """Return the heads whose data may have a task."""
    return [head for head in heads() if task in head.tasks]
