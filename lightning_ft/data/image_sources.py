"""ImageSource: the images and labels that a file holds, whatever its kind."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_ft.data.idx import is_idx, read_idx, read_idx_labels
from lightning_ft.data.image_folder import class_folders, images_below, is_image
from lightning_ft.data.pixel_table import first_rows, is_pixel_table, read_pixel_table
from lightning_ft.data.tables import READERS, check_columns, read_table

if TYPE_CHECKING:
    from datasets import Dataset

NEEDED_BY = "ImageClassificationData"


@dataclass(frozen=True, slots=True, eq=False)
class ImageSource:
    """Images with their labels, one row each.

    Attributes:
        table: The column ``image`` (a path, or a row of ``pixels``), the label column, and others that the file has.
        pixels: Grey images, uint8, shape (image, height, width), where the file holds pixels; None where it has paths.
        rows: The row of each image in a table of paths; None where the file is none.
    """

    table: "Dataset"
    pixels: np.ndarray | None = None
    rows: Sequence[int] | None = None


def read_images(path: Path, what: str, *, image_column: str, label_column: str, labelled: bool) -> ImageSource:
    """Read a folder of class folders, a table of paths, an idx file, or a table of pixels.

    Without labels also a folder of images or a single image.

    Args:
        path: The file or folder.
        what: What it is for, as messages say it: ``"train_file"``.
        image_column: Column of the paths in a table.
        label_column: Column of the labels in a table, and in what is returned.
        labelled: Whether labels are needed.

    Raises:
        FileNotFoundError: If an idx file has no labels file beside it.
        ValueError: If it is of no such kind, has no images, lacks a column, or is damaged.
    """
    place = f"{what} {str(path)!r}"
    if path.is_dir():
        return _folder(path, place, label_column, labelled=labelled)
    if is_idx(path):
        return _idx(path, place, label_column, labelled=labelled)
    kind = next((suffix for suffix in reversed(path.suffixes) if suffix.lower() != ".gz"), "").lower()
    if READERS.get(kind) == "csv":
        separator = "\t" if kind == ".tsv" else ","
        rows = first_rows(path, separator, place)
        if is_pixel_table(rows, image_column):
            images, labels = read_pixel_table(
                path, separator, rows, place, label_column=label_column, labelled=labelled
            )
            return ImageSource(_rows(range(len(images)), label_column, labels if labelled else None), images)
    if kind in READERS:
        table = _table(path, what, place, image_column, label_column if labelled else None)
        return ImageSource(table, rows=range(len(table)))
    if not is_image(path.name):
        raise ValueError(
            f"{place} is no folder of images, no table ({', '.join(READERS)}), no idx file"
            + ("" if labelled else ", and no image")
        )
    if labelled:
        raise ValueError(f"{place} is a single image, which has no label; give a folder with a sub-folder a class")
    return ImageSource(_rows([str(path)], label_column, None))


def with_names(source: ImageSource, label_column: str, names: Sequence[str] | None) -> ImageSource:
    """Put class names in the place of the labels 0, 1, ... of a file that cannot hold names.

    Args:
        source: The images.
        label_column: Column of the labels.
        names: The class names; None, or names that the labels bear already, change nothing.
    """
    if names is None or label_column not in source.table.column_names:
        return source
    labels = source.table[label_column][:]
    if {str(label) for label in labels} & set(names) or not all(label in range(len(names)) for label in labels):
        return source
    table = source.table.remove_columns(label_column).add_column(label_column, [names[int(label)] for label in labels])
    return replace(source, table=table)


def _folder(folder: Path, place: str, label_column: str, *, labelled: bool) -> ImageSource:
    if labelled:
        classes = class_folders(folder, place)
        names = [name for name, images in classes.items() for _ in images]
        return ImageSource(_rows([path for images in classes.values() for path in images], label_column, names))
    if not (paths := images_below(folder)):
        raise ValueError(f"{place} has no images")
    return ImageSource(_rows(paths, label_column, None))


def _idx(path: Path, place: str, label_column: str, *, labelled: bool) -> ImageSource:
    images = read_idx(path, place, num_dims=3)
    labels = read_idx_labels(path, place, num_images=len(images)).tolist() if labelled else None
    return ImageSource(_rows(range(len(images)), label_column, labels), images)


def _table(path: Path, what: str, place: str, image_column: str, label_column: str | None) -> "Dataset":
    """Read a table of paths; relative ones are made to start at its folder."""
    table = read_table(str(path), what, NEEDED_BY, extra="vision")
    check_columns(table, {"image_column": image_column, "label_column": label_column}, place)
    images = table[image_column][:]
    for row, image in enumerate(images):
        if not isinstance(image, str) or not image:
            kind = "nothing" if image in (None, "") else f"{image!r:.60}"
            raise ValueError(f"{place}, row {row + 1}: column {image_column!r} holds {kind} where a path should be")
    replaced = [column for column in ("image", image_column) if column in table.column_names]
    paths = [str(path.parent / image) for image in images]
    return table.remove_columns(sorted(set(replaced))).add_column("image", paths)


def _rows(images: Sequence[str] | Sequence[int], label_column: str, labels: Sequence[Any] | None) -> "Dataset":
    from datasets import Dataset

    return Dataset.from_dict({"image": list(images)} | ({} if labels is None else {label_column: list(labels)}))
