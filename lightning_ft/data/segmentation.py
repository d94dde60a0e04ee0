"""SegmentationData: images with a class for each pixel."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import default_collate

from lightning_ft.data.base import PARTS_OF_STAGE, FineTuningData, Part
from lightning_ft.data.image_transforms import data_config_of, size_of
from lightning_ft.data.labels import Labels
from lightning_ft.data.mask_transforms import Augmentation, MaskTransform
from lightning_ft.data.masked_images import ImageFiles, MaskedImages
from lightning_ft.data.masked_samples import MaskedSamples
from lightning_ft.data.split import grouped_split
from lightning_ft.data.volumes import BACKGROUND, VolumeSlices, volume_files
from lightning_ft.data.written_rows import WrittenRows
from lightning_ft.extras import require
from lightning_ft.resources import existing
from lightning_ft.tasks.masks import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset

MOST_NUMBERS = 1 << 16


class SegmentationData(FineTuningData):
    """Images with masks, which hold a class number for each pixel.

    Images and masks are one of these, or the ``package://name/path`` of one:

    - a folder of images, at any depth, and a folder of masks with the same names but for the suffix: PNG or another
      format that keeps numbers, grey or with a palette;
    - a volume in a NIfTI file (``.nii``, ``.nii.gz``) or a folder of them, whose slices are the images, and masks
      likewise, or by the name of a class a map of how much each voxel is of it.

    The model gets squares: an image is scaled until its longer side is ``image_size``, and the rest is filled with
    pixels that nobody judges. Losses and metrics are of these squares, predictions have the size of the original
    image. Each augmented image is a function of the run's seed, the epoch and its row alone. Before the first step
    every file is read once; what was found is kept under ``$LIGHTNING_FT_CACHE``, or ``~/.cache/lightning_ft``, until a
    file changes.

    Batches are ``pixel_values``, shape (batch, 3, height, width), and ``labels``, shape (batch, height, width), -100
    where nobody judges. To predict there are also ``sizes``, shape (batch, 2), the height and width [pixel] of the
    original image, and ``extents``, shape (batch, 2), those of its place in the square.

    Args:
        train_file: Images to train on.
        val_file: Images to validate on; None to hold some of the training images out.
        test_file: Images to test on; None to hold some of the training images out.
        train_masks: Masks of the images to train on.
        val_masks: Masks of val_file.
        test_masks: Masks of test_file.
        predict_file: Images to predict; they need no masks. A single image too.
        labels: Names of the classes 0, 1, ...; or the number of each in the masks, as ``{background: 0, cell: 255}``;
            None for the numbers in the training masks.
        ignore_index: Number in masks of pixels that nobody judges, unless a label has it; None for none.
        axis: Axis of volumes along which the slices lie: 0 from left to right, 1 from back to front, 2 from bottom to
            top.
        threshold: Share of a map's largest value from which on a voxel is of its class.
        group: A regular expression that finds in an image's path below its folder what it is of, a patient or a
            video: ``^[^/]*`` for sub-folders. Images of one group are held out together. Of volumes the slices of each
            are a group, and those of a single one ten groups of neighbours.
        val_size: Images held out for validation: a share below 1, or a number of images.
        test_size: The same for the test.
        split_seed: Seed of the choice of held-out images.
        batch_size: Images a step on one device.
        num_workers: Processes that load images; the images are the same with any number.
        image_size: Height and width [pixel] that the model gets, a multiple of its coarsest stride; None for the
            backbone's own.
        augment: Whether training images are cropped, flipped and coloured at random; a mapping changes that:
            ``{hflip: 0.0, rotation: 15}``. Keys are those of ``Augmentation``.

    Raises:
        ModuleNotFoundError: If torchvision or datasets, or for volumes nibabel, are not installed.
        FileNotFoundError: If a file is not there.
        ValueError: If images and masks do not pair up, cannot be read, or differ in size, a mask has a number that is
            no class, or there is no ``data_config`` of a backbone.
    """

    def __init__(
        self,
        train_file: str | None = None,
        val_file: str | None = None,
        test_file: str | None = None,
        *,
        train_masks: str | dict[str, str] | None = None,
        val_masks: str | dict[str, str] | None = None,
        test_masks: str | dict[str, str] | None = None,
        predict_file: str | None = None,
        labels: list[str] | dict[str, int] | None = None,
        ignore_index: int | None = 255,
        axis: int = 2,
        threshold: float = 0.5,
        group: str | None = None,
        val_size: float = 0.1,
        test_size: float = 0.1,
        split_seed: int = 0,
        batch_size: int = 8,
        num_workers: int = 0,
        image_size: int | None = None,
        augment: bool | dict[str, Any] = True,
    ) -> None:
        super().__init__(
            {"train": train_file, "val": val_file, "test": test_file, "predict": predict_file},
            label_column="mask",
            labels=None if labels is None else list(labels),
            task="segmentation",
            val_size=val_size,
            test_size=test_size,
            split_seed=split_seed,
            batch_size=batch_size,
            num_workers=num_workers,
        )
        if image_size is not None and image_size < 1:
            raise ValueError(f"expected image_size to be a positive number of pixels, but got {image_size}")
        if axis not in (0, 1, 2):
            raise ValueError(f"expected axis to be 0, 1 or 2, but got {axis}")
        if not 0 < threshold <= 1:
            raise ValueError(f"expected threshold to be above 0 and at most 1, but got {threshold}")
        self.masks: dict[Part, str | dict[str, str] | None] = {
            "train": train_masks,
            "val": val_masks,
            "test": test_masks,
            "predict": None,
        }
        for part, masks in self.masks.items():
            if part != "predict" and (masks is None) != (self.files[part] is None):
                given, lacking = (f"{part}_masks", f"{part}_file")[:: 1 if masks else -1]
                raise ValueError(f"{type(self).__name__} needs {lacking} beside {given}")
        self.numbers = dict(labels) if isinstance(labels, dict) else None
        if self.numbers is not None:
            _check_numbers(self.numbers)
        self.ignore_index = ignore_index
        self.axis = axis
        self.threshold = threshold
        self.group = group
        self.image_size = image_size
        self.augmentation = Augmentation.of(augment if isinstance(augment, dict) else {}) if augment else None
        self._sources: dict[Part, MaskedImages] = {}
        self._transforms: dict[Part, MaskTransform] = {}

    @cached_property
    def labels(self) -> Labels:
        """The classes: those given, those of which there are maps, else the numbers in the training masks.

        Raises:
            ValueError: If there is one class only, or a number below the largest never occurs.
        """
        maps = self.masks["train"]
        if isinstance(maps, dict):
            names = (BACKGROUND, *maps)
            if self.label_names not in (None, names):
                raise ValueError(f"labels={list(self.label_names or ())}, but train_masks are of {', '.join(names)}")
            return Labels("segmentation", names)
        if self.label_names is not None:
            return Labels("segmentation", self.label_names)
        values = self._source("train").values.values()
        found = sorted({number for one in values for number in one} - {self.ignore_index})
        where = self.masks_place("train")
        if len(found) < 2:
            raise ValueError(
                f"{where}: masks hold {' and '.join(map(str, found)) or 'nothing'} alone, besides pixels of "
                f"ignore_index={self.ignore_index}; for two classes with other numbers give labels, as "
                "{background: 0, object: 255}"
            )
        if lacking := sorted({*range(found[-1])} - {*found}):
            raise ValueError(
                f"{where}: masks hold {', '.join(map(str, found[:20]))}, but never {lacking[0]}; give labels, as "
                f"{{background: {found[0]}, object: {found[1]}}}"
            )
        return Labels("segmentation", tuple(map(str, found)))

    def prepare_data(self) -> None:
        """Check the images on one rank of each node, so that the others find the outcome."""
        if self.trainer is None or self.trainer.world_size == 1 or self.trainer.state.fn is None:
            return
        for part in PARTS_OF_STAGE[self.trainer.state.fn.value]:
            with suppress(OSError, ValueError, ImportError):  # told by all ranks in setup, so that none waits for this
                self._source(part)

    def setup(self, stage: str) -> None:
        """Read and check the images of a stage: ``fit``, ``validate``, ``test`` or ``predict``."""
        module = getattr(self.trainer, "lightning_module", None)
        config = data_config_of(module, type(self).__name__)
        size = self._size(config, getattr(getattr(module, "backbone", None), "features", None))
        for part in PARTS_OF_STAGE[stage]:
            self._transforms[part] = MaskTransform(config, size, self.augmentation if part == "train" else None)
        super().setup(stage)

    def read(self, part: Part) -> "Dataset":
        """Return a row for each image: ``image``, of volumes ``slice``, and the name for its mask."""
        datasets = require("datasets", extra="vision", needed_by=type(self).__name__)
        source = self._source(part)
        table = {key: [row[key] for row in source.rows] for key in source.rows[0]} | {"name": list(source.names)}
        if part != "predict":
            table |= {"row": list(range(len(source.rows))), "mask": list(source.names)}
        return datasets.Dataset.from_dict(table)

    @cached_property
    def written(self) -> WrittenRows:
        """The images to predict: their files, and of volumes the slices."""
        return WrittenRows(self.read("predict").remove_columns("name"))

    def mask_names(self, start: int, stop: int) -> list[str]:
        """Return file names for the masks of the images ``start`` to ``stop``."""
        return list(self._source("predict").names[start:stop])

    def split(self, table: "Dataset", sizes: Mapping[str, float]) -> Mapping[str, Any]:
        """Return the rows of the training images for each part; groups stay together."""
        groups = self._source("train").groups
        if groups is None:
            return super().split(table, sizes)
        return grouped_split(groups, sizes, self.split_seed, self.place("train"))

    def samples(self, part: Part, table: "Dataset", targets: Sequence[Any] | None) -> MaskedSamples:
        """Return the images of a table, transformed for training in ``"train"`` and for evaluation elsewhere."""
        rows = range(len(table)) if targets is None else table["row"][:]
        classes = None if targets is None else self._classes(part)
        return MaskedSamples(self._source(part), rows, classes, self._transforms[part])

    def collate(self) -> Callable[[list[Any]], Any]:
        """Return the function that stacks images."""
        return default_collate

    def masks_place(self, part: Part) -> str:
        """Return where a part's masks come from, for messages: ``train_masks 'masks'``."""
        source = part if self.files[part] is not None else "train"
        masks = self.masks[source]
        return f"{source}_masks" + (f" {masks!r}" if isinstance(masks, str) else "")

    def _classes(self, part: Part) -> np.ndarray:
        """Return the class of each number in a mask, shape (number,).

        Raises:
            ValueError: If a mask of the part has a number that is no class.
        """
        names = self.labels.names
        numbers = self.numbers or {name: number for number, name in enumerate(names)}
        classes = np.full(MOST_NUMBERS, IGNORED, np.int64)
        for number, name in enumerate(names):
            classes[numbers[name]] = number
        known = {*numbers.values(), self.ignore_index}
        for file, values in self._source(part).values.items():
            if strange := [value for value in values if value not in known]:
                listed = ", ".join(f"{number} {name}" for name, number in numbers.items() if name != str(number))
                raise ValueError(
                    f"{self.masks_place(part)}: {file} holds the number {strange[0]}, which is no class; there are "
                    f"{listed or ', '.join(map(str, numbers.values()))}"
                    + (
                        f", and {self.ignore_index} for pixels that nobody judges"
                        if self.ignore_index is not None
                        else ""
                    )
                )
        return classes

    def _source(self, part: Part) -> MaskedImages:
        """Return what a part's files hold, read and checked once; those of training where it has none."""
        if part != "predict" and self.files[part] is None:
            part = "train"
        if part in self._sources:
            return self._sources[part]
        file, masks = self.files[part], self.masks[part]
        if file is None:
            raise ValueError(f"{type(self).__name__} needs {part}_file")
        path = existing(file, f"{part}_file").absolute()
        place, masks_place = self.place(part), self.masks_place(part)
        what = f"{part}_masks"
        found: Path | dict[str, Path] | None = None
        if isinstance(masks, dict):
            found = {name: existing(one, f"{what} of {name!r}") for name, one in masks.items()}
        elif masks is not None:
            found = existing(masks, what)
        if volume_files(path):
            if self.group is not None:
                raise ValueError(f"{place}: group has no effect on volumes, whose slices are held out by region")
            source: MaskedImages = VolumeSlices(
                path, found, place, masks_place, axis=self.axis, threshold=self.threshold
            )
        elif isinstance(found, dict):
            raise ValueError(f"{masks_place}: maps by the name of a class are for volumes (.nii, .nii.gz) only")
        else:
            source = ImageFiles(path, found, place, masks_place, self.group)
        self._sources[part] = source
        return source

    def _size(self, config: Mapping[str, Any], features: Any) -> int:
        """Return the height and width that the model gets, for its backbone's data config and FeatureInfo."""
        coarsest = max(getattr(features, "strides", ()), default=1)
        if self.image_size is None:
            return -(-max(size_of(config, type(self).__name__)) // coarsest) * coarsest
        if self.image_size % coarsest:
            near = max(1, round(self.image_size / coarsest)) * coarsest
            raise ValueError(
                f"image_size={self.image_size} is no multiple of {coarsest}, the backbone's coarsest stride [pixel]; "
                f"take {near}"
            )
        return self.image_size


def _check_numbers(numbers: Mapping[str, int]) -> None:
    """Raise unless classes have numbers of their own that a mask can hold."""
    for name, number in numbers.items():
        if not 0 <= number < MOST_NUMBERS:
            raise ValueError(f"expected labels to have numbers from 0 to {MOST_NUMBERS - 1}, but {name!r} has {number}")
    if len({*numbers.values()}) < len(numbers):
        raise ValueError(f"expected labels to have numbers of their own, but got {dict(numbers)}")
