"""The noise of training losses, told from the losses themselves: pure functions."""

import torch
from torch import Tensor

MEDIAN_DIFFERENCE = 0.954  # of two normal values, in their standard deviations
MOST_CORRELATED = 0.9
OUTLYING = 2.0  # times the usual difference of neighbours


def error_of_difference(losses: Tensor, width: int) -> float:
    """Return the standard error of the difference of two means of as many steps, of losses that fall.

    Args:
        losses: Losses, all finite, at least three, shape (step,).
        width: Steps of each mean.
    """
    rest = losses - falling(losses)
    alike = correlation(rest)
    return noise(rest) * ((1 + alike) / (1 - alike) * 2 / width) ** 0.5


def usual_noise(losses: Tensor) -> float:
    """Return the standard deviation of most steps, which neither a fall nor an explosion of the losses moves.

    It is that of the differences of neighbours, by their median.

    Args:
        losses: Losses, all finite, at least two, shape (step,).
    """
    return losses.diff().abs().median().item() / MEDIAN_DIFFERENCE


def noise(rest: Tensor) -> float:
    """Return the standard deviation of a step, as far as it follows from the differences of neighbours.

    It is the larger of two: of ``usual_noise``, and of their mean square, which losses ask for of which most are equal
    (a hinge's, or those of 16 bits) or a few far off. Neighbours that are alike differ by less than they vary.

    Args:
        rest: What losses are beside their course, at least three, shape (step,).
    """
    mean_square = (rest.diff().square().mean().item() / (2 * (1 - correlation(rest)))) ** 0.5
    return max(usual_noise(rest), mean_square)


def correlation(rest: Tensor) -> float:
    """Return how alike the noise of neighbours is, from 0 to 0.9: of noise of the first order, its coefficient.

    It follows from the differences of neighbours, of which two in sequence then have the correlation
    ``(coefficient - 1) / 2``. What half a standard error explains is left out.

    Args:
        rest: What losses are beside their course, at least three, shape (step,).
    """
    usual = OUTLYING * usual_noise(rest) or torch.inf
    differences = rest.diff().clamp(-usual, usual)
    total = differences.square().sum().item()
    if total == 0:
        return 0.0
    found = 1 + 2 * (differences[1:] * differences[:-1]).sum().item() / total - len(differences) ** -0.5
    return min(max(found, 0.0), MOST_CORRELATED)


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
