"""idx files: the format of MNIST and Fashion-MNIST (http://yann.lecun.com/exdb/mnist, section "file formats")."""

import gzip
import re
import struct
import zlib
from pathlib import Path

import numpy as np

from lightning_ft.bounds import check_size

UNSIGNED_BYTE = 0x08


def is_idx(path: Path) -> bool:
    """Tell by its name whether a file is an idx file: ``train-images-idx3-ubyte.gz``."""
    return re.search(r"[-.]idx\d", path.name) is not None


def read_idx(path: Path, place: str, *, num_dims: int) -> np.ndarray:
    """Return the bytes of an idx file.

    No more memory is taken than the file really fills, whatever its header says.

    Args:
        path: The file, gzipped or not.
        place: What it is for, for messages.
        num_dims: Dimensions that it must have: 3 for images (image, height, width), 1 for labels.

    Raises:
        ValueError: If it is damaged, or no idx file of unsigned bytes with these dimensions.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * num_dims)
            if len(header) < 4 + 4 * num_dims or header[:4] != bytes((0, 0, UNSIGNED_BYTE, num_dims)):
                raise ValueError(f"{place}: {path.name!r} is no idx{num_dims} file of unsigned bytes")
            shape = struct.unpack(f">{num_dims}I", header[4:])
            size = int(np.prod(shape, dtype=object))
            content = bytearray()
            while chunk := file.read(min(1 << 20, size + 1 - len(content))):
                content += chunk
                check_size(len(content), path, place)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{place}: {path.name!r} is damaged: {error}") from error
    if len(content) != size or not size:
        rest = "has more" if len(content) > size else f"has {len(content)}"
        raise ValueError(f"{place}: by its header {path.name!r} holds {size} bytes, shape {shape}, but it {rest}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def read_idx_labels(images: Path, place: str, *, num_images: int) -> np.ndarray:
    """Return the labels of an idx image file, shape (image,), from the file beside it.

    Args:
        images: The image file; the labels' has ``labels`` for ``images`` and ``idx1`` for ``idx3`` in its name.
        place: What it is for, for messages.
        num_images: Number of images.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has another number of labels.
    """
    name = images.name.replace("images", "labels").replace("idx3", "idx1").removesuffix(".gz")
    siblings = [images.with_name(name + suffix) for suffix in (".gz", "") if (images.parent / (name + suffix)).exists()]
    if not siblings or siblings[0] == images:
        raise FileNotFoundError(
            f"{place}: its labels file {str(images.with_name(name))!r}, or that with .gz, is missing"
        )
    labels = read_idx(siblings[0], place, num_dims=1)
    if len(labels) != num_images:
        raise ValueError(f"{place}: {num_images} images, but {len(labels)} labels in {siblings[0].name!r}")
    return labels
