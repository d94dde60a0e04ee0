"""Some samples of a batch, as another batch has them: with other neighbours and other padding."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_ft_callbacks.caching.sample_shapes import Samples, SampleShape
from lightning_ft_callbacks.caching.trees import map_leaves


def another_batch(batch: Any, samples: Samples) -> tuple[Any, Samples]:
    """Return some of a batch's samples as a batch with other neighbours and another amount of padding.

    Texts that are shorter than the longest are padded less; where all are of one length, more.

    Args:
        batch: The batch.
        samples: Its samples.
    """
    count, tokens, lengths = len(samples.ids), samples.num_tokens, samples.lengths
    rows = list(range(count))
    wanted = tokens
    if tokens is not None and lengths is not None:
        rows = [row for row in rows if lengths[row] < tokens] or rows
        longest = max(lengths[row] for row in rows)
        wanted = longest if longest < tokens else tokens + 1
    if len(rows) == count > 1:
        rows = rows[:-1]

    def recompose(part: Any) -> Any:
        if not _has_rows(part, count):
            return part
        part = part[rows]
        if tokens is None or wanted is None or part.ndim < 2 or part.shape[1] != tokens:
            return part
        if wanted < tokens:
            return part[:, tokens - wanted :] if samples.left else part[:, :wanted]
        more = torch.zeros_like(part[:, :1])
        return torch.cat([more, part] if samples.left else [part, more], 1)

    return map_leaves(recompose, batch), _rows_of(samples, rows, wanted)


def other_neighbours(batch: Any, samples: Samples) -> tuple[Any, Samples]:
    """Return as many samples of a batch in other rows, one of them twice and one not at all.

    Args:
        batch: The batch.
        samples: Its samples.
    """
    count = len(samples.ids)
    rows = [*range(1, count), min(1, count - 1)]

    recomposed = map_leaves(lambda part: part[rows] if _has_rows(part, count) else part, batch)
    return recomposed, _rows_of(samples, rows, samples.num_tokens)


def _has_rows(part: Any, count: int) -> bool:
    return isinstance(part, Tensor) and part.ndim > 0 and len(part) == count


def _rows_of(samples: Samples, rows: Sequence[int], num_tokens: int | None) -> Samples:
    return replace(
        samples,
        ids=tuple(samples.ids[row] for row in rows),
        lengths=samples.lengths and tuple(samples.lengths[row] for row in rows),
        num_tokens=num_tokens,
    )


def without_padding(tensor: Tensor, shape: SampleShape, samples: Samples) -> Tensor:
    """Return a copy with zeros at padding.

    Args:
        tensor: One row for each sample.
        shape: Its shape, which tells what is padding.
        samples: The samples.
    """
    tensor = tensor.clone()
    for dim in shape.token_dims:
        padding = ~samples.mask(tensor.device)
        size = [len(padding), *(padding.shape[1] if other == dim else 1 for other in range(1, tensor.ndim))]
        tensor.masked_fill_(padding.view(size), 0)
    return tensor
