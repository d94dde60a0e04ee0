"""Folders of images: a sub-folder a class, or none."""

import os
from pathlib import Path

PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def class_folders(folder: Path, place: str) -> dict[str, list[str]]:
    """Return the images of each sub-folder, at any depth, by its name; both sorted.

    Args:
        folder: The folder.
        place: What it is for, for messages.

    Raises:
        ValueError: If there are no sub-folders, one has no image, an image lies beside them, or they are the parts of
            a data set instead of its classes.
    """
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _is_hidden(entry.name))
    num_beside = sum(is_image(entry.name) for entry in folder.iterdir() if entry.is_file())
    if not names:
        what = f"{num_beside} images, but no sub-folders" if num_beside else "no images"
        raise ValueError(f"{place} has {what}; it needs one sub-folder a class, with its images")
    if len(names) > 1 and {name.lower() for name in names} <= PARTS:
        raise ValueError(f"{place} holds parts, not classes: {', '.join(names)}; name each part's folder as its file")
    classes = {name: images_below(folder / name) for name in names}
    for name, images in classes.items():
        if not images:
            raise ValueError(f"{place}: class folder {name!r} has no images; fill it or remove it")
    if num_beside:
        raise ValueError(f"{place}: {num_beside} images lie outside its class folders {', '.join(names[:20])}")
    return classes


def images_below(folder: Path) -> list[str]:
    """Return the paths of all images in a folder, at any depth, sorted; hidden files are left out."""
    paths = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        paths.extend(str(Path(parent) / name) for name in files if is_image(name))
    return sorted(paths)


def is_image(name: str) -> bool:
    """Tell whether a file's name has an extension that PIL reads."""
    from PIL import Image

    kind = Image.registered_extensions().get(Path(name).suffix.lower())
    return kind in Image.OPEN and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    return name.startswith(".")
