"""How far an export's outputs are from those of the model that it is of."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_ft.export.rows import Batch
from lightning_ft.module import FineTuner

# of the largest output, or of 1 where all are smaller
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}


class NotEqualError(ValueError):
    """An export that would not be the model that was trained."""


@torch.no_grad()
def outputs(model: FineTuner, batches: Sequence[Batch]) -> list[Tensor]:
    """Return a model's predictions of batches, as the head gives them."""
    return [model(batch).float() for batch in batches]


@torch.no_grad()
def difference(predict: Callable[[Batch], Tensor], batches: Sequence[Batch], wanted: Sequence[Tensor]) -> float:
    """Return the largest difference of an export's outputs, as a share of the largest output, or of 1 if that is less.

    Of a token that is padding nothing is asked.

    Args:
        predict: The export.
        batches: What it is given.
        wanted: What it should return, for each batch.
    """
    largest = 0.0
    for batch, ours in zip(batches, wanted, strict=True):
        theirs = predict(batch).float()
        if theirs.shape != ours.shape:
            return float("inf")
        apart = torch.where(theirs == ours, torch.zeros_like(ours), (theirs - ours).abs())
        scale = ours[ours.isfinite()].abs().max().item() if ours.isfinite().any() else 1.0
        mask = batch.get("attention_mask")
        if mask is not None and ours.ndim == 3:
            apart = apart[mask.bool()]
        found = apart.max().item()
        if found != found:  # NaN
            return float("inf")
        largest = max(largest, found / max(1.0, scale))
    return largest


def check_equal(
    predict: Callable[[Batch], Tensor],
    batches: Sequence[Batch],
    wanted: Sequence[Tensor],
    *,
    tolerance: float,
    what: str,
) -> float:
    """Return the largest difference of an export's outputs.

    Args:
        predict: The export.
        batches: What it is given.
        wanted: What it should return, for each batch.
        tolerance: The largest difference that is none.
        what: The export, for the message.

    Raises:
        NotEqualError: If they differ by more, with the difference.
    """
    found = difference(predict, batches, wanted)
    if not found <= tolerance:
        rows = sum(len(ours) for ours in wanted)
        raise NotEqualError(
            f"{what} differs from the run's model by {found:.2g} on {rows} real rows, and at most {tolerance:.0e} is "
            "allowed; nothing was kept"
        )
    return found
