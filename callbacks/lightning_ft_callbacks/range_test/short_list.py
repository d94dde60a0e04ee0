"""A short list of learning rates around a suggestion, each trained with for a little while: pure functions.

A range test sees each rate for one step, after many at lower rates; so the first large fall of its loss may be one that
any rate would have brought. Short trainings from the same weights on the same batches tell neighbours apart. Their
number is that of a search which stops where nothing is gained; compare successive halving (Jamieson and Talwalkar 2016,
arXiv:1502.07943), which stops all but the best of a fixed list.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

RATIO, MOST_MOVES = 3.0, 2
WARMUP = 0.1  # of the steps
NUM_SCORED = 10
STANDARD_ERRORS = 2.0


def course(lr: float, num_steps: int) -> list[float]:
    """Return the rates of a short training: up within a tenth of its steps, down to 0, and 0 while it is scored.

    Args:
        lr: The highest.
        num_steps: Steps until the rate is 0; ``NUM_SCORED`` more come after them, which change no weight.
    """
    rises = max(1.0, WARMUP * num_steps)
    falls = max(1.0, num_steps - rises)
    factors = [min((step + 1) / rises, (num_steps - step) / falls, 1.0) for step in range(num_steps)]
    return [lr * factor for factor in factors] + [0.0] * NUM_SCORED


def scores(losses: Sequence[float], num_planned: int) -> Tensor:
    """Return the losses that a short training is judged by, shape (``NUM_SCORED``,); NaN where it ended early.

    Args:
        losses: All losses of the training, in order.
        num_planned: How many there are if it does not diverge.
    """
    if len(losses) < num_planned:
        return torch.full((NUM_SCORED,), torch.nan, dtype=torch.float64)
    return torch.tensor(losses[-NUM_SCORED:], dtype=torch.float64)


def walk(
    start: float, trial: Callable[[float], Tensor], bounds: tuple[float, float], least: float = 0.0
) -> dict[float, Tensor]:
    """Try a rate and its neighbours, by threes, upwards while that is clearly better, else downwards.

    Where the losses of the first explode, it begins with the highest rate below of which they do not.

    Args:
        start: The first rate.
        trial: Trains with a rate, and returns the losses afterwards, of the same batches each time, shape (batch,).
        bounds: No rate below the first or above the second is tried.
        least: How much lower the losses must be at least.

    Returns:
        The losses by rate, in the order of trying.
    """
    trials, (low, high) = {start: trial(start)}, bounds
    lr = start
    while exploded(trials[lr]) and low <= lr / RATIO:
        lr /= RATIO
        trials[lr] = trial(lr)
    begun = chosen(trials, least)
    if exploded(trials[begun]):
        return trials
    for ratio in (RATIO, 1 / RATIO) if begun == start else (1 / RATIO,):
        for _ in range(MOST_MOVES):
            best = chosen(trials, least)
            if not low <= (lr := best * ratio) <= high or lr in trials:
                break
            trials[lr] = trial(lr)
            if chosen(trials, least) == best:
                break
        if chosen(trials, least) != begun:
            break
    return trials


def chosen(trials: Mapping[float, Tensor], least: float = 0.0) -> float:
    """Return the rate that was tried first, or one after it that is clearly better.

    Args:
        trials: Losses of the same batches by rate, in the order of trying, at least one.
        least: How much lower the losses must be at least.
    """
    best, *others = trials
    for lr in others:
        if clearly_lower(trials[lr], trials[best], least):
            best = lr
    return best


def exploded(losses: Tensor) -> bool:
    """Tell whether a training led to losses that are no numbers.

    Args:
        losses: Its losses, shape (batch,).
    """
    return not bool(losses.isfinite().all())


def clearly_lower(losses: Tensor, than: Tensor, least: float = 0.0) -> bool:
    """Tell whether losses are lower than others, of the same batches, by two standard errors of the difference.

    Losses that are no numbers are lower than none.

    Args:
        losses: These, shape (batch,).
        than: Those, shape (batch,).
        least: How much lower they must be on average, whatever the error.
    """
    if exploded(losses):
        return False
    if exploded(than):
        return True
    difference = losses - than
    needed = max(least, STANDARD_ERRORS * difference.std().item() / len(losses) ** 0.5)
    return -difference.mean().item() > needed
