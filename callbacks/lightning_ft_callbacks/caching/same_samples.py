"""Whether data give the same sample for the same number, which is what makes keeping anything of it right."""

from collections.abc import Sequence
from typing import Any
from zlib import crc32

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils._pytree import tree_leaves

from lightning_ft_callbacks.caching.identified_batches import IdentifiedBatches
from lightning_ft_callbacks.caching.sample_shapes import CannotCacheError, Samples

EVERY = 8  # samples of a batch, one of which is compared when it comes again


class SameSamples:
    """Samples that were seen, to be compared when they come again."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}

    def check(self, batch: Any, samples: Samples) -> None:
        """Compare some samples with what they were the first time, augmentation on the device included.

        Args:
            batch: The batch as the step gets it.
            samples: Its samples.

        Raises:
            CannotCacheError: If one is another, with what to change.
        """
        for row, number in enumerate(samples.ids):
            if row % EVERY == 0 or number in self._seen:
                found = _checksum(batch, samples, row)
                if self._seen.setdefault(number, found) != found:
                    raise another_sample("the data")


def check_same(loader: IdentifiedBatches, ids: Sequence[int]) -> None:
    """Read some samples twice, in another epoch too where the data set knows of epochs, and draw no random numbers.

    Args:
        loader: The loader.
        ids: The samples.

    Raises:
        CannotCacheError: If they differ, with what to change.
    """
    dataset: Any = loader.loader.dataset
    epoch = getattr(dataset, "epoch", None) if loader.views == 1 else None
    with isolate_rng():
        first = loader.read(ids)
        if isinstance(epoch, torch.Tensor):
            epoch.add_(1)
        try:
            second = loader.read(ids)
        finally:
            if isinstance(epoch, torch.Tensor):
                epoch.sub_(1)
    one, other = tree_leaves(first), tree_leaves(second)
    if len(one) != len(other) or not all(map(_equal, one, other)):
        raise another_sample(type(dataset).__name__, views=loader.views)


def another_sample(who: str, *, views: int = 1) -> CannotCacheError:
    """Return the error for data that differ from one time to the next.

    Args:
        who: Which data.
        views: The augmented views that were asked for.
    """
    if views > 1:
        return CannotCacheError(
            f"{who} gives another sample for the same number and view, although the generators of Python, NumPy and "
            f"torch are seeded for views={views}; draw from these, in the data set and not in collate_fn or in "
            "on_after_batch_transfer"
        )
    return CannotCacheError(
        f"{who} gives another sample for the same number each time; turn random augmentation off, or give views=K to "
        "keep each image in K augmented views"
    )


def _checksum(batch: Any, samples: Samples, row: int) -> int:
    """Return a checksum of a sample's part of a batch, without padding."""
    value = 0
    for leaf in tree_leaves(batch):
        if not isinstance(leaf, torch.Tensor) or leaf.ndim == 0 or len(leaf) != len(samples.ids):
            continue
        part = leaf[row]
        if samples.lengths is not None and part.ndim and len(part) == samples.num_tokens:
            part = part[samples.place(row)]
        data = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        value = crc32(data.numpy().data, value)
    return value


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return bool(one == other)
