"""Images, tiles and masks to train on, and the fingerprints of these data: ``fingerprint_parts.py FOLDER``."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from image_parts import trainer_of, write_class_folders
from masked_parts import data_of, scenes, write_scenes

from lightning_ft import DetectionData, ImageClassificationData

KINDS = ("images", "tiles", "masks", "volumes")


def write(folder: Path) -> None:
    """Write digits, pictures with masks and boxes, and a volume."""
    digits = write_class_folders(folder / "digits", num=20)
    rows = [f"digits/{path.parent.name}/{path.name},{path.parent.name}" for path in sorted(digits.rglob("*.png"))]
    (folder / "digits.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    images, _ = write_scenes(folder)
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [2, 3, 8, 8]} for n in range(20)]
    pictures = [{"id": n, "file_name": f"{n:02}.png", "width": 24, "height": 16} for n in range(20)]
    content = {"images": pictures, "annotations": boxes, "categories": [{"id": 1, "name": "red"}]}
    (Path(images) / "boxes.json").write_text(json.dumps(content))
    slices = [(image[..., 0], mask) for image, mask in scenes(20)]
    for name, values in zip(("volume", "classes"), zip(*slices, strict=True), strict=True):
        nibabel.save(nibabel.Nifti1Image(np.stack(values, 2), np.eye(4)), folder / f"{name}.nii.gz")


def training_data(kind: str, folder: Path, seed: int = 0, **options: Any) -> Any:
    """Return a data set to train on."""
    options = {"image_size": 24, "augment": False, "val_size": 2, "test_size": 2} | options
    if kind in ("masks", "volumes"):
        files = {"masks": ("images", "masks"), "volumes": ("volume.nii.gz", "classes.nii.gz")}[kind]
        data: Any = data_of(*(str(folder / file) for file in files), **options)
    else:
        makers: dict[str, Callable[..., Any]] = {"images": ImageClassificationData, "tiles": DetectionData}
        data = makers[kind](str(folder / {"images": "digits.csv", "tiles": "images/boxes.json"}[kind]), **options)
        data.trainer = trainer_of()
        data.setup("fit")
    found = data.train_dataloader().dataset
    found.seed = seed
    return found


if __name__ == "__main__":
    print(json.dumps({kind: training_data(kind, Path(sys.argv[1])).fingerprint for kind in KINDS}))
