"""VolumeSlices: slices of three-dimensional images in NIfTI files, and their masks."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lightning_ft.bounds import BoundError, check_size
from lightning_ft.data.masked_images import MaskedImages
from lightning_ft.extras import require
from lightning_ft_callbacks.caching.kept_caches import digest

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".nii", ".nii.gz")
NUM_REGIONS = 10  # of a single volume, of which some are held out
BACKGROUND = "background"


class VolumeSlices(MaskedImages):
    """The slices of volumes along an axis, turned so that a head stands upright.

    Volumes are turned to the axes of a body first (right, front, top), and kept in memory, a byte a voxel. Slices of
    one value all over are left out where there are masks. The slices of a volume are a group; those of a single one
    are ten groups of neighbours.

    Args:
        path: A NIfTI file, or a folder of them.
        masks: Class numbers in a file of the same name in a folder, or a file; or by the name of a class its map, how
            much each voxel is of it; None without.
        place: What the volumes are for, for messages.
        masks_place: The same of the masks.
        axis: Along which the slices lie: 0 from left to right, 1 from back to front, 2 from bottom to top.
        threshold: Share of a map's largest value from which on a voxel is of its class, if no other map has more.

    Raises:
        ModuleNotFoundError: If nibabel is not installed.
        ValueError: If a file is no volume, or masks have other shapes than their volumes or no whole numbers.
    """

    def __init__(
        self,
        path: Path,
        masks: Path | Mapping[str, Path] | None,
        place: str,
        masks_place: str,
        *,
        axis: int = 2,
        threshold: float = 0.5,
    ) -> None:
        self.axis = axis
        self.values = {}
        self.rows, self.names, self._slices = [], [], []
        self._volumes: list[tuple[np.ndarray, np.ndarray | None]] = []
        files = volume_files(path)
        for file in files:
            volume = _as_bytes(_read(file, place))
            classes = None
            if masks is not None:
                source, classes = _classes(file, path, masks, masks_place, threshold)
                if classes.shape != volume.shape:
                    raise ValueError(
                        f"{masks_place}: the mask of {str(file)!r} has the shape {classes.shape}, but the volume "
                        f"{volume.shape}"
                    )
                self.values[source] = np.unique(classes).tolist()
            self._volumes.append((volume, classes))
            for number in range(volume.shape[axis]):
                plane = volume.take(number, axis)
                if classes is not None and plane.min() == plane.max():
                    continue
                self.rows.append({"image": str(file), "slice": number})
                self.names.append(f"{_stem(file)}_{number:03}.png")
                self._slices.append((len(self._volumes) - 1, number))
        if not self._slices:
            raise ValueError(f"{place} has no slices that are not blank")
        if len(files) > 1:
            self.groups = [_stem(Path(str(row["image"]))) for row in self.rows]
        else:
            self.groups = [f"region {row * NUM_REGIONS // len(self.rows)}" for row in range(len(self.rows))]

    @property
    def fingerprint(self) -> str:
        """What all slices and masks follow from: the axis, and every voxel."""
        arrays = [array for pair in self._volumes for array in pair if array is not None]
        return digest(self.axis, self._slices, *(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))

    def image(self, number: int) -> "Image.Image":
        """Return a slice as an RGB image."""
        from PIL import Image

        volume, position = self._slices[number]
        return Image.fromarray(self._plane(self._volumes[volume][0], position)).convert("RGB")

    def mask(self, number: int) -> np.ndarray:
        """Return the numbers of a slice's mask, int32, shape (height, width)."""
        volume, position = self._slices[number]
        classes = self._volumes[volume][1]
        assert classes is not None
        return self._plane(classes, position).astype(np.int32)

    def _plane(self, volume: np.ndarray, position: int) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(volume.take(position, self.axis)))


def volume_files(path: Path) -> list[Path]:
    """Return the NIfTI files of a folder, sorted, or the one that is given; an empty list where there are none."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in files if file.name.lower().endswith(SUFFIXES) and not file.name.startswith(".")]


def _classes(
    file: Path, path: Path, masks: Path | Mapping[str, Path], place: str, threshold: float
) -> tuple[str, np.ndarray]:
    """Return the class numbers of a volume, and the file that they are from."""
    if not isinstance(masks, Mapping):
        source = _counterpart(file, path, masks, place)
        numbers = _read(source, place)
        if numbers.dtype.kind == "f" and not (numbers == np.rint(numbers)).all():
            raise ValueError(
                f"{place}: the mask of {str(file)!r} holds numbers that are not whole; for maps of tissue give a "
                "mapping from names to files"
            )
        return str(source), numbers.astype(np.int32)
    maps = [_read(_counterpart(file, path, one, f"{place} of {name!r}"), place) for name, one in masks.items()]
    shares = []
    for one in maps:
        if one.shape != maps[0].shape:
            raise ValueError(f"{place}: maps of the shapes {maps[0].shape} and {one.shape}")
        shares.append(one / max(float(one.max()), 1e-12))
    best = np.stack(shares)
    return str(file), np.where(best.max(0) >= threshold, best.argmax(0) + 1, 0).astype(np.uint8)


def _counterpart(file: Path, path: Path, masks: Path, place: str) -> Path:
    """Return the file beside a volume: of the same name in a folder of masks, or the only one."""
    if path.is_dir() != masks.is_dir():
        raise ValueError(f"{place}: expected a folder of masks for a folder of volumes, or a file for a file")
    if not masks.is_dir():
        return masks
    names = {_stem(one): one for one in volume_files(masks)}
    if _stem(file) not in names:
        raise ValueError(f"{place} lacks a mask for {str(file)!r}; a mask has its volume's name")
    return names[_stem(file)]


def _read(file: Path, place: str) -> np.ndarray:
    """Return a volume with the axes of a body, shape (right, front, top)."""
    nibabel: Any = require("nibabel", extra="volumes", needed_by="SegmentationData")
    try:
        image = nibabel.load(file)
        check_size(prod(image.shape) * np.dtype(np.float64).itemsize, file, place)  # scaled, they are such numbers
        volume = np.asanyarray(nibabel.as_closest_canonical(image).dataobj)
    except BoundError:
        raise
    except (OSError, EOFError, ValueError, nibabel.filebasedimages.ImageFileError) as error:
        raise ValueError(f"{place}: {str(file)!r} cannot be read as a NIfTI file: {error}") from error
    if volume.ndim != 3:
        raise ValueError(f"{place}: expected {str(file)!r} to have three dimensions, but it has {volume.ndim}")
    return np.nan_to_num(volume) if volume.dtype.kind == "f" else volume


def _as_bytes(volume: np.ndarray) -> np.ndarray:
    """Scale grey values to 0..255; of other than bytes the darkest and brightest half per cent are cut off."""
    if volume.dtype == np.uint8:
        return volume
    low, high = np.percentile(volume, [0.5, 99.5])
    return ((volume.clip(low, high) - low) * (255 / max(high - low, 1e-12))).round().astype(np.uint8)


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").removesuffix(".nii")
