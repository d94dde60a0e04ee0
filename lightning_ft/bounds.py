"""How large a file may become when it is opened: small ones can claim to hold more than any memory does."""

import bz2
import gzip
import lzma
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

PIXELS, BYTES = "LIGHTNING_FT_MAX_PIXELS", "LIGHTNING_FT_MAX_BYTES"
DEFAULTS = {PIXELS: 178_956_970, BYTES: 16 * 2**30}  # pixels: beyond them PIL itself refuses an image by default
CHUNK = 2**20
DEFLATE = 1032  # the most that a byte of deflated data can become
ZSTD, PARQUET = b"\x28\xb5\x2f\xfd", b"PAR1"
OPENERS: dict[bytes, tuple[Callable[..., Any], int | None]] = {
    b"\x1f\x8b": (gzip.open, DEFLATE),
    b"BZh": (bz2.open, None),
    b"\xfd7zXZ\x00": (lzma.open, None),
}


class BoundError(ValueError):
    """A file would become larger than is allowed."""


def largest(name: str) -> int:
    """Return a limit: that of the environment's variable, else the default.

    Args:
        name: ``LIGHTNING_FT_MAX_PIXELS`` or ``LIGHTNING_FT_MAX_BYTES``.

    Raises:
        ValueError: If the variable holds no positive whole number.
    """
    text = os.environ.get(name) or str(DEFAULTS[name])
    if not text.isdecimal() or not int(text):
        raise ValueError(f"expected {name} to be a positive whole number, but got {text!r}")
    return int(text)


@contextmanager
def open_image(path: str | Path) -> Iterator["Image.Image"]:
    """Open an image file whose header claims no more pixels than are allowed; nothing is decoded yet.

    PIL's own limit is set to the same, for the frames within a file.

    Raises:
        OSError: If it claims more, with the variable that raises the limit; and as PIL does.
    """
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS = largest(PIXELS)
    try:
        image = Image.open(path)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        number = re.search(r"\((\d+) pixels\)", str(error))
        raise OSError(_too_many(int(number[1]) if number else limit + 1)) from error
    with image:
        if image.width * image.height > limit:
            raise OSError(_too_many(image.width * image.height))
        yield image


def check_unpacked(path: Path, place: str) -> None:
    """Raise where a compressed file unpacks to more bytes than are allowed; what no file can exceed is not unpacked.

    Args:
        path: The file, whatever its name says of what it is.
        place: What it is for, for the message.

    Raises:
        BoundError: If it unpacks to more.
    """
    limit = largest(BYTES)
    with path.open("rb") as file:
        start = file.read(6)
    if start.startswith(b"PK\x03\x04"):
        check_size(_sizes_in(path), path, place)
        return
    if start.startswith(PARQUET):
        check_size(_columns_in(path), path, place)
        return
    opener, ratio = next((OPENERS[magic] for magic in OPENERS if start.startswith(magic)), (None, None))
    if start.startswith(ZSTD) and find_spec("zstandard") is not None:  # without it nobody reads such a file
        opener = import_module("zstandard").open
    if opener is None or (ratio is not None and path.stat().st_size * ratio <= limit):
        return
    size = 0
    try:
        with opener(path, "rb") as file:
            while chunk := file.read(CHUNK):
                size += len(chunk)
                if size > limit:
                    raise BoundError(_too_long(path, place, limit))
    except BoundError:
        raise
    except Exception:  # each library has errors of its own
        return  # damaged: whoever reads it says how


def check_size(num_bytes: int, path: Path, place: str) -> None:
    """Raise where a file's header claims more bytes than are allowed.

    Raises:
        BoundError: If so.
    """
    limit = largest(BYTES)
    if num_bytes > limit:
        raise BoundError(_too_long(path, place, limit))


def check_archive(path: Path) -> None:
    """Raise where a zip archive, as torch's checkpoints are, holds more than its own size and than is allowed.

    Raises:
        BoundError: If so.
    """
    if not zipfile.is_zipfile(path):
        return
    size = _sizes_in(path)
    if size > path.stat().st_size:
        check_size(size, path, "checkpoint")


def _sizes_in(path: Path) -> int:
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except (OSError, zipfile.BadZipFile):
        return 0


def _columns_in(path: Path) -> int:
    """Return the bytes of a Parquet file's columns when they are unpacked, as its own directory has them."""
    parquet = import_module("pyarrow.parquet")  # the datasets library reads Parquet by it
    try:
        metadata = parquet.read_metadata(path)
    except (OSError, ValueError):  # damaged: whoever reads it says how
        return 0
    return sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))


def _too_many(claimed: int) -> str:
    limit = largest(PIXELS)
    return f"its header claims {claimed:,} pixels, but {limit:,} are allowed; set {PIXELS} where it is right"


def _too_long(path: Path, place: str, limit: int) -> str:
    return f"{place}: {path.name!r} unpacks to more than the {limit:,} bytes that are allowed; set {BYTES} to read it"
