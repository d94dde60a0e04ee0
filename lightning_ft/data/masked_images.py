"""MaskedImages: images and their masks, by number, whatever files they come from."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lightning_ft.data.image_check import unreadable_images
from lightning_ft.data.image_folder import images_below, is_image
from lightning_ft.data.images import read_image, stamps
from lightning_ft.data.mask_check import mask_values
from lightning_ft.tasks.masks import read_mask
from lightning_ft_callbacks.caching.kept_caches import digest

if TYPE_CHECKING:
    from PIL import Image

NUM_NAMED = 3


class MaskedImages(ABC):
    """Images, and where they are not to be predicted their masks.

    Attributes:
        rows: Where each image comes from, for a person: ``image``, the file, and of a volume ``slice``.
        names: A file name for each image's mask, with folders below its own; no two are alike.
        groups: What each image is of; images of one group are alike. None where nothing is known.
        values: The numbers in each mask file, rising; empty where there are no masks.
    """

    rows: Sequence[Mapping[str, str | int]]
    names: Sequence[str]
    groups: Sequence[str] | None
    values: Mapping[str, Sequence[int]]

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """What all images and masks follow from: another one where something has changed."""

    @abstractmethod
    def image(self, number: int) -> "Image.Image":
        """Return an RGB image."""

    @abstractmethod
    def mask(self, number: int) -> np.ndarray:
        """Return the numbers of an image's mask, int32, shape (height, width)."""


class ImageFiles(MaskedImages):
    """Image files of a folder, at any depth, and mask files that have their names, but for the suffix.

    Args:
        path: A folder, or without masks also a single image.
        masks: The folder of masks; None without.
        place: What the images are for, for messages: ``"train_file 'images'"``.
        masks_place: The same of the masks.
        group: A regular expression that finds in a path below the folder what the image is of.

    Raises:
        ValueError: If there are no images, images and masks do not pair up, cannot be read, or differ in size, or
            the expression finds nothing in a path.
    """

    def __init__(self, path: Path, masks: Path | None, place: str, masks_place: str, group: str | None = None) -> None:
        folder = path if path.is_dir() else path.parent
        if not path.is_dir() and (masks is not None or not is_image(path.name)):
            raise ValueError(f"{place} is no folder of images" + ("" if masks is not None else ", and no image"))
        files = _by_name(folder, place) if path.is_dir() else {path.stem: str(path)}
        self.files = list(files.values())
        self.rows = [{"image": file} for file in self.files]
        self.names = [f"{name}.png" for name in files]
        self.groups = None if group is None else [_group(group, name, place) for name in files]
        self.masks: list[str] = []
        self.values = {}
        if masks is None:
            if reasons := list(unreadable_images(self.files).values()):
                named = "; ".join(reasons[:NUM_NAMED]) + ("; ..." if len(reasons) > NUM_NAMED else "")
                raise ValueError(f"{place}: {len(reasons)} of {len(self.files)} images cannot be read: {named}")
        else:
            if not masks.is_dir():
                raise ValueError(f"{masks_place} is no folder of masks")
            theirs = _by_name(masks, masks_place)
            _check_pairs(files, theirs, place, masks_place)
            self.masks = [theirs[name] for name in files]
            self.values = mask_values(self.files, self.masks, masks_place)

    @property
    def fingerprint(self) -> str:
        """What all images and masks follow from: their files by path, size and time."""
        return digest(stamps(self.files), stamps(self.masks))

    def image(self, number: int) -> "Image.Image":
        """Return an RGB image."""
        return read_image(self.files[number])

    def mask(self, number: int) -> np.ndarray:
        """Return the numbers of an image's mask, int32, shape (height, width)."""
        return read_mask(self.masks[number])


def _by_name(folder: Path, place: str) -> dict[str, str]:
    """Return the images below a folder by their path in it without its suffix."""
    found: dict[str, str] = {}
    for file in images_below(folder.absolute()):
        name = Path(file).relative_to(folder.absolute()).with_suffix("").as_posix()
        if name in found:
            raise ValueError(f"{place} has two images of one name, {found[name]!r} and {file!r}; keep one of them")
        found[name] = file
    if not found:
        raise ValueError(f"{place} has no images")
    return found


def _check_pairs(images: Mapping[str, str], masks: Mapping[str, str], place: str, masks_place: str) -> None:
    for here, there, lacking in ((images, masks, masks_place), (masks, images, place)):
        if alone := [name for name in here if name not in there]:
            named = ", ".join(repr(here[name]) for name in alone[:NUM_NAMED])
            what = "masks for" if here is images else "images for the masks"
            raise ValueError(
                f"{lacking} lacks {len(alone)} {what} {named}"
                + (", ..." if len(alone) > NUM_NAMED else "")
                + "; a mask has its image's name, but for the suffix"
            )


def _group(pattern: str, name: str, place: str) -> str:
    if (match := re.search(pattern, name)) is None:
        raise ValueError(f"{place}: group {pattern!r} finds nothing in {name!r}")
    return match[0]
