"""What a curve of loss against learning rate suggests: pure functions of rates and losses.

``steep``, ``minimum``, ``valley`` and ``slide`` are defined as in fastai, of smoothed losses
(https://docs.fast.ai/callback.schedule.html, section "LRFinder"); ``fallen`` is our own, of losses as they were.
"""

import torch
from torch import Tensor

SLIDE_WIDTH, SLIDE_CHANGE = 15, 0.005
NEIGHBOURS, FIRST = 7, 10


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


def fallen(lrs: Tensor, losses: Tensor, share: float) -> float:
    """Return the lowest rate at which the loss has fallen by a share of all that it falls in the test.

    Args:
        lrs: Learning rates, rising, shape (step,).
        losses: Losses, not smoothed, all finite, shape (step,).
        share: The share, in (0, 1].
    """
    local = medians(losses)
    first, lowest = local[:FIRST].median(), local.min()
    step = int((local <= first - share * (first - lowest)).nonzero()[0])
    return lrs[step + min(NEIGHBOURS, len(losses)) // 2].item()


def fall(losses: Tensor) -> float:
    """Return how far the loss falls in the test: from the median of the first to the lowest, of ``medians``.

    Args:
        losses: Losses, not smoothed, all finite, shape (step,).
    """
    local = medians(losses)
    return (local[:FIRST].median() - local.min()).item()


def medians(losses: Tensor) -> Tensor:
    """Return the median of each loss and its neighbours, shape (step - 6,), or (1,) of fewer than seven.

    It neither lags behind as a running average does nor is moved by a single batch.

    Args:
        losses: Losses, not smoothed, all finite, shape (step,).
    """
    return losses.unfold(0, min(NEIGHBOURS, len(losses)), 1).median(1).values


METHODS = {"steep": steep, "valley": valley, "minimum": minimum, "slide": slide}
