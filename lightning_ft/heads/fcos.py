"""Fcos: torchvision's FCOS, driven by the maps of a backbone of ours."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ft.extras import require
from lightning_ft.tasks.boxes import NOTHING

NEEDED_BY = "DetectionHead"
NUM_PLACE = 3  # the last columns of a prediction: where it stands


class Fcos(nn.Module):
    """A feature pyramid with two coarser levels above it, and the layers that tell classes and boxes at each place.

    A prediction has the shape (tile, place, class + 8): logits of the classes, distances to the box's four sides
    [stride], logit of the centerness, and x, y and stride of the place [pixel of the input]. So losses and boxes follow
    from it alone.

    Args:
        num_classes: Classes of objects, without background.
        channels: Channels of each map, finest first.
        strides: Its stride [pixel].
        width: Channels of the pyramid and of the layers above it.
        num_convs: Layers above the pyramid before the last, of classes and of boxes.
        score_threshold: The lowest score of a box.
        nms_threshold: Overlap, intersection over union, above which two boxes of a class are one.
        max_detections: Boxes of a tile at most.

    Raises:
        ModuleNotFoundError: If torchvision is not installed.

    Source: Tian et al. 2019, arXiv:1904.01355
    """

    def __init__(
        self,
        num_classes: int,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        width: int,
        num_convs: int,
        score_threshold: float,
        nms_threshold: float,
        max_detections: int,
    ) -> None:
        super().__init__()
        models: Any = require("torchvision.models.detection", extra="vision", needed_by=NEEDED_BY)
        ops: Any = require("torchvision.ops.feature_pyramid_network", extra="vision", needed_by=NEEDED_BY)
        self.num_classes = num_classes
        self.strides = [*strides, 2 * strides[-1], 4 * strides[-1]]
        pyramid = ops.FeaturePyramidNetwork(list(channels), width, ops.LastLevelP6P7(width, width))
        pyramid.out_channels = width  # asked for by FCOS
        sizes = tuple((stride,) for stride in self.strides)
        self.model: Any = models.FCOS(
            pyramid,
            num_classes,
            anchor_generator=models.anchor_utils.AnchorGenerator(sizes, ((1.0,),) * len(sizes)),
            head=_summing(models.fcos.FCOSHead)(width, 1, num_classes, num_convs),
            score_thresh=score_threshold,
            nms_thresh=nms_threshold,
            detections_per_img=max_detections,
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the prediction, shape (tile, place, class + 8).

        Args:
            maps: Shape (tile, channel, height, width) each, finest first.
        """
        levels = list(self.model.backbone({str(level): values for level, values in enumerate(maps)}).values())
        seen = self.model.head(levels)
        # pixels stay in full precision, whatever the others are in
        places = self._places(levels).expand(len(levels[0]), -1, -1)
        return torch.cat([seen["cls_logits"], seen["bbox_regression"], seen["bbox_ctrness"], places], -1)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the sum over all places of the three losses, a scalar.

        Args:
            prediction: What ``forward`` returned.
            target: Shape (tile, object, 5): class, x1, y1, x2, y2 [pixel]; class -1 where there is none.
        """
        anchors, counts = self._anchors(prediction)
        objects = [rows[rows[:, 0] > NOTHING] for rows in target]
        true = [{"labels": rows[:, 0].long(), "boxes": rows[:, 1:].float()} for rows in objects]
        return self.model.compute_loss(true, self._seen(prediction), [anchors] * len(target), counts)["sum"]

    def boxes(self, prediction: Tensor, sizes: Tensor | None) -> list[dict[str, Tensor]]:
        """Return ``boxes`` (box, 4) [pixel], ``scores`` (box,) and ``labels`` (box,) of each tile.

        Args:
            prediction: What ``forward`` returned.
            sizes: Width and height of the picture in each tile [pixel], shape (tile, 2); None for as large as the maps.
        """
        anchors, counts = self._anchors(prediction)
        if sizes is None:
            sizes = (anchors[: counts[0], 2:].amax(0) + anchors[0, 2:]).expand(len(prediction), 2)
        seen = {name: list(value.split(counts, 1)) for name, value in self._seen(prediction).items()}
        shapes = [(int(height), int(width)) for width, height in sizes.tolist()]
        return self.model.postprocess_detections(seen, [list(anchors.split(counts))] * len(prediction), shapes)

    def _places(self, levels: Sequence[Tensor]) -> Tensor:
        """Return x, y and stride of each place of some maps, shape (place, 3)."""
        generator = self.model.anchor_generator
        generator.set_cell_anchors(torch.float32, levels[0].device)
        sizes = [level.shape[-2:] for level in levels]
        anchors = torch.cat(generator.grid_anchors(sizes, [(stride, stride) for stride in self.strides]))
        return torch.stack([anchors[:, [0, 2]].mean(1), anchors[:, [1, 3]].mean(1), anchors[:, 2] - anchors[:, 0]], 1)

    def _anchors(self, prediction: Tensor) -> tuple[Tensor, list[int]]:
        """Return the square of each place, shape (place, 4), and how many places each level has."""
        x, y, stride = prediction[0, :, -NUM_PLACE:].detach().float().unbind(-1)
        half = stride / 2
        counts = stride.unique_consecutive(return_counts=True)[1].tolist()
        return torch.stack([x - half, y - half, x + half, y + half], 1), counts

    def _seen(self, prediction: Tensor) -> dict[str, Tensor]:
        """Return a prediction's parts by torchvision's names."""
        classes, sides, center, _ = prediction.float().split([self.num_classes, 4, 1, NUM_PLACE], -1)
        return {"cls_logits": classes, "bbox_regression": sides, "bbox_ctrness": center}


def _summing(head: Any) -> Any:
    """Return torchvision's class of a head, whose loss is a sum instead of a mean over the places in objects."""

    class SummingHead(head):
        def compute_loss(self, targets: Any, seen: Any, anchors: Any, matched: list[Tensor]) -> dict[str, Tensor]:
            losses = super().compute_loss(targets, seen, anchors, matched)
            num_places = torch.stack([(places >= 0).sum() for places in matched]).sum()
            return {"sum": torch.stack([*losses.values()]).sum() * num_places.clamp(min=1)}

    return SummingHead
