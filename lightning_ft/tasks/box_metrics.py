"""BoxScores: average precision and recall of boxes, as COCO defines them."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_ft.extras import require
from lightning_ft.tasks.boxes import best_boxes, by_image

NONE = -1.0  # COCO's value of a mean over nothing


class BoxScores(Metric):
    """Mean average precision and recall of boxes in whole images, computed by pycocotools through torchmetrics.

    Boxes of an image's tiles are put together when all have come, and those that several tiles have found are counted
    once. What it keeps lies on the CPU.

    Args:
        num_classes: Classes of objects.
        max_detections: Boxes of a class in an image that count, the best ones; COCO's is 100.
        nms_threshold: Overlap above which two boxes of a class are one.

    Source: https://cocodataset.org/#detection-eval
    """

    full_state_update = False
    detections: list[Tensor]
    objects: list[Tensor]
    num_alone: Tensor

    def __init__(
        self, num_classes: int, *, max_detections: int = 100, nms_threshold: float = 0.6, **options: Any
    ) -> None:
        super().__init__(**options)
        require("pycocotools", extra="detection", needed_by="DetectionHead's metrics")
        self.num_classes = num_classes
        self.max_detections = max_detections
        self.nms_threshold = nms_threshold
        self.add_state("detections", [], dist_reduce_fx="cat")
        self.add_state("objects", [], dist_reduce_fx="cat")
        self.add_state("num_alone", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, detections: Tensor, objects: Tensor) -> None:
        """Add a batch.

        Args:
            detections: Shape (detection, 7): image, class, score, x1, y1, x2, y2. Images with numbers below 0 are of
                this batch alone: -1 is its first.
            objects: Shape (object, 8): image, class, x1, y1, x2, y2, 1 for what is not to be judged, and the object's
                number in its image.
        """
        lowest = torch.stack([rows[:, 0].min() for rows in (detections, objects) if len(rows)] or [torch.tensor(0.0)])
        for kept, rows in ((self.detections, detections), (self.objects, objects)):
            rows = rows.detach().to("cpu", torch.float64, copy=True)
            alone = rows[:, 0] < 0
            rows[alone, 0] = self._numbered(rows[alone, 0])
            kept.append(rows)
        self.num_alone += int(-lowest.min().clamp(max=0))

    def compute(self) -> dict[str, Tensor]:
        """Return ``map``, ``map_50``, ``map_75`` and ``mar_100`` (or of another ``max_detections``), scalars.

        And ``map_per_class``, shape (class, 4): average precision, that at an overlap of 0.5, average recall, and the
        number of objects. What cannot be told, because there are no objects, is -1.
        """
        detected, true = by_image(_joined(self.detections, 7)), by_image(_joined(self.objects, 8))
        predictions, targets = [], []
        for image in sorted(detected.keys() | true.keys()):
            found = detected.get(image, torch.zeros(0, 6))
            predictions.append(self._best(found[:, 2:].float(), found[:, 1].float(), found[:, 0].long()))
            objects = true.get(image, torch.zeros(0, 7))
            # a sample that fills up a batch of several processes comes twice
            rows = objects[:, 6].unique(return_inverse=True)[1] if len(objects) else objects[:, 6].long()
            first = torch.zeros(int(rows.max()) + 1 if len(rows) else 0, dtype=torch.long)
            first[rows] = torch.arange(len(rows))
            objects = objects[first]
            targets.append(
                {"boxes": objects[:, 1:5].float(), "labels": objects[:, 0].long(), "iscrowd": objects[:, 5].long()}
            )
        scores = coco_scores(predictions, targets, self.num_classes, self.max_detections)
        return {name: value.to(self.device) for name, value in scores.items()}

    def _best(self, boxes: Tensor, scores: Tensor, classes: Tensor) -> dict[str, Tensor]:
        kept = best_boxes(boxes, scores, classes, self.nms_threshold, len(boxes))
        return {"boxes": boxes[kept], "scores": scores[kept], "labels": classes[kept]}

    def _numbered(self, images: Tensor) -> Tensor:
        """Return numbers below 0 that no other batch and no other process has given."""
        rank, world_size = 0, 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        return -((-images - 1 + int(self.num_alone)) * world_size + rank + 1)

    def _sync_dist(self, dist_sync_fn: Any = gather_all_tensors, process_group: Any = None) -> None:
        """Gather what all processes keep; NCCL takes it from the accelerator only."""
        self.detections = [_joined(self.detections, 7).to(self.device)]
        self.objects = [_joined(self.objects, 8).to(self.device)]
        super()._sync_dist(dist_sync_fn, process_group)


def coco_scores(
    predictions: list[dict[str, Tensor]], targets: list[dict[str, Tensor]], num_classes: int, max_detections: int
) -> dict[str, Tensor]:
    """Return the scores that ``BoxScores.compute`` describes.

    Args:
        predictions: For each image ``boxes`` (box, 4), ``scores`` (box,) and ``labels`` (box,).
        targets: For each image ``boxes``, ``labels`` and ``iscrowd`` (object,).
        num_classes: Classes of objects.
        max_detections: Boxes of a class in an image that count.
    """
    detection: Any = require("torchmetrics.detection", extra="detection", needed_by="DetectionHead's metrics")
    limits = [1, min(10, max_detections), max_detections]
    metric = detection.MeanAveragePrecision(max_detection_thresholds=limits, extended_summary=True)
    metric.warn_on_many_detections = False
    metric.update(predictions, targets)
    result = metric.compute()
    num_objects = torch.zeros(num_classes)
    for target in targets:
        num_objects += target["labels"][target["iscrowd"] == 0].bincount(minlength=num_classes)
    per_class = torch.full((num_classes, 4), NONE)
    per_class[:, 3] = num_objects
    if "precision" not in result:  # no image at all
        nothing = torch.tensor(NONE)
        return dict.fromkeys(("map", "map_50", "map_75", f"mar_{max_detections}"), nothing) | {
            "map_per_class": per_class
        }
    # pycocotools' own summary knows 100 boxes only; these are the values that it takes the means of
    precision, recall = result["precision"][..., 0, -1], result["recall"][..., 0, -1]
    for place, number in enumerate(result["classes"].reshape(-1).tolist()):
        values = (precision[:, :, place], precision[0, :, place], recall[:, place])
        per_class[number, :3] = torch.stack([_mean(value) for value in values])
    return {
        "map": _mean(precision),
        "map_50": _mean(precision[0]),
        "map_75": _mean(precision[5]),
        f"mar_{max_detections}": _mean(recall),
        "map_per_class": per_class,
    }


def _joined(rows: list[Tensor] | Tensor, num_columns: int) -> Tensor:
    """Return what a state holds, whether it is gathered or not; shape (row, column)."""
    if isinstance(rows, Tensor):
        return rows.cpu()
    return torch.cat([torch.zeros(0, num_columns, dtype=torch.float64), *(part.cpu() for part in rows)])


def _mean(values: Tensor) -> Tensor:
    """Return the mean of the values that there are."""
    known = values[values > NONE]
    return known.mean().float() if len(known) else torch.tensor(NONE)
