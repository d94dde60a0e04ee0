"""DetectionHead: boxes around objects, and what they are: FCOS on a backbone's pyramid."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from lightning_ft.features import FeatureInfo, Features, MapFeatures
from lightning_ft.heads.base import Head
from lightning_ft.heads.fcos import Fcos
from lightning_ft.tasks.box_metrics import BoxScores
from lightning_ft.tasks.boxes import NOTHING, best_boxes, by_image

JUDGED = 0.05  # the lowest score of a box that metrics count, as in Detectron2
TILES_A_PASS = 32
PLACES_OF_AN_OBJECT = 9  # three by three around its centre


class DetectionHead(Head):
    """torchvision's FCOS over a pyramid of maps: at each place the classes, the box, and how central the place is.

    Two coarser levels are added to those of the backbone. The loss is FCOS's: focal loss of the classes, GIoU of the
    boxes, cross-entropy of the centerness. It is summed over all places and divided by 9 for each object, the places
    that one has around its centre, and 1 for each tile; so an epoch's loss does not depend on how batches are made.

    Args:
        features: What the backbone gives: maps of many places.
        num_classes: Classes of objects, without background.
        width: Channels of the pyramid and of the layers above it, a multiple of 32, at least 64.
        num_convs: Layers above the pyramid before the last, of classes and of boxes.
        finest_stride: Stride of the finest map that is used [pixel]; smaller for objects of few pixels.
        score_threshold: The lowest score of a predicted box; metrics count all above 0.05.
        nms_threshold: Overlap, intersection over union, above which two boxes of a class are one.
        max_detections: Boxes of a tile, of a predicted image, and in metrics of a class in an image, at most.

    Raises:
        ValueError: If the backbone gives tokens or pooled features, num_classes is missing, or a number is out of
            range.
        ModuleNotFoundError: If torchvision or pycocotools are not installed.

    Source: Tian et al. 2019, arXiv:1904.01355
    """

    reads = "maps"
    tasks = ("detection",)
    main_metric = "map"

    def __init__(
        self,
        features: FeatureInfo,
        num_classes: int | None = None,
        *,
        width: int = 256,
        num_convs: int = 4,
        finest_stride: int = 8,
        score_threshold: float = 0.3,
        nms_threshold: float = 0.6,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.expect(features)
        if not features.strides:
            raise ValueError(
                f"{name} needs maps of many places, but this backbone pools them to one; set pyramid: true of its "
                "TimmBackbone"
            )
        if num_classes is None:
            raise ValueError(f"{name} needs num_classes, as in partial({name}, num_classes=3)")
        whole = {"num_classes": num_classes, "num_convs": num_convs, "max_detections": max_detections}
        for key, number in whole.items():
            if number < 1:
                raise ValueError(f"{name}: expected {key} to be at least 1, but got {number}")
        if width < 64 or width % 32:  # one channel a group cannot be normalised in a map of one place
            raise ValueError(f"{name}: expected width to be a multiple of 32, at least 64, but got {width}")
        for key, share in {"score_threshold": score_threshold, "nms_threshold": nms_threshold}.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name}: expected {key} to be between 0 and 1, but got {share}")
        self.levels = [level for level, stride in enumerate(features.strides) if stride >= finest_stride]
        if not self.levels:
            strides = ", ".join(map(str, features.strides))
            raise ValueError(f"{name}: finest_stride={finest_stride} leaves no map; there are those of {strides}")
        self.num_classes = num_classes
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.fcos = Fcos(
            num_classes,
            [features.channels[level] for level in self.levels],
            [features.strides[level] for level in self.levels],
            width=width,
            num_convs=num_convs,
            score_threshold=JUDGED,
            nms_threshold=nms_threshold,
            max_detections=max_detections,
        )

    def forward(self, features: Features) -> Tensor:
        """Return what is seen at each place, shape (tile, place, class + 8), as ``Fcos`` describes it."""
        assert isinstance(features, MapFeatures)
        return self.fcos([features.maps[level] for level in self.levels])

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the sum of the three losses, divided by what ``count`` returns.

        Args:
            prediction: What ``forward`` returned.
            target: Shape (tile, object, 5): class, x1, y1, x2, y2 [pixel]; class -1 where there is none.
        """
        return self.fcos.loss(prediction, target) / self.count(target)

    def count(self, target: Tensor) -> int:
        """Return 9 for each object and 1 for each tile."""
        return PLACES_OF_AN_OBJECT * int((target[..., 0] > NOTHING).sum()) + len(target)

    def metrics(self) -> MetricCollection:
        """Return average precision and recall of boxes, as COCO defines them, of all classes and by class."""
        assert self.num_classes is not None
        scores = BoxScores(self.num_classes, max_detections=self.max_detections, nms_threshold=self.nms_threshold)
        return MetricCollection({"boxes": scores})

    def evaluated(self, prediction: Tensor, target: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the boxes found and the objects that are there, as ``BoxScores`` takes them.

        Args:
            prediction: What ``forward`` returned.
            target: The objects of each tile.
            batch: The batch, as ``lightning_ft.tasks.boxes`` describes it; without ``objects`` each row is an image.
        """
        if "objects" not in batch:
            return self.compared(prediction, target)
        objects = batch["objects"]
        images = batch["tiles"][:, None, :1].expand(-1, objects.shape[1], -1)
        return self._found(prediction, batch), _real(torch.cat([images, objects], -1))

    def compared(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same of images that are no tiles of larger ones.

        Args:
            prediction: What ``forward`` returned.
            target: As ``loss`` takes it.
        """
        num_images, num_objects, _ = target.shape
        images = -1.0 - torch.arange(num_images, device=target.device)[:, None, None].expand(-1, num_objects, 1)
        numbers = torch.arange(num_objects, device=target.device)[None, :, None].expand(num_images, -1, 1)
        return self._found(prediction, {}), _real(torch.cat([images, target, torch.zeros_like(images), numbers], -1))

    def decode(
        self, prediction: Tensor, label_names: Sequence[str] | None, batch: Mapping[str, Tensor]
    ) -> list[dict[str, Any]]:
        """Return for each image its ``prediction``, a list of boxes, best first.

        A box is a dictionary of ``label``, ``box``, its x1, y1, x2, y2 in the image [pixel], and ``score``.

        Args:
            prediction: What ``forward`` returned.
            label_names: Names of the classes, in their order; None where they have none.
            batch: The batch, with all tiles of each of its images; without ``tiles`` each row is an image.
        """
        return self._rows(self._found(prediction, batch), batch, len(prediction), label_names)

    def predict(
        self,
        backbone: Callable[[Mapping[str, Tensor]], Features],
        batch: Mapping[str, Tensor],
        label_names: Sequence[str] | None,
    ) -> list[dict[str, Any]]:
        """Return what ``decode`` does; of an image of many tiles some pass at a time.

        Args:
            backbone: The backbone.
            batch: The batch.
            label_names: Names of the classes, in their order; None where they have none.
        """
        num_tiles = len(next(iter(batch.values())))
        found = []
        for start in range(0, num_tiles, TILES_A_PASS):
            part = {name: value[start : start + TILES_A_PASS] for name, value in batch.items()}
            boxes = self._found(self(backbone(part)), part)
            if "tiles" not in batch:
                boxes[:, 0] -= start
            found.append(boxes)
        return self._rows(torch.cat(found), batch, num_tiles, label_names)

    def _found(self, prediction: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the boxes of each tile in coordinates of its image, shape (box, 7), as ``BoxScores`` takes them."""
        tiles = batch.get("tiles")
        found = self.fcos.boxes(prediction, None if tiles is None else tiles[:, 4:])
        rows = []
        for number, boxes in enumerate(found):
            image, x, y, scale = (-1 - number, 0, 0, 1) if tiles is None else tiles[number, :4].tolist()
            places = boxes["boxes"] / scale + torch.tensor([x, y, x, y], device=prediction.device)
            parts = [torch.full_like(places[:, :1], image), boxes["labels"][:, None], boxes["scores"][:, None], places]
            rows.append(torch.cat(parts, 1))
        return torch.cat(rows)

    def _rows(
        self, found: Tensor, batch: Mapping[str, Tensor], num_tiles: int, label_names: Sequence[str] | None
    ) -> list[dict[str, Any]]:
        """Return the rows of a batch's images, the boxes of their tiles put together."""
        images = [-1.0 - row for row in range(num_tiles)]
        if "tiles" in batch:
            images = batch["tiles"][:, 0].unique_consecutive().tolist()
        boxes_of = by_image(found.cpu())
        rows = []
        for image in images:
            boxes = boxes_of.get(int(image), torch.zeros(0, 6))
            boxes = boxes[boxes[:, 1] >= self.score_threshold]
            kept = best_boxes(boxes[:, 2:], boxes[:, 1], boxes[:, 0].long(), self.nms_threshold, self.max_detections)
            here = []
            for kind, score, *box in boxes[kept].tolist():
                label = label_names[int(kind)] if label_names else str(int(kind))
                here.append({"label": label, "box": [round(side, 2) for side in box], "score": round(score, 4)})
            rows.append({"prediction": here})
        return rows


def _real(rows: Tensor) -> Tensor:
    """Return the rows that are objects, shape (object, column), of rows (tile, row, column) whose second is a class."""
    rows = rows.flatten(0, 1)
    return rows[rows[:, 1] > NOTHING]
