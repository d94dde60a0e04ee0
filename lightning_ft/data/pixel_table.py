"""Pixel tables: CSV files whose rows are the grey values of a square image, and its label."""

import csv
import gzip
from collections.abc import Sequence
from itertools import islice
from math import isfinite, isqrt
from pathlib import Path
from typing import Any

import numpy as np

from lightning_ft.extras import require

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
        with gzip.open(path, "rt", encoding="utf-8-sig", newline="") if path.suffix == ".gz" else path.open(
            encoding="utf-8-sig", newline=""
        ) as file:
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
    path: Path, separator: str, rows: Sequence[Sequence[str]], place: str, label_column: str | None
) -> tuple[np.ndarray, list[Any] | None]:
    """Return the images, uint8, shape (image, side, side), and the labels of a pixel table.

    Grey values are stretched to 0..255 from the range 0..1, 0..16, 0..255 or 0..65535, whichever is the first that
    holds them all. With a header the label is the column ``label_column``, else the last one.

    Args:
        path: The file, gzipped or not.
        separator: What stands between values.
        rows: Its first two rows.
        place: What it is for, for messages.
        label_column: The label column; None for predictions, which need none.

    Raises:
        ValueError: If there is no such column, or values are missing, negative or no numbers.
    """
    header = None if all(map(_is_number, rows[0])) else list(rows[0])
    num_columns = len(rows[0])
    label = None if _is_square(num_columns) else _label_index(header, num_columns, place, label_column)
    if label is None and label_column is not None:
        raise ValueError(f"{place}: its {num_columns} columns are the pixels of an image, none is the label")
    pixel_columns = [str(column) for column in range(num_columns) if column != label]
    arrow, arrow_csv = (
        require(module, extra="vision", needed_by="ImageClassificationData") for module in ("pyarrow", "pyarrow.csv")
    )
    try:
        table = arrow_csv.read_csv(
            str(path),
            arrow_csv.ReadOptions(column_names=[*map(str, range(num_columns))], skip_rows=header is not None),
            arrow_csv.ParseOptions(delimiter=separator),
            arrow_csv.ConvertOptions(column_types=dict.fromkeys(pixel_columns, arrow.float32())),
        )
    except (arrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{place} cannot be read as a table of pixels: {error}") from error
    values = np.stack([table[column].to_numpy() for column in pixel_columns], axis=1)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > WHITES[-1]:
        raise ValueError(f"{place}: grey values must be numbers from 0 to {WHITES[-1]}, and none may be missing")
    white = next(white for white in WHITES if values.max() <= white)
    side = isqrt(len(pixel_columns))
    images = np.rint(values * (255 / white)).astype(np.uint8).reshape(-1, side, side)
    return images, None if label is None or label_column is None else table[str(label)].to_pylist()


def _label_index(header: list[str] | None, num_columns: int, place: str, label_column: str | None) -> int:
    if header is None:
        return num_columns - 1
    if label_column in header:
        return header.index(label_column)
    if label_column is None:
        ...
    raise NotImplementedError


def _is_number(text: str) -> bool:
    try:
        return isfinite(float(text))
    except ValueError:
        return False


def _is_square(num_pixels: int) -> bool:
    return num_pixels >= MIN_SIDE**2 and isqrt(num_pixels) ** 2 == num_pixels
