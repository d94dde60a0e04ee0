"""SegmentationHead: a class for each pixel."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MetricCollection

from lightning_ft.extras import require
from lightning_ft.features import FeatureInfo, Features, MapFeatures
from lightning_ft.heads.base import Head
from lightning_ft.heads.pixel_losses import dice_loss, pixel_cross_entropy
from lightning_ft.tasks.masks import IGNORED
from lightning_ft.tasks.pixel_metrics import PixelScores

LOSSES = ("cross_entropy", "focal", "dice")
NUM_GROUPS = 8


class SegmentationHead(Head):
    """A feature pyramid network whose levels are summed, and a classifier of each place in the sum.

    The maps of the backbone from ``finest_stride`` on go through torchvision's FeaturePyramidNetwork; its levels are
    scaled to the finest and added, and two convolutions make class logits of the sum, which are scaled bilinearly to
    the image (Semantic FPN, Kirillov et al. 2019, arXiv:1901.02446, with fewer convolutions).

    Args:
        features: What the backbone gives: the maps of several strides.
        num_classes: Classes of a pixel.
        loss: ``"cross_entropy"``, ``"focal"`` or ``"dice"``, or a sum of them: ``"cross_entropy+dice"``.
        width: Features of each level of the decoder, a multiple of 8.
        finest_stride: Stride [pixel] of the finest map that is used; one of 2 keeps thinner things, and costs more.
        dropout: Share of the features set to zero, on whole maps, in training.
        class_weights: Weight of each class in cross-entropy and focal loss, shape (class,).
        gamma: Exponent of the focal loss.

    Raises:
        ValueError: If the backbone gives tokens or pooled features, num_classes is missing, or an option is wrong or
            has no effect.
        ModuleNotFoundError: If torchvision is not installed.
    """

    reads = "maps"
    tasks = ("segmentation",)
    main_metric = "mean_iou"

    def __init__(
        self,
        features: FeatureInfo,
        num_classes: int | None = None,
        *,
        loss: str = "cross_entropy",
        width: int = 128,
        finest_stride: int = 4,
        dropout: float = 0.1,
        class_weights: Sequence[float] | None = None,
        gamma: float = 2.0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.expect(features)
        if not features.strides:
            raise ValueError(
                f"{name} needs maps of several strides, but this backbone pools its own: set pyramid: true"
            )
        if num_classes is None:
            raise ValueError(f"{name} needs num_classes, as in partial({name}, num_classes=3)")
        if num_classes < 2:
            raise ValueError(f"{name}: expected num_classes to be at least 2, but got {num_classes}")
        self.losses = tuple(loss.split("+"))
        if len({*self.losses}) < len(self.losses) or not {*self.losses} <= {*LOSSES}:
            raise ValueError(f"{name}: expected loss to be {', '.join(LOSSES)}, or some joined by +, but got {loss!r}")
        if class_weights is not None and len(class_weights) != num_classes:
            raise ValueError(f"{name}: {len(class_weights)} class_weights for {num_classes} classes")
        if class_weights is not None and self.losses == ("dice",):
            raise ValueError(f"{name}: class_weights have no effect on loss='dice'")
        if not gamma >= 0:
            raise ValueError(f"{name}: expected gamma to be at least 0, but got {gamma}")
        if width < 1 or width % NUM_GROUPS:
            raise ValueError(f"{name}: expected width to be a positive multiple of {NUM_GROUPS}, but got {width}")
        self.levels = [level for level, stride in enumerate(features.strides) if stride >= finest_stride]
        if not self.levels:
            raise ValueError(f"{name}: finest_stride={finest_stride}, but the backbone's are {features.strides}")
        self.num_classes = num_classes
        self.gamma = gamma
        self.stride = features.strides[self.levels[0]]
        weights = None if class_weights is None else torch.tensor([float(weight) for weight in class_weights])
        self.register_buffer("class_weights", weights, persistent=False)
        self.class_weights: Tensor | None
        ops = require("torchvision.ops", extra="vision", needed_by=name)
        self.pyramid = ops.FeaturePyramidNetwork([features.channels[level] for level in self.levels], width)
        self.layers = nn.Sequential(
            nn.GroupNorm(NUM_GROUPS, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.GroupNorm(NUM_GROUPS, width),
            nn.ReLU(),
            nn.Dropout2d(dropout),
            nn.Conv2d(width, num_classes, 1),
        )

    def forward(self, features: Features) -> Tensor:
        """Return class logits, shape (image, class, height, width), of the size of the images."""
        assert isinstance(features, MapFeatures)
        maps = OrderedDict((str(level), features.maps[level]) for level in self.levels)
        finest, *coarser = self.pyramid(maps).values()
        size = finest.shape[2:]
        total = finest + sum(_scaled(level, size) for level in coarser)
        return _scaled(self.layers(total), (size[0] * self.stride, size[1] * self.stride))

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the mean over images of the loss, or the sum of losses, of their judged pixels.

        Args:
            prediction: Logits, shape (image, class, height, width).
            target: Classes, -100 where nobody judges, shape (image, height, width).
        """
        judged = (target != IGNORED).flatten(1).any(1)
        if not judged.any():
            return prediction.sum() * 0.0
        logits, target = _scaled(prediction, target.shape[1:])[judged].float(), target[judged]
        total = logits.new_zeros(len(logits))
        for name in self.losses:
            if name == "dice":
                total = total + dice_loss(logits, target)
            else:
                gamma = self.gamma if name == "focal" else 0.0
                total = total + pixel_cross_entropy(logits, target, self.class_weights, gamma)
        return total.mean()

    def count(self, target: Tensor) -> int:
        """Return how many images have judged pixels."""
        return int((target != IGNORED).flatten(1).any(1).sum())

    def metrics(self) -> MetricCollection:
        """Return the mean IoU, the mean Dice coefficient, the share of right pixels, and all of it by class.

        Nothing is kept of an epoch but how many pixels of each class were taken for which.
        """
        assert self.num_classes is not None
        number = self.num_classes
        names = ("mean_iou", "dice", "accuracy", "by_class")
        scores: dict[str, Any] = {name: PixelScores(name, number, IGNORED) for name in names}
        return MetricCollection(scores, compute_groups=[[*scores]])

    def compared(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the predicted classes, shape (image, height, width), and the target."""
        return _scaled(prediction, target.shape[1:]).argmax(1), target

    def decode(
        self,
        prediction: Tensor,
        label_names: Sequence[str] | None,  # noqa: ARG002
        batch: Mapping[str, Tensor],
    ) -> list[dict[str, Any]]:
        """Return for each image its ``prediction``: the class of each pixel, int32, shape (height, width), on the CPU.

        Args:
            prediction: What ``forward`` returned.
            label_names: Names of the classes, in their order.
            batch: The batch. ``sizes``, shape (image, 2), has the height and width [pixel] of each image as it was,
                and ``extents``, shape (image, 2), of the part of ``prediction`` that it fills; without them an image
                fills all of it and keeps its size.
        """
        whole = [prediction.shape[2:]] * len(prediction)
        extents = batch["extents"].tolist() if "extents" in batch else whole
        sizes = batch["sizes"].tolist() if "sizes" in batch else extents
        return [
            {"prediction": _classes(logits[:, :height, :width].float(), size).int().cpu()}
            for logits, (height, width), size in zip(prediction, extents, sizes, strict=True)
        ]


def _scaled(maps: Tensor, size: Sequence[int]) -> Tensor:
    if maps.shape[2:] == tuple(size):
        return maps
    return functional.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def _classes(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Return the most likely class of each pixel at a size, from logits (class, height, width) at another.

    Class by class, because all of them at the size of a photograph would not fit into memory.
    """
    best = _scaled(logits[None, :1], size)[0, 0]
    classes = torch.zeros_like(best, dtype=torch.long)
    for number in range(1, len(logits)):
        plane = _scaled(logits[None, number : number + 1], size)[0, 0]
        classes[plane > best] = number
        best = torch.maximum(best, plane)
    return classes
