"""Losses of classes of pixels, one number an image."""

import torch
from torch import Tensor
from torch.nn import functional

from lightning_ft.tasks.masks import IGNORED


def pixel_cross_entropy(logits: Tensor, target: Tensor, weights: Tensor | None, gamma: float = 0.0) -> Tensor:
    """Return each image's mean cross-entropy [nat] over its judged pixels, shape (image,); with gamma the focal loss.

    The focal loss counts a pixel less the surer its class is: its cross-entropy times ``(1 - p) ** gamma`` (Lin et al.
    2017, arXiv:1708.02002, here with a softmax over the classes).

    Args:
        logits: Class logits, shape (image, class, height, width).
        target: Classes, IGNORED where nobody judges, shape (image, height, width).
        weights: Weight of each class, shape (class,); the mean is weighted.
        gamma: How much less.
    """
    losses = functional.cross_entropy(logits, target, ignore_index=IGNORED, reduction="none")
    counted = (target != IGNORED).to(losses.dtype)
    if weights is not None:
        counted = counted * weights[target.clamp(min=0)]
    if gamma:
        # a power below 1 has no slope at 0, where a pixel is sure or ignored
        losses = losses * (1 - torch.exp(-losses)).clamp(min=1e-6) ** gamma
    return (losses * counted).sum((1, 2)) / counted.sum((1, 2)).clamp(min=1e-12)


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return 1 minus each image's mean soft Dice coefficient over the classes that it has, shape (image,).

    Of a class it is twice the probability on its pixels, by the probability on all pixels and their number (Milletari
    et al. 2016, arXiv:1606.04797).

    Args:
        logits: Class logits, shape (image, class, height, width).
        target: Classes, IGNORED where nobody judges, shape (image, height, width).
    """
    judged = (target != IGNORED).flatten(1)
    classes = target.flatten(1).clamp(min=0)
    probabilities = logits.softmax(1).flatten(2) * judged[:, None]
    right = probabilities.gather(1, classes[:, None])[:, 0]
    zeros = logits.new_zeros(logits.shape[:2])
    shared = zeros.scatter_add(1, classes, right)
    numbers = zeros.scatter_add(1, classes, judged.to(zeros.dtype))
    dice = 2 * shared / (probabilities.sum(2) + numbers).clamp(min=1e-12)
    there = numbers > 0
    return 1 - (dice * there).sum(1) / there.sum(1).clamp(min=1)
