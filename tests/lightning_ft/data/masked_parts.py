"""What the tests of segmentation share: small images with masks, in folders and in volumes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from image_parts import trainer_of
from PIL import Image

from lightning_ft import SegmentationData

MNI = "package://nilearn/datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"


def scenes(num: int, height: int = 16, width: int = 24, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return images, uint8, shape (height, width, 3), whose red square is class 1 and blue one class 2, and masks."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(num):
        image = draw.integers(60, 120, (height, width, 3)).astype(np.uint8)
        mask = np.zeros((height, width), np.uint8)
        for number, channel in ((1, 0), (2, 2)):
            side = height // 3
            top, left = draw.integers(0, height - side), draw.integers(0, width - side)
            image[top : top + side, left : left + side] = 40
            image[top : top + side, left : left + side, channel] = 250
            mask[top : top + side, left : left + side] = number
        found.append((image, mask))
    return found


def write_scenes(folder: Path, num: int = 20, names: str = "{:02}", **options: Any) -> tuple[str, str]:
    """Write ``folder/images/NAME.png`` and ``folder/masks/NAME.png`` and return the two folders."""
    for number, (image, mask) in enumerate(scenes(num, **options)):
        for kind, values in (("images", image), ("masks", mask)):
            path = folder / kind / f"{names.format(number)}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    return str(folder / "images"), str(folder / "masks")


def data_of(images: Any, masks: Any, stage: str = "fit", *, strides: tuple[int, ...] = (4, 8), **options: Any):
    """Return data that is set up as a trainer with a backbone would have it."""
    if images is not None:
        options |= {"train_file": str(images), "train_masks": masks}
    data = SegmentationData(**options)
    trainer: Any = trainer_of()
    trainer.lightning_module.backbone.features = SimpleNamespace(strides=strides)
    data.trainer = trainer
    data.setup(stage)
    return data
