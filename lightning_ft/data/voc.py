"""Annotations of boxes as Pascal VOC has them: an XML file an image."""

from pathlib import Path
from xml.etree import ElementTree

from lightning_ft.data.boxed_images import BoxedImage, four_numbers
from lightning_ft.data.image_folder import is_image

CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(folder: Path, image_folder: Path | None, place: str) -> list[BoxedImage]:
    """Read all XML files in a folder, at any depth, sorted.

    An image is looked for beside its XML file, and where VOC has it, in ``JPEGImages`` beside the XML file's folder.

    Args:
        folder: The folder.
        image_folder: Where the images are instead.
        place: What the folder is for, for messages.

    Raises:
        ValueError: If there are no XML files, or one is damaged or lacks a part.
    """
    files = sorted(path for path in folder.rglob("*.xml") if path.is_file())
    images = [_read(file, image_folder, place) for file in files]
    if not images:
        raise ValueError(f"{place} has no XML files; it needs one for each image, or give a COCO file (.json)")
    return images


def _read(file: Path, image_folder: Path | None, place: str) -> BoxedImage:
    where = f"{place}: {file.name}"
    try:
        root = ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{where} is cut short, or no XML: {error}") from error
    name = (root.findtext("filename") or "").strip() or file.stem
    names, boxes, ignored = [], [], []
    for number, entry in enumerate(root.iter("object"), 1):
        kind = (entry.findtext("name") or "").strip()
        box = entry.find("bndbox")
        if not kind or box is None:
            raise ValueError(f"{where}, object {number}: no {'name' if not kind else 'bndbox'}")
        names.append(kind)
        boxes.append(four_numbers([box.findtext(corner) for corner in CORNERS], f"{where}, object {number}"))
        ignored.append((entry.findtext("difficult") or "0").strip() == "1")
    path = _image(name, file, image_folder)
    return BoxedImage(str(path), tuple(names), tuple(boxes), tuple(ignored), _size(root))


def _image(name: str, file: Path, image_folder: Path | None) -> Path:
    """Return where an image is, or should be."""
    folders = [image_folder] if image_folder else [file.parent, file.parent.parent / "JPEGImages"]
    for folder in folders:
        # tools that write other formats than they were annotated in keep the old name in the XML file
        same_stem = sorted(folder.glob(f"{_escaped(file.stem)}.*")) if folder.is_dir() else []
        for path in [folder / name, *same_stem]:
            if is_image(path.name) and path.is_file():
                return path
    return folders[0] / name


def _escaped(stem: str) -> str:
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in stem)


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    try:
        width, height = (int(root.findtext(f"size/{side}") or 0) for side in ("width", "height"))
    except ValueError:
        return None
    return (width, height) if width > 0 and height > 0 else None
