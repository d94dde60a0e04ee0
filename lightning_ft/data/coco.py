"""Annotations of boxes as COCO has them: one JSON file for many images."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_ft.data.boxed_images import Box, BoxedImage, four_numbers

MOST_NAMED = 20


def read_coco(file: Path, image_folder: Path | None, place: str) -> list[BoxedImage]:
    """Read a COCO file; images that no annotation is for have no objects.

    Args:
        file: The file.
        image_folder: Where the images are; None for beside the file.
        place: What the file is for, for messages.

    Raises:
        ValueError: If it is no COCO file, has no images, or an annotation is of no image or no category in it, or has
            no box.
    """
    content = read_json(file, place)
    folder = image_folder or file.parent
    kinds = category_names(content, place)
    images: dict[Any, tuple[list[str], list[Box], list[bool]]] = {}
    entries = content["images"]
    for entry in entries:
        if "id" not in entry or not entry.get("file_name"):
            raise ValueError(f"{place}: an image has no id or no file_name: {entry!r:.100}")
        if entry["id"] in images:
            raise ValueError(f"{place}: two images have the id {entry['id']!r}")
        images[entry["id"]] = ([], [], [])
    for number, entry in enumerate(content.get("annotations") or []):
        where = f"{place}, annotation {entry.get('id', number)}"
        if entry.get("image_id") not in images:
            raise ValueError(f"{where}: image_id {entry.get('image_id')!r} is that of no image")
        kind = entry.get("category_id")
        if kind not in kinds:
            known = ", ".join(f"{key} {name}" for key, name in [*kinds.items()][:MOST_NAMED]) or "none"
            raise ValueError(f"{where}: category_id {kind!r} is that of no category; there are {known}")
        x, y, width, height = four_numbers(entry.get("bbox"), where)
        names, boxes, ignored = images[entry["image_id"]]
        names.append(kinds[kind])
        boxes.append((x, y, x + width, y + height))
        ignored.append(bool(entry.get("iscrowd")))
    found = []
    for entry in entries:
        width, height = entry.get("width"), entry.get("height")
        size = (int(width), int(height)) if width and height else None
        names, boxes, ignored = images[entry["id"]]
        objects = tuple(names), tuple(boxes), tuple(ignored)
        found.append(BoxedImage(str(folder / entry["file_name"]), *objects, size=size, number=entry["id"]))
    return found


def read_json(file: Path, place: str) -> dict[str, Any]:
    """Return what a COCO file holds.

    Raises:
        ValueError: If it is empty, no JSON, or has no images.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        what = "is empty" if not file.stat().st_size else f"is cut short, or no JSON: {error}"
        raise ValueError(f"{place} {what}") from error
    content = content if isinstance(content, dict) else {}
    if not isinstance(content.get("images"), list):
        found = ", ".join(map(repr, content)) or "nothing"
        raise ValueError(f"{place} is no COCO file, which has 'images', 'annotations' and 'categories'; it has {found}")
    if not content["images"]:
        raise ValueError(f"{place} has no images")
    return content


def category_names(content: Mapping[str, Any], place: str) -> dict[int, str]:
    """Return the names of a COCO file's categories by their ids.

    Raises:
        ValueError: If one has no id or no name.
    """
    names = {}
    for entry in content.get("categories") or []:
        if "id" not in entry or not entry.get("name"):
            raise ValueError(f"{place}: a category has no id or no name: {entry!r:.100}")
        names[entry["id"]] = str(entry["name"])
    return names


def coco_document(
    rows: Sequence[Mapping[str, Any]], label_names: Sequence[str], known: Mapping[int, str]
) -> dict[str, Any]:
    """Return predictions as a COCO file has objects, with their ``score``.

    Args:
        rows: A row an image: ``image``, ``width``, ``height``, ``image_id`` where it has one, and ``prediction``.
        label_names: Names of the classes.
        known: Names of categories by the ids that they have to keep.
    """
    ids = {name: number for number, name in known.items()}
    free = (number for number in range(1, len(label_names) + len(ids) + 1) if number not in known)
    categories = {name: ids[name] if name in ids else next(free) for name in label_names}
    images, annotations = [], []
    for number, row in enumerate(rows, 1):
        image_id = row.get("image_id") or number if row.get("image_id") != 0 else 0
        images.append({"id": image_id, "file_name": row["image"], "width": row["width"], "height": row["height"]})
        for found in row["prediction"]:
            x1, y1, x2, y2 = found["box"]
            width, height = round(x2 - x1, 2), round(y2 - y1, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": categories[found["label"]],
                    "bbox": [x1, y1, width, height],
                    "area": round(width * height, 2),
                    "iscrowd": 0,
                    "score": found["score"],
                }
            )
    named = [{"id": number, "name": name} for name, number in categories.items()]
    return {"images": images, "annotations": annotations, "categories": named}
