"""Transforms of images together with their masks, by torchvision."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lightning_ft.data.image_transforms import size_of
from lightning_ft.extras import require
from lightning_ft.tasks.masks import IGNORED

if TYPE_CHECKING:
    from PIL import Image

OWNER = "SegmentationData"


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How images and masks are changed at random in training.

    Attributes:
        scale: Smallest and largest share of an image that is cut out.
        ratio: Smallest and largest width of what is cut out, by its height.
        hflip: Probability that left and right are exchanged.
        vflip: Probability that top and bottom are exchanged.
        rotation: The largest angle that it is turned by [degree].
        color_jitter: The largest change of brightness, contrast and saturation, a share of it.
    """

    scale: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    vflip: float = 0.0
    rotation: float = 0.0
    color_jitter: float = 0.2

    @classmethod
    def of(cls, changes: Mapping[str, Any]) -> "Augmentation":
        """Return the usual one with changes.

        Raises:
            ValueError: If a key is unknown; names the nearest.
        """
        known = [field.name for field in fields(cls)]
        for key in changes:
            if key not in known:
                near = get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                raise ValueError(f"augment: {OWNER} has no key {key!r}; {hint}")
        return cls(**changes)


class MaskTransform:
    """Turns an image and its mask into tensors of one size, normalised for a backbone.

    An image is scaled until its longer side is that size, and the rest is filled, below or on the right, with the mean
    colour and pixels that nobody judges; or, augmented, a part of it is cut out and scaled. Images are interpolated
    bilinearly, masks take the nearest pixel.

    Args:
        config: A backbone's data config as timm has it: ``input_size``, ``mean``, ``std``.
        size: Height and width [pixel] of the result.
        augment: What is done at random; None for nothing.

    Raises:
        ModuleNotFoundError: If torchvision is not installed.
        ValueError: If the config lacks a key or is not for RGB, or torchvision does not take the augmentation.
    """

    def __init__(self, config: Mapping[str, Any], size: int, augment: Augmentation | None = None) -> None:
        size_of(config, OWNER)
        self.v2 = require("torchvision.transforms.v2", extra="vision", needed_by=OWNER)
        self.tv_tensors = require("torchvision.tv_tensors", extra="vision", needed_by=OWNER)
        self.size = size
        self.mean, self.std = list(config["mean"]), list(config["std"])
        try:
            self.random = None if augment is None else self._random(augment)
        except (TypeError, ValueError) as error:
            raise ValueError(f"augment: torchvision does not take {augment}: {error}") from error

    def __repr__(self) -> str:
        """Say all that the tensors follow from."""
        return f"MaskTransform({self.size}, mean={self.mean}, std={self.std}, random={self.random!r})"

    def __call__(self, image: "Image.Image", classes: np.ndarray | None) -> tuple[Tensor, Tensor | None]:
        """Return the image, shape (3, size, size), and the classes of its pixels, shape (size, size).

        Args:
            image: An RGB image.
            classes: The class of each pixel, or IGNORED, shape (height, width); None to predict.
        """
        pixels = self.tv_tensors.Image(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        mask = self.tv_tensors.Mask(
            torch.from_numpy(np.zeros(pixels.shape[1:], np.int64) if classes is None else classes)
        )
        if self.random is not None:
            pixels, mask = self.random(pixels, mask)
        else:
            extent = list(extent_of((pixels.shape[1], pixels.shape[2]), self.size))
            resize = self.v2.functional.resize
            pixels, mask = resize(pixels, extent, antialias=True), resize(mask, extent)
        pixels = self.v2.functional.to_dtype(pixels, torch.float32, scale=True)
        pixels = self.v2.functional.normalize(pixels, self.mean, self.std)
        space = [0, 0, self.size - pixels.shape[2], self.size - pixels.shape[1]]
        pixels, mask = (self.v2.functional.pad(one, space, fill=fill) for one, fill in ((pixels, 0.0), (mask, IGNORED)))
        plain = torch.Tensor
        return pixels.as_subclass(plain), None if classes is None else mask.as_subclass(plain).long()

    def _random(self, augment: Augmentation) -> Callable[..., Any]:
        v2 = self.v2
        colour = [augment.color_jitter] * 3
        fill = {self.tv_tensors.Image: [round(255 * value) for value in self.mean], self.tv_tensors.Mask: IGNORED}
        bilinear = v2.InterpolationMode.BILINEAR
        turned = [v2.RandomRotation(augment.rotation, interpolation=bilinear, fill=fill)] if augment.rotation else []
        size = (self.size, self.size)
        return v2.Compose(
            [
                *turned,
                v2.RandomResizedCrop(size, scale=tuple(augment.scale), ratio=tuple(augment.ratio), antialias=True),
                v2.RandomHorizontalFlip(augment.hflip),
                v2.RandomVerticalFlip(augment.vflip),
                v2.ColorJitter(*colour),
            ]
        )


def extent_of(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """Return the height and width [pixel] of an image once its longer side has a size.

    Args:
        shape: Its height and width before.
        size: That of the longer side.
    """
    longer = max(shape)
    height, width = (max(1, round(side * size / longer)) for side in shape)
    return height, width
