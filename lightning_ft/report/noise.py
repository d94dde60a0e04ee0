"""How much a score would change with other rows: its standard error."""

from math import sqrt

import torch
from torch import Tensor

SHARES = ("accuracy", "f1", "precision", "recall")
NUM_DRAWS = 200


def share_error(share: float, number: float) -> float:
    """Return the standard error of a share among independent rows.

    Two successes and two failures are added, so that a perfect score of few rows is not free of noise (Agresti and
    Coull 1998, https://doi.org/10.1080/00031305.1998.10480550).

    Args:
        share: The share, from 0 to 1.
        number: The rows.
    """
    adjusted = (share * number + 2) / (number + 4)
    return sqrt(adjusted * (1 - adjusted) / (number + 4))


def mean_error(values: Tensor) -> float:
    """Return the standard error of the mean of values, shape (row,)."""
    return (values.std() / sqrt(len(values))).item() if len(values) > 1 else float("nan")


def r2_error(predicted: Tensor, true: Tensor) -> float:
    """Return the standard error of the coefficient of determination, by a bootstrap of the rows.

    Args:
        predicted: Predicted numbers, shape (row,).
        true: True ones, shape (row,).
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(true), (NUM_DRAWS, len(true)), generator=generator)
    left = (predicted[rows] - true[rows]).square().sum(1)
    total = (true[rows] - true[rows].mean(1, keepdim=True)).square().sum(1)
    return (1 - left[total > 0] / total[total > 0]).std().item()
