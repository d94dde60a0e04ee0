"""ImageClassificationData: images with a label."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import default_collate

from lightning_ft.data.base import PARTS_OF_STAGE, FineTuningData, Part
from lightning_ft.data.image_check import unreadable_images
from lightning_ft.data.image_sources import ImageSource, read_images, with_names
from lightning_ft.data.image_transforms import data_config_of, image_transform
from lightning_ft.data.images import Images
from lightning_ft.data.labels import Task
from lightning_ft.data.written_rows import WrittenRows
from lightning_ft.resources import existing

if TYPE_CHECKING:
    from datasets import Dataset

NUM_NAMED = 5


class ImageClassificationData(FineTuningData):
    """Images with a class, several classes, or a number.

    A file is one of these, or the ``package://name/path`` of one:

    - a folder with one sub-folder a class; to predict also any folder of images, or a single image;
    - a table (CSV, TSV, JSONL, Parquet) of paths, relative to its folder, and labels;
    - an idx file of images, as MNIST and Fashion-MNIST have it, with its labels file beside it;
    - a CSV file of pixels, a square image a row: with a header and a label column (MNIST on Kaggle), or without one and
      the label last (scikit-learn's digits). Grey values are stretched to 0..255.

    Images become RGB, and are resized, cropped and normalised by timm as the module's backbone asks for. Each augmented
    image is a function of the run's seed, the epoch and its row alone. Before the first step every file is decoded
    once; the outcome is kept under ``$LIGHTNING_FT_CACHE``, or ``~/.cache/lightning_ft``, until a file changes.
    Batches are ``pixel_values``, shape (batch, 3, height, width), and ``labels``, shape (batch,), or (batch, class) for
    several classes an image.

    Args:
        train_file: Images to train on.
        val_file: Images to validate on; None to hold some of the training file out.
        test_file: Images to test on; None to hold some of the training file out.
        predict_file: Images to predict; they need no label.
        image_column: Column of the paths in a table.
        label_column: Column of the labels in a table.
        labels: Class names in the order of the prediction; None: those of the training data, sorted. They name the
            numbers 0, 1, ... of an idx file or a table of pixels.
        task: ``"multiclass"``, ``"multilabel"`` (lists, or names between ``|``) or ``"regression"``; None: as the
            labels look, lists for multilabel, numbers that are not whole for regression.
        val_size: Images held out for validation: a share below 1, or a number of images.
        test_size: The same for the test.
        split_seed: Seed of the choice of held-out images.
        batch_size: Images a step on one device.
        num_workers: Processes that load images; the images are the same with any number.
        image_size: Height and width [pixel] that the model gets; None for the backbone's own.
        augment: Whether training images are cropped, flipped and coloured at random; a mapping changes settings of
            timm's ``create_transform``: ``{hflip: 0.0, auto_augment: rand-m9-mstd0.5}``.
        skip_unreadable: Whether to drop images that cannot be read, with a notice, instead of stopping.

    Raises:
        ModuleNotFoundError: If timm or datasets are not installed.
        FileNotFoundError: If a file is not there.
        ValueError: If images cannot be read, a file has none or lacks a column, there is one class only, a label that
            training never saw, or no ``data_config`` of a backbone.
    """

    def __init__(
        self,
        train_file: str | None = None,
        val_file: str | None = None,
        test_file: str | None = None,
        *,
        predict_file: str | None = None,
        image_column: str = "image",
        label_column: str = "label",
        labels: list[str] | None = None,
        task: Task | None = None,
        val_size: float = 0.1,
        test_size: float = 0.1,
        split_seed: int = 0,
        batch_size: int = 32,
        num_workers: int = 0,
        image_size: int | None = None,
        augment: bool | dict[str, Any] = True,
        skip_unreadable: bool = False,
    ) -> None:
        super().__init__(
            {"train": train_file, "val": val_file, "test": test_file, "predict": predict_file},
            label_column=label_column,
            labels=labels,
            task=task,
            val_size=val_size,
            test_size=test_size,
            split_seed=split_seed,
            batch_size=batch_size,
            num_workers=num_workers,
        )
        if image_size is not None and image_size < 1:
            raise ValueError(f"expected image_size to be a positive number of pixels, but got {image_size}")
        if label_column in ("image", image_column):
            raise ValueError(f"expected label_column to be another column than the image's, but got {label_column!r}")
        self.image_column = image_column
        self.image_size = image_size
        self.augment = augment
        self.skip_unreadable = skip_unreadable
        self._sources: dict[Part, ImageSource] = {}
        self._transforms: dict[Part, Callable[[Any], Tensor]] = {}

    def prepare_data(self) -> None:
        """Check the images on one rank of each node, so that the others find the outcome."""
        if self.trainer is None or self.trainer.world_size == 1 or self.trainer.state.fn is None:
            return
        for part in PARTS_OF_STAGE[self.trainer.state.fn.value]:
            with suppress(OSError, ValueError, ImportError):  # told by all ranks in setup, so that none waits for this
                self._source(part)

    def setup(self, stage: str) -> None:
        """Read, check and encode the images of a stage: ``fit``, ``validate``, ``test`` or ``predict``."""
        config = data_config_of(getattr(self.trainer, "lightning_module", None), type(self).__name__)
        for part in PARTS_OF_STAGE[stage]:
            augment = part == "train" and self.augment
            self._transforms[part] = image_transform(config, image_size=self.image_size, augment=augment)
        super().setup(stage)

    def read(self, part: Part) -> "Dataset":
        """Return the rows of a part's file whose images can be read: ``image``, the label, and other columns."""
        return self._source(part).table

    @cached_property
    def written(self) -> WrittenRows:
        """The rows to predict as they stand in their table; of a folder the paths."""
        source, file = self._source("predict"), self.files["predict"]
        if source.rows is None or file is None:
            return WrittenRows(source.table)
        return WrittenRows.of_file(file, "predict_file", type(self).__name__, extra="vision").select(source.rows)

    def samples(self, part: Part, table: "Dataset", targets: Sequence[Any] | None) -> Images:
        """Return the images of a table, transformed for training in ``"train"`` and for evaluation elsewhere."""
        return Images(table["image"], self._source(part).pixels, targets, self._transforms[part])

    def collate(self) -> Callable[[list[Any]], Any]:
        """Return the function that stacks images."""
        return default_collate

    def _source(self, part: Part) -> ImageSource:
        """Return what a part's file holds, read and checked once; that of training where it has none."""
        if part != "predict" and self.files[part] is None:
            part = "train"
        if part not in self._sources:
            file, what = self.files[part], f"{part}_file"
            if file is None:
                raise ValueError(f"{type(self).__name__} needs {what}")
            source = read_images(
                existing(file, what).absolute(),
                what,
                image_column=self.image_column,
                label_column=self.label_column,
                labelled=part != "predict",
            )
            if source.pixels is None:
                self._sources[part] = self._readable(source, part)
            else:
                self._sources[part] = with_names(source, self.label_column, self.label_names)
        return self._sources[part]

    def _readable(self, source: ImageSource, part: Part) -> ImageSource:
        """Refuse images that cannot be read, or drop them."""
        paths = source.table["image"][:]
        reasons = unreadable_images(paths)
        rows = [row for row, path in enumerate(paths) if path not in reasons]
        if not reasons:
            return source
        named = "; ".join([*reasons.values()][:NUM_NAMED]) + ("; ..." if len(reasons) > NUM_NAMED else "")
        message = f"{self.place(part)}: {len(paths) - len(rows)} of {len(paths)} images cannot be read"
        if not self.skip_unreadable or not rows:
            raise ValueError(f"{message}: {named}. Mend or remove them, or drop them with skip_unreadable=True")
        rank_zero_info(f"{message}; dropped: {named}")
        kept = None if source.rows is None else [source.rows[row] for row in rows]
        return replace(source, table=source.table.select(rows), rows=kept)
