"""DetectionHead: boxes around objects, and what they are: FCOS on a backbone's pyramid."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from lightning_ft.box_metrics import BoxScores
from lightning_ft.boxes import NOTHING, best_boxes, by_image
from lightning_ft.extras import require
from lightning_ft.features import FeatureInfo, Features, MapFeatures
from lightning_ft.heads.base import Head

JUDGED = 0.05  # the lowest score of a box that metrics count, as in Detectron2
TILES_A_PASS = 32
NUM_PLACE = 3  # the last columns of a prediction: where it stands


class DetectionHead(Head):
    """torchvision's FCOS over a pyramid of maps: at each place the classes, the box, and how central the place is.

    Two coarser levels are added to those of the backbone. The loss is FCOS's (focal loss of the classes, GIoU of boxes,
    cross-entropy of centerness), for each tile divided by the number of places in objects, and the mean over tiles.

    A prediction has the shape (tile, place, class + 8): logits of the classes, distances to the four sides [stride],
    logit of the centerness, and x, y and stride of the place [pixel]; it is all that loss and boxes follow from.

    Args:
        features: What the backbone gives: maps of several places.
        num_classes: Classes of objects, without background.
        width: Channels of the pyramid and of the layers above it, a multiple of 32.
        num_convs: Layers above the pyramid before the last, of classes and of boxes.
        finest_stride: Stride of the finest map that is used [pixel]; smaller for objects of few pixels.
        score_threshold: The lowest score of a predicted box; metrics count all above 0.05.
        nms_threshold: Overlap, intersection over union, above which two boxes of a class are one.
        max_detections: Boxes of a tile, and in metrics of a class in an image, at most.

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
        if width < 32 or width % 32:
            raise ValueError(f"{name}: expected width to be a multiple of 32, but got {width}")
        for key, share in {"score_threshold": score_threshold, "nms_threshold": nms_threshold}.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name}: expected {key} to be between 0 and 1, but got {share}")
        self._levels = [level for level, stride in enumerate(features.strides) if stride >= finest_stride]
        if not self._levels:
            raise ValueError(
                f"{name}: finest_stride={finest_stride} leaves no map of strides {', '.join(map(str, features.strides))}"
            )
        self.num_classes = num_classes
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        strides = [features.strides[level] for level in self._levels]
        self.strides = [*strides, 2 * strides[-1], 4 * strides[-1]]
        channels = [features.channels[level] for level in self._levels]
        self.fcos = self._fcos(channels, width, num_convs)

    def forward(self, features: Features) -> Tensor:
        """Return what is seen at each place, shape (tile, place, class + 8)."""
        assert isinstance(features, MapFeatures)
        levels = list(self.fcos.backbone({str(level): features.maps[level] for level in self._levels}).values())
        seen = self.fcos.head(levels)
        parts = [seen["cls_logits"], seen["bbox_regression"], seen["bbox_ctrness"]]
        # in full precision whatever the others are, because they are pixels
        places = self._places(levels).expand(len(levels[0]), -1, -1)
        return torch.cat([*parts, places], -1)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the mean over tiles of the sum of the three losses.

        Args:
            prediction: What ``forward`` returned.
            target: Shape (tile, object, 5): class, x1, y1, x2, y2 [pixel]; class -1 where there is none.
        """
        anchors, sizes = self._anchors(prediction)
        seen = self._seen(prediction.float())
        losses = []
        for tile, rows in enumerate(target):
            objects = rows[rows[:, 0] > NOTHING]
            true = {"labels": objects[:, 0].long(), "boxes": objects[:, 1:].float()}
            here = {name: value[tile : tile + 1] for name, value in seen.items()}
            losses.append(sum(self.fcos.compute_loss([true], here, [anchors], sizes).values()))
        return torch.stack(losses).mean()

    def metrics(self) -> MetricCollection:
        """Return average precision and recall of boxes, as COCO defines them, of all classes and by class."""
        assert self.num_classes is not None
        scores = BoxScores(
            self.num_classes, max_detections=self.max_detections, nms_threshold=self.nms_threshold
        )
        return MetricCollection({"boxes": scores})

    def evaluated(self, prediction: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the boxes found and the objects that are there, as ``BoxScores`` takes them.

        Args:
            prediction: What ``forward`` returned.
            batch: The batch; without ``tiles`` each of its rows is an image of its own.
        """
        if "objects" not in batch:
            return self.compared(prediction, batch["labels"])
        objects = batch["objects"]
        images = batch["tiles"][:, None, :1].expand(-1, objects.shape[1], -1)
        rows = torch.cat([images, objects], -1).flatten(0, 1)
        return self._found(prediction, batch), rows[rows[:, 1] > NOTHING]

    def compared(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same of images that are no tiles of larger ones.

        Args:
            prediction: What ``forward`` returned.
            target: As ``loss`` takes it.
        """
        images = -1.0 - torch.arange(len(target), device=target.device)
        images = images[:, None, None].expand(-1, target.shape[1], 1)
        numbers = torch.arange(target.shape[1], device=target.device)[None, :, None].expand(len(target), -1, -1)
        rows = torch.cat([images, target.float(), torch.zeros_like(images), numbers], -1).flatten(0, 1)
        return self._found(prediction, {}), rows[rows[:, 1] > NOTHING]

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
        return self._rows(self._found(prediction, batch), self._images(batch, len(prediction)), label_names)

    def predict(
        self,
        backbone: Callable[[Mapping[str, Tensor]], Features],
        batch: Mapping[str, Tensor],
        label_names: Sequence[str] | None,
    ) -> list[dict[str, Any]]:
        """Return what ``decode`` does; an image of many tiles passes some at a time.

        Args:
            backbone: The backbone.
            batch: The batch.
            label_names: Names of the classes, in their order; None where they have none.
        """
        num_tiles = len(next(iter(batch.values())))
        found = []
        for start in range(0, num_tiles, TILES_A_PASS):
            part = {name: value[start : start + TILES_A_PASS] for name, value in batch.items()}
            boxes = self._found(self(backbone(part)).float(), part)
            if "tiles" not in batch:
                boxes[:, 0] -= start
            found.append(boxes)
        return self._rows(torch.cat(found), self._images(batch, num_tiles), label_names)

    def _fcos(self, channels: Sequence[int], width: int, num_convs: int) -> Any:
        """Return torchvision's FCOS, whose backbone is the pyramid above our backbone's maps."""
        name = type(self).__name__
        models: Any = require("torchvision.models.detection", extra="vision", needed_by=name)
        ops: Any = require("torchvision.ops.feature_pyramid_network", extra="vision", needed_by=name)
        pyramid = ops.FeaturePyramidNetwork(list(channels), width, ops.LastLevelP6P7(width, width))
        pyramid.out_channels = width
        generator = models.anchor_utils.AnchorGenerator(
            tuple((stride,) for stride in self.strides), ((1.0,),) * len(self.strides)
        )
        return models.FCOS(
            pyramid,
            self.num_classes,
            anchor_generator=generator,
            head=models.fcos.FCOSHead(width, 1, self.num_classes, num_convs),
            score_thresh=JUDGED,
            nms_thresh=self.nms_threshold,
            detections_per_img=self.max_detections,
        )

    def _places(self, levels: Sequence[Tensor]) -> Tensor:
        """Return x, y and stride of each place of some maps, shape (place, 3)."""
        generator = self.fcos.anchor_generator
        generator.set_cell_anchors(torch.float32, levels[0].device)
        sizes = [level.shape[-2:] for level in levels]
        anchors = torch.cat(generator.grid_anchors(sizes, [(stride, stride) for stride in self.strides]))
        return torch.stack(
            [anchors[:, [0, 2]].mean(1), anchors[:, [1, 3]].mean(1), anchors[:, 2] - anchors[:, 0]], 1
        )

    def _anchors(self, prediction: Tensor) -> tuple[Tensor, list[int]]:
        """Return the square of each place, shape (place, 4), and how many places each level has."""
        x, y, stride = prediction[0, :, -NUM_PLACE:].float().unbind(-1)
        half = stride / 2
        sizes = stride.unique_consecutive(return_counts=True)[1].tolist()
        return torch.stack([x - half, y - half, x + half, y + half], 1), sizes

    def _seen(self, prediction: Tensor) -> dict[str, Tensor]:
        """Return a prediction's parts by torchvision's names."""
        assert self.num_classes is not None
        parts = prediction.split([self.num_classes, 4, 1, NUM_PLACE], -1)
        return dict(zip(("cls_logits", "bbox_regression", "bbox_ctrness"), parts, strict=False))

    def _found(self, prediction: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the boxes of each tile in coordinates of its image, shape (box, 7), as ``BoxScores`` takes them."""
        anchors, sizes = self._anchors(prediction)
        tiles = batch.get("tiles")
        if tiles is None:
            # each row is an image, as large as the finest map
            width, height = (anchors[: sizes[0], 2:].amax(0) + anchors[0, 2:]).tolist()
            images = [[-1.0 - row, 0.0, 0.0, 1.0, width, height] for row in range(len(prediction))]
            tiles = torch.tensor(images, device=prediction.device)
        seen = {name: list(value.split(sizes, 1)) for name, value in self._seen(prediction.float()).items()}
        shapes = [(int(height), int(width)) for width, height in tiles[:, 4:].tolist()]
        split = [list(anchors.split(sizes))] * len(prediction)
        found = self.fcos.postprocess_detections(seen, split, shapes)
        rows = []
        for tile, boxes in zip(tiles, found, strict=True):
            places = boxes["boxes"] / tile[3] + tile[1:3].repeat(2)
            parts = [tile[:1].expand(len(places), 1), boxes["labels"][:, None], boxes["scores"][:, None], places]
            rows.append(torch.cat(parts, 1))
        return torch.cat(rows)

    @staticmethod
    def _images(batch: Mapping[str, Tensor], num_rows: int) -> list[int]:
        """Return the numbers of a batch's images, in their order."""
        if "tiles" not in batch:
            return [-1 - row for row in range(num_rows)]
        return [int(number) for number in batch["tiles"][:, 0].unique_consecutive().tolist()]

    def _rows(
        self, found: Tensor, images: Sequence[int], label_names: Sequence[str] | None
    ) -> list[dict[str, Any]]:
        boxes_of = by_image(found.cpu())
        rows = []
        for image in images:
            boxes = boxes_of.get(image, torch.zeros(0, 6))
            boxes = boxes[boxes[:, 1] >= self.score_threshold]
            kept = best_boxes(boxes[:, 2:], boxes[:, 1], boxes[:, 0].long(), self.nms_threshold, self.max_detections)
            found_here = []
            for kind, score, *box in boxes[kept].tolist():
                label = label_names[int(kind)] if label_names else str(int(kind))
                found_here.append({"label": label, "box": [round(side, 2) for side in box], "score": round(score, 4)})
            rows.append({"prediction": found_here})
        return rows
