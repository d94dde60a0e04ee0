"""ClassificationHead: what heads share that predict classes, or a number, for a whole sample."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanAbsoluteError, MetricCollection, PearsonCorrCoef, R2Score, SpearmanCorrCoef
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MultilabelAccuracy,
    MultilabelAUROC,
    MultilabelConfusionMatrix,
    MultilabelF1Score,
)

from lightning_ft.features import FeatureInfo, Features
from lightning_ft.heads.base import Head


class ClassificationHead(Head):
    """A linear layer, or a small network, over pooled features.

    Args:
        features: What the backbone gives.
        num_classes: Classes to tell apart; for a regression how many numbers, 1 by default.
        task: ``"multiclass"`` (one class a sample), ``"multilabel"`` (any number of them) or ``"regression"``; None
            for multiclass.
        dropout: Share of the pooled features set to zero in training.
        hidden_size: Width of a hidden layer with GELU before the last; None for none.
        class_weights: Weight of each class in the loss, shape (class,): higher for classes that matter more.
        label_smoothing: Share of the target spread over all classes (Szegedy et al. 2016, arXiv:1512.00567).
        target_mean: Of a regression what is predicted before anything is learnt: the mean of the training data's
            targets, in their unit. None for 0.
        target_std: Of a regression the standard deviation of these targets, in their unit. None for 1. An untrained
            network gives numbers around 0 and 1; without the two it would spend the training on finding the scale.

    Raises:
        ValueError: If num_classes is missing or too small, or an option does not go with the task.
    """

    tasks = ("multiclass", "multilabel", "regression")
    probabilities: bool | None = None
    top_k: int | None = None

    def __init__(
        self,
        features: FeatureInfo,
        num_classes: int | None = None,
        task: Literal["multiclass", "multilabel", "regression"] | None = None,
        *,
        dropout: float = 0.1,
        hidden_size: int | None = None,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        target_mean: float | None = None,
        target_std: float | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if task not in (None, "multiclass", "multilabel", "regression"):
            raise ValueError(f"{name}: expected task to be multiclass, multilabel or regression, but got {task!r}")
        self.task = task or "multiclass"
        if self.task == "regression":
            num_classes = num_classes or 1
            if class_weights is not None or label_smoothing:
                raise ValueError(f"{name}: class_weights and label_smoothing have no effect in a regression")
        elif target_mean is not None or target_std is not None:
            raise ValueError(f"{name}: target_mean and target_std have an effect in a regression only")
        if target_std is not None and not target_std > 0:
            raise ValueError(f"{name}: expected target_std to be positive, but got {target_std}")
        if num_classes is None:
            raise ValueError(f"{name} needs num_classes, as in partial({name}, num_classes=2)")
        least = 2 if self.task == "multiclass" else 1
        if num_classes < least:
            raise ValueError(f"{name}: expected num_classes to be at least {least}, but got {num_classes}")
        if class_weights is not None and len(class_weights) != num_classes:
            raise ValueError(f"{name}: {len(class_weights)} class_weights for {num_classes} classes")
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"{name}: expected label_smoothing to be at least 0 and below 1, but got {label_smoothing}"
            )
        self.num_classes = num_classes
        self.main_metric = "r2" if self.task == "regression" else "accuracy"
        self.label_smoothing = label_smoothing
        # kept in the checkpoint: without them the weights mean nothing
        keeps = self.task == "regression"
        self.register_buffer("target_mean", torch.tensor(target_mean or 0.0), persistent=keeps)
        self.register_buffer("target_std", torch.tensor(target_std or 1.0), persistent=keeps)
        self.target_mean: Tensor
        self.target_std: Tensor
        weights = None if class_weights is None else torch.tensor([float(weight) for weight in class_weights])
        self.register_buffer("class_weights", weights, persistent=False)
        self.class_weights: Tensor | None
        width = features.num_features
        hidden = [] if hidden_size is None else [nn.Linear(width, hidden_size), nn.GELU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(nn.Dropout(dropout), *hidden, nn.Linear(hidden_size or width, num_classes))

    @abstractmethod
    def pool(self, features: Features) -> Tensor:
        """Return one vector a sample, shape (batch, feature)."""

    def forward(self, features: Features) -> Tensor:
        """Return class logits, or the numbers of a regression in their own unit, shape (batch, class)."""
        prediction = self.layers(self.pool(features))
        return self.target_mean + self.target_std * prediction if self.task == "regression" else prediction

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return cross-entropy [nat], binary cross-entropy [nat] for multilabel, or the mean squared error.

        That of a regression is in units of the squared ``target_std``.

        Args:
            prediction: Logits, shape (batch, class).
            target: Classes, shape (batch,); rows of 0 and 1, shape (batch, class); or numbers, shape (batch,).
        """
        if self.task == "regression":
            apart = (prediction - target.to(prediction.dtype).view_as(prediction)) / self.target_std
            return apart.square().mean()
        if self.task == "multilabel":
            smooth = target.to(prediction.dtype) * (1 - self.label_smoothing) + self.label_smoothing / 2
            return functional.binary_cross_entropy_with_logits(prediction, smooth, self.class_weights)
        return functional.cross_entropy(prediction, target, self.class_weights, label_smoothing=self.label_smoothing)

    def metrics(self) -> MetricCollection:
        """Return accuracy, macro F1, AUROC and confusion matrix; for a regression R2, MAE, Pearson and Spearman.

        Metrics that need all predictions of an epoch keep them on the CPU.
        """
        assert self.num_classes is not None
        number = self.num_classes
        if self.task == "regression":
            outputs = {"num_outputs": number}
            return MetricCollection(
                {
                    "r2": R2Score(),
                    "mae": MeanAbsoluteError(**outputs),
                    "pearson": PearsonCorrCoef(**outputs),
                    "spearman": SpearmanCorrCoef(**outputs, compute_on_cpu=True),
                },
                compute_groups=False,
            )
        if self.task == "multilabel":
            return MetricCollection(
                {
                    "accuracy": MultilabelAccuracy(number, average="micro"),
                    "macro_f1": MultilabelF1Score(number, average="macro"),
                    "auroc": MultilabelAUROC(number, compute_on_cpu=True),
                    "confusion_matrix": MultilabelConfusionMatrix(number),
                },
                compute_groups=False,
            )
        return MetricCollection(
            {
                "accuracy": MulticlassAccuracy(number, average="micro"),
                "macro_f1": MulticlassF1Score(number, average="macro"),
                "auroc": MulticlassAUROC(number, compute_on_cpu=True),
                "confusion_matrix": MulticlassConfusionMatrix(number),
            },
            compute_groups=False,
        )

    def compared(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and classes, or the numbers of a regression in one shape, as torchmetrics takes them."""
        if self.task == "regression":
            return prediction.view_as(target), target
        return prediction, target.int() if self.task == "multilabel" else target

    def choose_output(self, probabilities: bool | None, top_k: int | None) -> None:
        """Choose what ``decode`` returns from now on.

        Args:
            probabilities: Whether to return the probability of each class; None: where top_k is None.
            top_k: How many of the likeliest classes to return with their probabilities; None for none.

        Raises:
            ValueError: If it is a regression, or has fewer classes.
        """
        if self.task == "regression":
            super().choose_output(probabilities, top_k)
        if top_k is not None and self.num_classes is not None and top_k > self.num_classes:
            raise ValueError(
                f"predictions.top_k={top_k}, but {type(self).__name__} tells {self.num_classes} classes apart"
            )
        self.probabilities, self.top_k = probabilities, top_k

    def decode(
        self,
        prediction: Tensor,
        label_names: Sequence[str] | None,
        batch: Mapping[str, Tensor] | None = None,  # noqa: ARG002
    ) -> list[dict[str, Any]]:
        """Return for each sample its ``prediction``, and the ``probabilities`` of all classes by name.

        As ``choose_output`` says: without them, or with ``top``, the likeliest classes, each a ``label`` with its
        ``probability``, the likeliest first.
        """
        if self.task == "regression":
            numbers = prediction.float().tolist()
            return [{"prediction": row[0] if len(row) == 1 else row} for row in numbers]
        names = list(label_names or map(str, range(prediction.shape[-1])))
        several = self.task == "multilabel"
        shares = prediction.float().sigmoid() if several else prediction.float().softmax(-1)
        if several:
            found: list[Any] = [[names[label] for label in row.nonzero()[:, 0].tolist()] for row in shares >= 0.5]
        else:
            found = [names[label] for label in shares.argmax(-1).tolist()]
        rows: list[dict[str, Any]] = [{"prediction": one} for one in found]
        if self.top_k is not None:
            best = shares.topk(self.top_k)
            for row, values, labels in zip(rows, best.values.tolist(), best.indices.tolist(), strict=True):
                row["top"] = [
                    {"label": names[label], "probability": value} for label, value in zip(labels, values, strict=True)
                ]
        if self.probabilities if self.probabilities is not None else self.top_k is None:
            for row, values in zip(rows, shares.tolist(), strict=True):
                row["probabilities"] = dict(zip(names, values, strict=True))
        return rows
