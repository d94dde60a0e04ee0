"""What counts as the same value: made twice of the same, or computed twice in one precision."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_ft_callbacks.caching.sample_shapes import CannotCacheError
from lightning_ft_callbacks.caching.trees import leaves_of

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
COARSE = 2e-2  # of bf16 and fp16


def tolerance_of(found: Sequence[Any], dtype: torch.dtype | None = None) -> float:
    """Return the relative tolerance of the coarsest type among some tensors.

    Args:
        found: The tensors; what else there is does not matter.
        dtype: One more type; None for no other.
    """
    kinds = {leaf.dtype for leaf in found if isinstance(leaf, Tensor) and leaf.is_floating_point()}
    if dtype is not None:
        kinds.add(dtype)
    return max((TOLERANCE.get(kind, COARSE) for kind in kinds), default=0.0)


def close(one: Any, other: Any, tolerance: float) -> bool:
    """Tell whether all numbers of two structures are the same.

    Args:
        one: Tensors in any structure.
        other: The same.
        tolerance: The relative tolerance, of the largest number of a tensor for those near 0.
    """
    left, right = leaves_of(one), leaves_of(other)
    return len(left) == len(right) and all(_close_leaf(a, b, tolerance) for a, b in zip(left, right, strict=True))


def _close_leaf(one: Any, other: Any, tolerance: float) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return True
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    one, other = one.detach().double(), other.detach().double()
    finite = one.isfinite()
    if not finite.equal(other.isfinite()) or not one[~finite].nan_to_num().equal(other[~finite].nan_to_num()):
        return False
    one, other = one[finite], other[finite]
    scale = one.abs().amax().item() if one.numel() else 0.0
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance * (scale or 1))


def equal(one: Any, other: Any) -> bool:
    """Tell whether two structures are the same; what is not a number is the same as itself.

    Args:
        one: Tensors, arrays and anything else, in any structure.
        other: The same.

    Raises:
        CannotCacheError: If nobody can tell.
    """
    left, right = leaves_of(one), leaves_of(other)
    return len(left) == len(right) and all(map(_equal_leaf, left, right))


def _equal_leaf(one: Any, other: Any) -> bool:
    if hasattr(one, "__array__") and hasattr(other, "__array__"):
        if isinstance(one, Tensor) != isinstance(other, Tensor) or one.shape != other.shape or one.dtype != other.dtype:
            return False
        return bool(((one == other) | ((one != one) & (other != other))).all())
    if type(one) is type(other) and hasattr(one, "__dict__"):
        return equal(vars(one), vars(other))
    try:
        return bool(one == other) or bool(one != one and other != other)
    except (RuntimeError, TypeError, ValueError):
        raise CannotCacheError(
            f"a batch holds a {type(one).__name__}, which cannot be compared with itself; give tensors, in a mapping "
            "or a sequence"
        ) from None
