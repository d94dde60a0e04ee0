"""The noise of training losses, told from the losses themselves: pure functions."""

import torch
from torch import Tensor

MEDIAN_DIFFERENCE = 0.954  # of two normal values, in their standard deviations


def error_of_difference(losses: Tensor, width: int) -> float:
    """Return the standard error of the difference of two means of as many steps, of losses that fall.

    It is the larger of two: that of steps that know nothing of one another, and that which means of so many steps
    show, which is more where neighbours are alike.

    Args:
        losses: Losses, all finite, at least as many as a mean has, shape (step,).
        width: Steps of each mean.
    """
    rest = losses - falling(losses)
    of_means = rest.unfold(0, width, 1).mean(1).square().mean().item() ** 0.5
    return 2**0.5 * max(noise(rest) / width**0.5, of_means)


def usual_noise(losses: Tensor) -> float:
    """Return the standard deviation of most steps, which neither a fall nor an explosion of the losses moves.

    It is that of the differences of neighbours, by their median.

    Args:
        losses: Losses, all finite, at least two, shape (step,).
    """
    return losses.diff().abs().median().item() / MEDIAN_DIFFERENCE


def noise(rest: Tensor) -> float:
    """Return the standard deviation of a step, as it follows from the differences of neighbours.

    It is the larger of two: of ``usual_noise``, and of their mean square, which losses ask for of which most are equal
    (a hinge's, or those of 16 bits) or a few far off.

    Args:
        rest: What losses are beside their course, at least two, shape (step,).
    """
    return max(usual_noise(rest), (rest.diff().square().mean().item() / 2) ** 0.5)


def falling(losses: Tensor) -> Tensor:
    """Return the course that never rises and is nearest to losses, shape (step,): isotonic regression.

    Args:
        losses: Losses, all finite, shape (step,).
    """
    levels: list[tuple[float, int]] = []  # with the number of steps on each
    for loss in losses.tolist():
        level, steps = loss, 1
        while levels and levels[-1][0] < level:
            before, many = levels.pop()
            level, steps = (before * many + level * steps) / (many + steps), many + steps
        levels.append((level, steps))
    values, numbers = zip(*levels, strict=True)
    return torch.tensor(values, dtype=losses.dtype).repeat_interleave(torch.tensor(numbers))
