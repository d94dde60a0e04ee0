"""Calibration: whether a classifier is right as often as it is sure (Guo et al. 2017, arXiv:1706.04599)."""

from dataclasses import dataclass
from math import exp, pi, sqrt

import torch
from torch import Tensor
from torch.nn import functional

NUM_BINS = 15
NUM_HALVINGS = 60
# what a temperature is looked for between, in its logarithm
COLDEST, HOTTEST = -3.0, 3.0


@dataclass(frozen=True, slots=True)
class Bin:
    """Predictions of about the same confidence.

    Attributes:
        number: How many there are.
        confidence: Their mean confidence.
        accuracy: The share of them that is right.
    """

    number: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How sure a classifier is, beside how often it is right.

    Attributes:
        bins: The bins that hold predictions, of rising confidence.
        error: The expected calibration error.
        chance: What that error would be on average if each bin were right as often as it is sure: few rows are never
            calibrated exactly.
        temperature: What the logits are to be divided by, by the loss on these rows.
        loss: The mean loss now [nat].
        cooled_loss: That with the temperature [nat].
    """

    bins: list[Bin]
    error: float
    chance: float
    temperature: float
    loss: float
    cooled_loss: float

    @classmethod
    def of(cls, logits: Tensor, targets: Tensor) -> "Calibration":
        """Measure it.

        Args:
            logits: Shape (row, class).
            targets: Classes, shape (row,).
        """
        confidence, predicted = logits.softmax(-1).max(-1)
        bins = reliability(confidence, predicted == targets)
        factor = temperature(logits, targets)
        return cls(
            bins,
            calibration_error(bins),
            chance_error(bins),
            factor,
            functional.cross_entropy(logits, targets).item(),
            functional.cross_entropy(logits / factor, targets).item(),
        )


def reliability(confidence: Tensor, right: Tensor, num_bins: int = NUM_BINS) -> list[Bin]:
    """Return the bins of equal width that hold predictions.

    Args:
        confidence: Probability of the predicted class, shape (row,).
        right: Whether it is the true one, shape (row,).
        num_bins: Bins from 0 to 1.
    """
    place = (confidence * num_bins).long().clamp(max=num_bins - 1)
    found = []
    for number in range(num_bins):
        inside = place == number
        if inside.any():
            sure, share = confidence[inside].mean().item(), right[inside].float().mean().item()
            found.append(Bin(int(inside.sum()), sure, share))
    return found


def calibration_error(bins: list[Bin]) -> float:
    """Return the expected calibration error: the mean distance of confidence and accuracy over predictions."""
    total = sum(one.number for one in bins)
    return sum(one.number * abs(one.confidence - one.accuracy) for one in bins) / total


def chance_error(bins: list[Bin]) -> float:
    """Return that error on average of a calibrated classifier with so many predictions: that of normal noise."""
    total = sum(one.number for one in bins)
    spreads = (one.number * sqrt(one.confidence * (1 - one.confidence) / one.number) for one in bins)
    return sqrt(2 / pi) * sum(spreads) / total


def temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the number that logits are to be divided by for the lowest loss, between e^-3 and e^3.

    The loss is convex in its inverse, so its slope tells which half holds the lowest.

    Args:
        logits: Shape (row, class).
        targets: Classes, shape (row,).
    """
    low, high = exp(-HOTTEST), exp(-COLDEST)
    logits = logits.double()
    own = logits.gather(1, targets[:, None]).squeeze(1)
    for _ in range(NUM_HALVINGS):
        middle = sqrt(low * high)
        slope = ((logits * middle).softmax(-1) * logits).sum(-1).mean() - own.mean()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return float(torch.tensor(1 / sqrt(low * high)))
