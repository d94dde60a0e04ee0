"""DetectionData: images with boxes around objects."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from lightning_ft.data.base import PARTS_OF_STAGE, FineTuningData, Part
from lightning_ft.data.boxed_images import BoxedImage, check_names, clipped, renamed
from lightning_ft.data.coco import category_names, coco_document, read_coco, read_json
from lightning_ft.data.image_boxes import TileTransform
from lightning_ft.data.image_check import unreadable_images
from lightning_ft.data.image_folder import images_below, is_image
from lightning_ft.data.image_transforms import data_config_of
from lightning_ft.data.labels import Labels
from lightning_ft.data.tiles import Objects, Tiles, collate_tiles, tiles_of
from lightning_ft.data.voc import read_voc
from lightning_ft.extras import require
from lightning_ft.resources import existing

if TYPE_CHECKING:
    from datasets import Dataset

NUM_NAMED = 5


class DetectionData(FineTuningData):
    """Images with objects, each of a class and in a box.

    A file is one of these, or the ``package://name/path`` of one:

    - a COCO file (``.json``), its images beside it or in ``image_folder``;
    - a folder of XML files as Pascal VOC has them, an image each, beside them or in ``image_folder``.

    To predict also a folder of images, or a single one. Boxes are cut at the edges of their image, and those of which
    nothing remains are dropped, with a notice. COCO's crowds and VOC's difficult objects are neither learned nor
    judged. Images without objects are learned from too. Held out for validation and test are whole images.

    Large images with small objects are cut into tiles; metrics and predictions are of the whole images even so. A tile,
    or an image that is not cut, is fitted into the square that the backbone takes, and normalised as it asks. Each
    augmented tile is a function of the run's seed, the epoch and its number alone. Batches are ``pixel_values``, shape
    (tile, 3, height, width), and ``labels``, shape (tile, object, 5): class, x1, y1, x2, y2 [pixel of the input], class
    -1 where there is no object; what else there is to judge whole images by is described in
    ``lightning_ft.tasks.boxes``.

    Args:
        train_file: Images to train on.
        val_file: Images to validate on; None to hold some of the training file out.
        test_file: Images to test on; None to hold some of the training file out.
        predict_file: Images to predict; they need no objects.
        image_folder: Folder of the images; None: beside the annotations.
        labels: Class names in the order of the prediction; None: those of the training file, sorted.
        rename: New names of classes by old ones, so that several become one: ``{Dead: Tree, Alive: Tree}``.
        tile_size: Width and height of a tile [pixel]; None to cut nothing.
        tile_overlap: Pixels that neighbouring tiles share at least; None for a quarter of a tile.
        min_visible: Share of an object's box that must lie in a tile for the object to be learned there.
        val_size: Images held out for validation: a share below 1, or a number of images.
        test_size: The same for the test.
        split_seed: Seed of the choice of held-out images.
        batch_size: Tiles a step on one device, and whole images to predict.
        num_workers: Processes that load tiles; the tiles are the same with any number.
        image_size: Height and width [pixel] that the model gets; None for the backbone's own.
        augment: Whether training tiles are flipped and coloured at random; a mapping changes ``hflip`` and ``vflip``
            (probabilities) and ``color_jitter`` (a share): ``{vflip: 0.5}`` for what is seen from above.
        skip_unreadable: Whether to drop images that are missing or cannot be read, with a notice, instead of stopping.

    Raises:
        ModuleNotFoundError: If torchvision or datasets are not installed.
        FileNotFoundError: If a file is not there.
        ValueError: If annotations are damaged or name what is not there, images are missing or cannot be read, there
            are no objects, or no ``data_config`` of a backbone.
    """

    def __init__(
        self,
        train_file: str | None = None,
        val_file: str | None = None,
        test_file: str | None = None,
        *,
        predict_file: str | None = None,
        image_folder: str | None = None,
        labels: list[str] | None = None,
        rename: dict[str, str] | None = None,
        tile_size: int | None = None,
        tile_overlap: int | None = None,
        min_visible: float = 0.3,
        val_size: float = 0.1,
        test_size: float = 0.1,
        split_seed: int = 0,
        batch_size: int = 16,
        num_workers: int = 0,
        image_size: int | None = None,
        augment: bool | dict[str, float] = True,
        skip_unreadable: bool = False,
    ) -> None:
        super().__init__(
            {"train": train_file, "val": val_file, "test": test_file, "predict": predict_file},
            labels=labels,
            task="detection",
            val_size=val_size,
            test_size=test_size,
            split_seed=split_seed,
            batch_size=batch_size,
            num_workers=num_workers,
        )
        for name, pixels in (("image_size", image_size), ("tile_size", tile_size)):
            if pixels is not None and pixels < 1:
                raise ValueError(f"expected {name} to be a positive number of pixels, but got {pixels}")
        if tile_size is None and tile_overlap is not None:
            raise ValueError(f"tile_overlap={tile_overlap} has no effect without tile_size")
        if tile_size is not None and tile_overlap is not None and not 0 <= tile_overlap < tile_size:
            raise ValueError(
                f"expected tile_overlap to be at least 0 and below tile_size={tile_size}, but got {tile_overlap}"
            )
        if not 0 < min_visible <= 1:
            raise ValueError(f"expected min_visible to be above 0 and at most 1, but got {min_visible}")
        self.image_folder = image_folder
        self.rename = rename or {}
        self.tile_size = tile_size
        self.tile_overlap = tile_overlap if tile_overlap is not None else (tile_size or 0) // 4
        self.min_visible = min_visible
        self.image_size = image_size
        self.augment = augment
        self.skip_unreadable = skip_unreadable
        self._read: dict[Part, Dataset] = {}
        self._transforms: dict[Part, TileTransform] = {}

    @cached_property
    def labels(self) -> Labels:
        """The classes: those given, else those of the whole training file.

        Raises:
            ValueError: If there are no objects.
        """
        if self.label_names is not None:
            return Labels("detection", self.label_names)
        if self.files["train"] is None:
            raise ValueError(f"{type(self).__name__} needs train_file, or a checkpoint that knows the labels")
        labels = Labels.of(self.read("train")[self.label_column], "detection", self.place("train"))
        if not labels.names:
            raise ValueError(f"{self.place('train')}: there are no objects in {len(self.read('train'))} images")
        return labels

    def prepare_data(self) -> None:
        """Check the images on one rank of each node, so that the others find the outcome."""
        if self.trainer is None or self.trainer.world_size == 1 or self.trainer.state.fn is None:
            return
        for part in PARTS_OF_STAGE[self.trainer.state.fn.value]:
            with suppress(OSError, ValueError, ImportError):  # told by all ranks in setup, so that none waits for this
                self.read(part if self.files[part] is not None else "train")

    def setup(self, stage: str) -> None:
        """Read, check and cut the images of a stage: ``fit``, ``validate``, ``test`` or ``predict``."""
        config = data_config_of(getattr(self.trainer, "lightning_module", None), type(self).__name__)
        for part in PARTS_OF_STAGE[stage]:
            self._transforms[part] = TileTransform(
                mean=tuple(config["mean"]),
                std=tuple(config["std"]),
                interpolation=config.get("interpolation") or "bicubic",
                image_size=self.image_size or config["input_size"][-1],
                tile_size=self.tile_size,
                augment=self.augment if part == "train" else False,
            )
        super().setup(stage)

    def read(self, part: Part) -> "Dataset":
        """Return the images of a part's file, read and checked once.

        Columns are ``image`` (a path), ``width``, ``height``, and ``image_id`` of a COCO file; and but for what is to
        be predicted the classes, ``boxes`` and ``ignored`` of the objects, lists.
        """
        if part not in self._read:
            file, what = self.files[part], f"{part}_file"
            if file is None:
                raise ValueError(f"{type(self).__name__} needs {what}")
            images = self._readable(self._listed(existing(file, what).absolute(), part), part)
            if part == "train":
                check_names(images, self.rename, self.place(part))
            images = renamed(images, self.rename)
            images, done = clipped(images, self.place(part))
            if done.num_clipped or done.num_dropped:
                rank_zero_info(
                    f"{self.place(part)}: of {done.num_boxes} boxes {done.num_clipped} reach beyond their image and "
                    f"are cut at its edge, {done.num_dropped} are empty or outside it and are dropped"
                )
            self._read[part] = self._as_table(images, labelled=part != "predict")
        return self._read[part]

    def samples(self, part: Part, table: "Dataset", targets: Sequence[Any] | None) -> Tiles:
        """Return the tiles of a table's images, one a sample; to predict, all those of an image a sample."""
        sizes = zip(table["width"], table["height"], strict=True)
        cut = [tiles_of(image, size, self.tile_size, self.tile_overlap) for image, size in enumerate(sizes)]
        objects = None
        if targets is not None:
            rows = zip(targets, table["boxes"], table["ignored"], strict=True)
            objects = [
                Objects(
                    np.asarray(classes, np.float32),
                    np.asarray(boxes, np.float32).reshape(-1, 4),
                    np.asarray(ignored, bool),
                )
                for classes, boxes, ignored in rows
            ]
        return Tiles(
            table["image"][:],
            cut if part == "predict" else [[tile] for tiles in cut for tile in tiles],
            objects,
            self._transforms[part],
            judged=part != "train",
            min_visible=self.min_visible,
        )

    def collate(self) -> Callable[[list[Any]], Any]:
        """Return the function that makes a batch of all tiles of some samples."""
        return collate_tiles

    def document(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return predicted rows as a COCO file has them.

        Categories have the ids of ``predict_file``, where that is a COCO file.

        Args:
            rows: What ``predict_rows`` returned, with the ``prediction``.
        """
        file = self.files["predict"]
        path = None if file is None else existing(file, "predict_file")
        known = {}
        if path is not None and path.suffix.lower() == ".json":
            known = category_names(read_json(path, self.place("predict")), self.place("predict"))
        return coco_document(rows, self.labels.names, known)

    def _listed(self, path: Path, part: Part) -> list[BoxedImage]:
        """Return the images that a part's file names."""
        place = self.place(part)
        folder = None if self.image_folder is None else existing(self.image_folder, "image_folder")
        if path.suffix.lower() == ".json":
            images = read_coco(path, folder, place)
            # what an image to predict has in it is not asked
            return [replace(image, names=(), boxes=(), ignored=()) for image in images] if part == "predict" else images
        if part == "predict":
            paths = images_below(path) if path.is_dir() else [str(path)] if is_image(path.name) else []
            if not paths:
                raise ValueError(f"{place} is no image, no folder of images, and no COCO file (.json)")
            return [BoxedImage(found) for found in paths]
        if path.is_dir():
            return read_voc(path, folder, place)
        raise ValueError(f"{place} is no COCO file (.json) and no folder of VOC's XML files")

    def _readable(self, images: list[BoxedImage], part: Part) -> list[BoxedImage]:
        """Refuse images that are missing or cannot be read, or drop them."""
        reasons = unreadable_images(image.path for image in images)
        if not reasons:
            return images
        readable = [image for image in images if image.path not in reasons]
        named = "; ".join([*reasons.values()][:NUM_NAMED]) + ("; ..." if len(reasons) > NUM_NAMED else "")
        message = f"{self.place(part)}: {len(images) - len(readable)} of {len(images)} images cannot be read"
        if not self.skip_unreadable or not readable:
            hint = "" if self.image_folder else ", say where they are with image_folder"
            raise ValueError(f"{message}: {named}. Mend them{hint}, or drop them with skip_unreadable: true")
        rank_zero_info(f"{message}; dropped: {named}")
        return readable

    def _as_table(self, images: Sequence[BoxedImage], *, labelled: bool) -> "Dataset":
        datasets: Any = require("datasets", extra="vision", needed_by=type(self).__name__)
        sizes = [image.size or (0, 0) for image in images]
        columns: dict[str, list[Any]] = {
            "image": [image.path for image in images],
            "width": [width for width, _ in sizes],
            "height": [height for _, height in sizes],
        }
        if all(image.number is not None for image in images):
            columns["image_id"] = [image.number for image in images]
        if labelled:
            columns[self.label_column] = [list(image.names) for image in images]
            columns["boxes"] = [[list(box) for box in image.boxes] for image in images]
            columns["ignored"] = [list(image.ignored) for image in images]
        return datasets.Dataset.from_dict(columns)
