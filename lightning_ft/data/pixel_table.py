"""Pixel tables: CSV files whose rows are the grey values of a square image, and its label."""

import csv
import gzip
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import islice
from math import isfinite, isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_ft.bounds import check_unpacked
from lightning_ft.extras import require

if TYPE_CHECKING:
    from pyarrow import Table

# narrower tables are measurements, not pictures: a wrong image_column must not make them 2x2 images
MIN_SIDE = 8
# white in scikit-learn's digits is 16; by the range, not the largest value there, all parts are stretched alike
WHITES = (1, 16, 255, 65535)


def first_rows(path: Path, separator: str, place: str) -> list[list[str]]:
    """Return the first two rows of a CSV file, gzipped or not, as text.

    Raises:
        ValueError: If it is no such text.
    """
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig", newline="")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig", newline="") as file
        ):
            return list(islice(csv.reader(file, delimiter=separator), 2))
    except (EOFError, UnicodeDecodeError, csv.Error, gzip.BadGzipFile) as error:
        raise ValueError(f"{place} is no table of text: {error}") from error


def is_pixel_table(rows: Sequence[Sequence[str]], image_column: str) -> bool:
    """Tell whether a table holds pixels instead of paths.

    Args:
        rows: Its first two rows.
        image_column: The column where paths would be.
    """
    if not rows or image_column in rows[0] or not all(map(_is_number, rows[-1])):
        return False
    return any(_is_square(len(rows[-1]) - num_labels) for num_labels in (0, 1))


def read_pixel_table(
    path: Path, separator: str, rows: Sequence[Sequence[str]], place: str, *, label_column: str, labelled: bool
) -> tuple[np.ndarray, list[Any] | None]:
    """Return the images, uint8, shape (image, side, side), and the labels of a pixel table.

    Grey values are stretched to 0..255 from the range 0..1, 0..16, 0..255 or 0..65535, whichever is the first that
    holds them all.

    Args:
        path: The file, gzipped or not.
        separator: What stands between values.
        rows: Its first two rows.
        place: What it is for, for messages.
        label_column: The label's column; without a header it is the last one.
        labelled: Whether labels are needed.

    Raises:
        ValueError: If there is no label where one is needed, or grey values are missing, negative or no numbers.
    """
    header = None if all(map(_is_number, rows[0])) else rows[0]
    label = _label_position(header, len(rows[-1]), place, label_column)
    if label is None and labelled:
        raise ValueError(f"{place}: its {len(rows[-1])} columns are all pixels of a square image; none is the label")
    table = _numbers(path, separator, len(rows[-1]), has_header=header is not None, label=label, place=place)
    pixels = [column for position, column in enumerate(table.columns) if position != label]
    values = np.stack([column.to_numpy() for column in pixels], axis=1)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > WHITES[-1]:
        raise ValueError(f"{place}: grey values must be numbers from 0 to {WHITES[-1]}, and none may be missing")
    white = next(white for white in WHITES if values.max() <= white)
    side = isqrt(len(pixels))
    images = np.rint(values * (255 / white)).astype(np.uint8).reshape(-1, side, side)
    return images, None if label is None else table.column(label).to_pylist()


def _label_position(header: Sequence[str] | None, num_columns: int, place: str, label_column: str) -> int | None:
    """Return which column is the label; None where all are pixels."""
    if _is_square(num_columns):
        return None
    if header is None:
        return num_columns - 1
    if label_column in header:
        return header.index(label_column)
    near = get_close_matches(label_column, header, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    some = ", ".join([*header[:3], "...", *header[-2:]])
    raise ValueError(f"{place} has no column {label_column!r} (label_column); it has {some}{hint}")


def _numbers(
    path: Path, separator: str, num_columns: int, *, has_header: bool, label: int | None, place: str
) -> "Table":
    """Read the columns, pixels as float32."""
    check_unpacked(path, place)
    arrow, arrow_csv = (
        require(module, extra="vision", needed_by="ImageClassificationData") for module in ("pyarrow", "pyarrow.csv")
    )
    names = [str(position) for position in range(num_columns)]
    types = {name: arrow.float32() for position, name in enumerate(names) if position != label}
    try:
        table = arrow_csv.read_csv(
            str(path),
            arrow_csv.ReadOptions(column_names=names, skip_rows=int(has_header)),
            arrow_csv.ParseOptions(delimiter=separator),
            arrow_csv.ConvertOptions(column_types=types),
        )
    except (arrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{place} cannot be read as a table of pixels: {str(error)[:200]}") from error
    return table


def _is_number(text: str) -> bool:
    try:
        return isfinite(float(text))
    except ValueError:
        return False


def _is_square(num_pixels: int) -> bool:
    return num_pixels >= MIN_SIDE**2 and isqrt(num_pixels) ** 2 == num_pixels
