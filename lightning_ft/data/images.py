"""Images: pictures opened and transformed one by one, each by its own random numbers."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_ft.bounds import open_image
from lightning_ft_callbacks.caching.kept_caches import digest
from lightning_ft_callbacks.state.seeded import seeded

if TYPE_CHECKING:
    from PIL import Image


class Images(Dataset):
    """Images and their targets, transformed as they are asked for.

    What the transform draws is a function of ``seed``, ``epoch`` and the index, so that a sample is the same in any
    worker process and after a resume; the global generators stay as they are.

    Args:
        images: The path of each image, or its row in ``pixels``.
        pixels: Grey images, uint8, shape (image, height, width); None where ``images`` are paths.
        targets: Class indices, rows of 0 and 1, or numbers, one an image; None for predictions.
        transform: Turns an RGB image into a tensor (3, height, width).

    Attributes:
        seed: Seed of the run.
        epoch: The epoch, a 0-dim tensor; a shared one tells it to worker processes.
    """

    def __init__(
        self,
        images: Sequence[str] | Sequence[int],
        pixels: np.ndarray | None,
        targets: Sequence[Any] | None,
        transform: Callable[["Image.Image"], Tensor],
    ) -> None:
        self.images = images
        self.pixels = pixels
        self.targets = None if targets is None else _as_tensor(targets)
        self.transform = transform
        self.seed = 0
        self.epoch = torch.tensor(0)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return ``pixel_values`` (3, height, width), and ``labels`` where there are targets."""
        picture = self._open(index)
        with seeded(self.seed, int(self.epoch), index):
            sample = {"pixel_values": self.transform(picture)}
        if self.targets is not None:
            sample["labels"] = self.targets[index]
        return sample

    @cached_property
    def fingerprint(self) -> str:
        """What the samples follow from: images (files by path, size and time), targets, transform and seed.

        By it FrozenPrefixCache knows in a later run what it has kept.
        """
        images: Any = list(self.images)
        if self.pixels is None:
            return digest(self.transform, self.seed, stamps(images), None, self.targets)
        return digest(self.transform, self.seed, images, torch.tensor(self.pixels[images]), self.targets)

    def _open(self, index: int) -> "Image.Image":
        from PIL import Image

        image = self.images[index]
        if self.pixels is not None:
            return Image.fromarray(self.pixels[int(image)]).convert("RGB")
        return read_image(str(image))


def stamps(files: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return each file's absolute path, its size [byte] and when it was written [ns]: changed files have others.

    Args:
        files: The files.

    Raises:
        FileNotFoundError: If one is gone.
    """
    found = [Path(file).absolute() for file in files]
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in found]


def read_image(path: str, *, draft: bool = False) -> "Image.Image":
    """Open an image file as upright RGB.

    EXIF orientation is applied, transparent parts become white, 16-bit grey keeps its range, other numbers are
    stretched from their smallest to their largest; of an animation it is the first frame.

    Args:
        path: The file.
        draft: Whether to read a JPEG at an eighth of its size, which still meets every byte of it.

    Raises:
        OSError: If it cannot be read, or claims to be too large; names the file.
    """
    from PIL import UnidentifiedImageError

    try:
        with open_image(path) as image:
            if draft:
                image.draft(None, (1, 1))
            image.load()
            return _as_rgb(_upright(image))
    except FileNotFoundError as error:
        raise OSError(f"{path}: no such file") from error
    except UnidentifiedImageError as error:
        raise OSError(f"{path}: no image of a format that PIL knows") from error
    except Exception as error:  # PIL's readers raise whatever their parsing meets
        raise OSError(f"{path}: {str(error) or type(error).__name__}") from error


def _upright(image: "Image.Image") -> "Image.Image":
    from PIL import ImageOps

    with suppress(Exception):  # a broken EXIF block says nothing against the pixels
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _as_rgb(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_as_bytes(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _as_bytes(values: np.ndarray) -> np.ndarray:
    """Scale grey values of more than 8 bits to 0..255."""
    if values.dtype.kind in "iu" and values.min() >= 0 and values.max() <= 0xFFFF:
        return (values / 257).round().astype(np.uint8)
    values = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    span = values.max() - values.min()
    return ((values - values.min()) * (255 / span if span else 0.0)).round().astype(np.uint8)


def _as_tensor(targets: Sequence[Any]) -> Tensor:
    tensor = torch.tensor(targets)
    return tensor.float() if tensor.is_floating_point() else tensor
