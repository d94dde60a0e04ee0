"""SampleShape: how a tensor's shape follows from the samples of a batch, learnt from batches that were seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

BATCH, TOKENS = "batch", "tokens"


class CannotCacheError(Exception):
    """What stands against keeping the outputs of a prefix, in words that say what to change."""


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of a batch.

    Attributes:
        ids: Their numbers in the data set.
        lengths: The tokens of each that are no padding; None where samples have no tokens.
        num_tokens: Tokens with padding; None likewise.
        left: Whether padding stands on the left.
    """

    ids: tuple[int, ...]
    lengths: tuple[int, ...] | None = None
    num_tokens: int | None = None
    left: bool = False

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that a dimension may have."""
        sizes = {BATCH: len(self.ids)}
        return sizes if self.num_tokens is None else sizes | {TOKENS: self.num_tokens}

    @property
    def mean_length(self) -> int | None:
        """The tokens of a sample on average, rounded up; None where samples have no tokens."""
        return None if self.lengths is None else ceil(sum(self.lengths) / max(1, len(self.lengths)))

    @property
    def may_be_padded(self) -> bool:
        """Whether there is padding, or nobody knows of any."""
        return self.lengths is None or min(self.lengths, default=0) < (self.num_tokens or 0)

    def place(self, row: int) -> slice:
        """Return where the tokens of a sample stand between their padding."""
        assert self.lengths is not None
        assert self.num_tokens is not None
        length = self.lengths[row]
        return slice(self.num_tokens - length, self.num_tokens) if self.left else slice(0, length)

    def mask(self, device: torch.device | str = "cpu") -> Tensor:
        """Return True at tokens and False at padding, shape (batch, token)."""
        assert self.lengths is not None
        assert self.num_tokens is not None
        lengths = torch.tensor(self.lengths, device=device)[:, None]
        position = torch.arange(self.num_tokens, device=device)
        return position >= self.num_tokens - lengths if self.left else position < lengths

    @classmethod
    def of_mask(cls, ids: Sequence[int], mask: Tensor | None) -> "Samples":
        """Return the samples whose tokens a mask tells.

        Args:
            ids: Their numbers.
            mask: 1 at tokens and 0 at padding, shape (batch, token); None for samples without tokens.

        Raises:
            CannotCacheError: If padding stands between tokens, or a row is no sample's.
        """
        if mask is None:
            return cls(tuple(ids))
        if len(mask) != len(ids):
            raise CannotCacheError(f"the attention_mask has not one row a sample, but {len(mask)} for {len(ids)}")
        real = mask.detach().cpu() != 0
        left = bool((~real[:, 0]).any()) if real.shape[1] else False
        found = cls(tuple(ids), tuple(real.sum(1).tolist()), real.shape[1], left)
        if not torch.equal(found.mask(), real):
            raise CannotCacheError("the attention_mask has holes, or padding on both sides, so rows cannot be cut")
        return found


class SampleShape:
    """The shape of a tensor: each dimension a number, the number of samples, or that of tokens.

    Args:
        tensor: One that was seen.
        samples: The samples that it was of.
    """

    def __init__(self, tensor: Tensor, samples: Samples) -> None:
        self.dtype, self.device = tensor.dtype, tensor.device
        self._rules = [_rules(size, samples) for size in tensor.shape]

    def see(self, tensor: Tensor, samples: Samples, what: str) -> None:
        """Learn from another one.

        Args:
            tensor: It.
            samples: Its samples.
            what: What it is, for the message.

        Raises:
            CannotCacheError: If its shape follows no rule that the others follow.
        """
        if tensor.dtype != self.dtype or tensor.ndim != len(self._rules):
            raise CannotCacheError(f"{what} has another type or number of dimensions from batch to batch")
        for dim, size in enumerate(tensor.shape):
            self._rules[dim] &= _rules(size, samples)
            if not self._rules[dim]:
                hint = (
                    "" if samples.lengths else "; give batches as a mapping with an attention_mask if they are padded"
                )
                raise CannotCacheError(f"{what} changes its shape from batch to batch, dimension {dim}{hint}")

    def size(self, samples: Samples) -> tuple[int, ...]:
        """Return the shape that it has for some samples."""
        sizes = samples.sizes
        return tuple(sizes[rule] if isinstance(rule := self._rule(dim), str) else rule for dim in range(self.ndim))

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self._rules)

    @property
    def by_sample(self) -> bool:
        """Whether the first dimension is that of the samples."""
        return self.ndim > 0 and self._rule(0) == BATCH

    @property
    def token_dims(self) -> tuple[int, ...]:
        """The dimensions that are as long as the padded tokens."""
        return tuple(dim for dim in range(1, self.ndim) if self._rule(dim) == TOKENS)

    def of_sample(self, length: int | None) -> tuple[int, ...]:
        """Return the shape of one sample's part without padding.

        Args:
            length: Its tokens.
        """
        tokens = self.token_dims
        return tuple(
            (length or 0) if dim in tokens else int(self._rule(dim)) if self._rule(dim) != BATCH else -1
            for dim in range(1, self.ndim)
        )

    def _rule(self, dim: int) -> str | int:
        rules = self._rules[dim]
        order = (BATCH, TOKENS) if dim == 0 else (TOKENS,)
        for rule in order:
            if rule in rules:
                return rule
        return next((rule for rule in rules if isinstance(rule, int)), BATCH)


def _rules(size: int, samples: Samples) -> set[str | int]:
    return {size, *(name for name, value in samples.sizes.items() if value == size)}
