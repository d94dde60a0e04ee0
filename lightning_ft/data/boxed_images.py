"""BoxedImage: an image with the objects in it, and their boxes checked."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from math import isfinite
from typing import Any

from lightning_ft.bounds import open_image

Box = tuple[float, float, float, float]

TURNED = (5, 6, 7, 8)  # EXIF orientations in which height and width change places
ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class BoxedImage:
    """An image and its objects.

    Attributes:
        path: The image's file.
        names: The class of each object.
        boxes: x1, y1, x2, y2 of each object [pixel].
        ignored: Whether an object is neither learned nor judged: a crowd in COCO, a difficult one in VOC.
        size: Width and height [pixel] as the annotation says; None where it does not.
        number: Its number in a COCO file; None elsewhere.
    """

    path: str
    names: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    ignored: tuple[bool, ...] = ()
    size: tuple[int, int] | None = None
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Clipping:
    """What was done to boxes.

    Attributes:
        num_boxes: Boxes in all.
        num_clipped: Those that reached beyond their image.
        num_dropped: Those that were empty, or lay outside it.
    """

    num_boxes: int
    num_clipped: int
    num_dropped: int


def clipped(images: Iterable[BoxedImage], place: str) -> tuple[list[BoxedImage], Clipping]:
    """Cut boxes at the edges of their images, and drop those of which nothing remains.

    Args:
        images: The images, which must be there.
        place: Where they come from, for messages.

    Returns:
        The images with their true sizes, and what was done.

    Raises:
        ValueError: If a box is no four numbers, or an image has another size than its annotation says.
    """
    found = []
    num_boxes = num_clipped = num_dropped = 0
    for image in images:
        width, height = upright_size(image.path)
        if image.size is not None and image.size != (width, height):
            raise ValueError(
                f"{place}: {image.path!r} is {width} x {height} pixels, but its annotation says "
                f"{image.size[0]} x {image.size[1]}, so its boxes do not fit"
            )
        kept, boxes = [], []
        for number, (x1, y1, x2, y2) in enumerate(image.boxes):
            box = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
            if box[0] < box[2] and box[1] < box[3]:
                kept.append(number)
                boxes.append(box)
                num_clipped += box != (x1, y1, x2, y2)
        num_boxes += len(image.boxes)
        num_dropped += len(image.boxes) - len(kept)
        found.append(
            replace(
                image,
                names=tuple(image.names[number] for number in kept),
                boxes=tuple(boxes),
                ignored=tuple(image.ignored[number] for number in kept),
                size=(width, height),
            )
        )
    return found, Clipping(num_boxes, num_clipped, num_dropped)


def four_numbers(values: Any, where: str) -> Box:
    """Return four finite numbers.

    Args:
        values: What should be them.
        where: Whose they are, for the message.

    Raises:
        ValueError: If it is something else.
    """
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != 4 or not all(map(isfinite, numbers)):
        raise ValueError(f"{where}: expected a box of four numbers, but got {values!r}")
    return numbers[0], numbers[1], numbers[2], numbers[3]


def renamed(images: Sequence[BoxedImage], names: Mapping[str, str]) -> list[BoxedImage]:
    """Return images whose classes have other names, so that several become one.

    Args:
        images: The images.
        names: New names by old ones.
    """
    return [replace(image, names=tuple(names.get(name, name) for name in image.names)) for image in images]


def check_names(images: Sequence[BoxedImage], names: Iterable[str], place: str) -> None:
    """Raise unless each name is that of an object.

    Args:
        images: The images.
        names: Names of classes that are to be renamed.
        place: Where the images come from, for the message.

    Raises:
        ValueError: If one is none.
    """
    known = sorted({name for image in images for name in image.names})
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{place}: rename: no object is a {name!r}; there are {', '.join(known)}{hint}")


def upright_size(path: str) -> tuple[int, int]:
    """Return width and height [pixel] of an image as it is seen, read from its header."""
    try:
        with open_image(path) as image:
            width, height = image.size
            turned = image.getexif().get(ORIENTATION) in TURNED
    except OSError as error:
        raise OSError(f"{path}: {error}") from error
    return (height, width) if turned else (width, height)
