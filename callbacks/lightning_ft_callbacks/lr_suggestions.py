"""What a curve of loss against learning rate suggests: pure functions of two rising arrays.

Each is defined as in fastai (https://docs.fast.ai/callback.schedule.html, section "LRFinder").
"""

import torch
from torch import Tensor

SLIDE_WIDTH, SLIDE_CHANGE = 15, 0.005


def steep(lrs: Tensor, losses: Tensor) -> float:
    """Return the rate at which the loss falls fastest against the logarithm of the rate.

    Args:
        lrs: Learning rates, rising, shape (step,).
        losses: Losses, shape (step,).
    """
    slopes = losses.diff() / lrs.log().diff()
    return lrs[int(slopes.argmin())].item()


def minimum(lrs: Tensor, losses: Tensor) -> float:
    """Return a tenth of the rate at which the loss is lowest.

    Args:
        lrs: Learning rates, rising, shape (step,).
        losses: Losses, shape (step,).
    """
    return lrs[int(losses.argmin())].item() / 10


def valley(lrs: Tensor, losses: Tensor) -> float:
    """Return the rate in the middle of the second third of the longest falling stretch.

    The stretch is the longest subsequence of falling losses; it is taken to be as many steps long as it has members,
    up to its last.

    Args:
        lrs: Learning rates, rising, shape (step,).
        losses: Losses, shape (step,).
    """
    lengths = torch.ones(len(losses), dtype=torch.long)
    for step in range(1, len(losses)):
        higher = lengths[:step][losses[:step] > losses[step]]
        if len(higher):
            lengths[step] = int(higher.max()) + 1
    end, length = int(lengths.argmax()), int(lengths.max())
    start = end - length if length > 1 else 0
    return lrs[max(0, start + int(length / 3) + int(length / 6))].item()


def slide(lrs: Tensor, losses: Tensor) -> float:
    """Return where an interval, slid down from the highest rates, first has about the same slope at both ends.

    Args:
        lrs: Learning rates, rising, shape (step,).
        losses: Losses, shape (step,).
    """
    slopes = torch.gradient(losses)[0] if len(losses) > 1 else torch.zeros(1)
    right = len(losses) - 1
    left = right - SLIDE_WIDTH
    found = lrs[max(0, left)]
    while left >= 0 and abs(slopes[right] - slopes[left]) > SLIDE_CHANGE:
        found = lrs[left]
        right, left = right - 1, left - 1
    return found.item()


METHODS = {"steep": steep, "valley": valley, "minimum": minimum, "slide": slide}
