"""Masks: a class number a pixel, in image files."""

from pathlib import Path

import numpy as np

from lightning_ft.bounds import open_image
from lightning_ft.tasks.targets import IGNORED as IGNORED
from lightning_ft_callbacks.whole_file import whole_file

LOSSY = {".jpg", ".jpeg", ".jpe", ".jfif"}


def read_mask(path: str) -> np.ndarray:
    """Return the numbers of a mask file, shape (height, width): grey values, or the entries of a palette.

    Args:
        path: The file.

    Raises:
        OSError: If it cannot be read; names the file.
        ValueError: If it holds colours or no whole numbers, or is a JPEG, which changes the numbers of pixels.
    """
    from PIL import UnidentifiedImageError

    if Path(path).suffix.lower() in LOSSY:
        raise ValueError(f"{path}: a JPEG does not keep the numbers of pixels; save masks as PNG")
    try:
        with open_image(path) as image:
            mode, values = image.mode, np.asarray(image)
    except FileNotFoundError as error:
        raise OSError(f"{path}: no such file") from error
    except UnidentifiedImageError as error:
        raise OSError(f"{path}: no image of a format that PIL knows") from error
    except Exception as error:  # PIL's readers raise whatever their parsing meets
        raise OSError(f"{path}: {str(error) or type(error).__name__}") from error
    if values.ndim != 2 or values.dtype.kind not in "iub":
        raise ValueError(f"{path}: expected a class number a pixel, but it holds {mode} values; save masks as grey PNG")
    return values.astype(np.int32)


def write_mask(path: Path, classes: np.ndarray) -> None:
    """Write class numbers, shape (height, width), as a grey PNG of 8 bits a pixel, or 16 where one is above 255."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        image = Image.fromarray(classes.astype(np.uint8 if classes.max(initial=0) < 256 else np.uint16))
        image.save(partial, format="PNG")


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder, or in one below it.

    Raises:
        ValueError: If the name leads out of the folder.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"the name {name!r} leads out of the folder {str(folder)!r}")
    return path
