"""TileTransform: a picture with boxes made into a network's input, by torchvision's transforms."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_ft.extras import require

if TYPE_CHECKING:
    from PIL import Image

AUGMENTATION = {"hflip": 0.5, "vflip": 0.0, "color_jitter": 0.2}


class TileTransform:
    """Flips and colours a picture at random, fits it into a square, and normalises it; boxes go along.

    Args:
        mean: What is subtracted from each channel of 0..1, shape (3,).
        std: What it is divided by, shape (3,).
        interpolation: How pixels are interpolated: ``"bicubic"``, ``"bilinear"`` or ``"nearest"``.
        image_size: Edge of the square [pixel].
        tile_size: Edge of what becomes the square [pixel], so that all tiles have one scale; None to let each
            picture fill it.
        augment: True for flips from left to right and mild changes of colour, a mapping to change ``hflip`` and
            ``vflip`` (probabilities) and ``color_jitter`` (a share), False for none.

    Raises:
        ModuleNotFoundError: If torchvision is not installed.
        ValueError: If a key of augment is none, or its value out of range.
    """

    def __init__(
        self,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: str,
        image_size: int,
        tile_size: int | None,
        augment: bool | Mapping[str, float],
    ) -> None:
        self.image_size = image_size
        self.tile_size = tile_size
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))
        self._interpolation = _torchvision("transforms.v2").InterpolationMode(interpolation)
        self._augment = None if augment is False else _augmentation(augment)

    def __repr__(self) -> str:
        """Say all that the input follows from."""
        colours = f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"
        return (
            f"TileTransform({self.image_size}, tile_size={self.tile_size}, {colours}, "
            f"interpolation={self._interpolation.value!r}, augment={self._augment!r})"
        )

    def __call__(self, picture: "Image.Image", boxes: Tensor) -> tuple[Tensor, Tensor, tuple[int, int], float]:
        """Return the network's input, shape (3, size, size), the boxes in it, the picture's size in it, and the scale.

        Args:
            picture: An RGB image.
            boxes: x1, y1, x2, y2 in it [pixel], shape (box, 4).
        """
        functional = _torchvision("transforms.v2.functional")
        width, height = picture.size
        scale = self.image_size / (self.tile_size or max(width, height))
        size = [max(1, round(height * scale)), max(1, round(width * scale))]
        moved: Any = _torchvision("tv_tensors").BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
        changed: Any = picture
        if self._augment is not None:
            changed, moved = self._augment(changed, moved)
        changed = functional.resize(changed, size, self._interpolation, antialias=True)
        values = functional.pil_to_tensor(changed).float() / 255
        values = (values - self.mean) / self.std
        room = (0, self.image_size - size[1], 0, self.image_size - size[0])
        return pad(values, room), moved.as_subclass(torch.Tensor) * scale, (size[1], size[0]), scale


def _augmentation(augment: bool | Mapping[str, float]) -> Any:
    changes = dict(augment) if isinstance(augment, Mapping) else {}
    for key, value in changes.items():
        if key not in AUGMENTATION:
            near = get_close_matches(key, AUGMENTATION, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(AUGMENTATION)}"
            raise ValueError(f"augment: there is no {key!r}; {hint}")
        if not 0 <= value <= 1:
            raise ValueError(f"augment: expected {key} to be between 0 and 1, but got {value}")
    v2 = _torchvision("transforms.v2")
    settings = AUGMENTATION | changes
    colour = settings["color_jitter"]
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(settings["hflip"]),
            v2.RandomVerticalFlip(settings["vflip"]),
            v2.ColorJitter(colour, colour, colour),
        ]
    )


def _torchvision(module: str) -> Any:
    """Return a module of torchvision's; looked up anew, because what holds a module cannot be sent to workers."""
    return require(f"torchvision.{module}", extra="vision", needed_by="DetectionData")
