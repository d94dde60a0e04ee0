"""Whether data give the same sample for the same number, which is what makes keeping anything of it right."""

from collections.abc import Hashable, Sequence
from typing import Any
from zlib import crc32

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_ft_callbacks.caching.closeness import equal
from lightning_ft_callbacks.caching.identified_batches import IdentifiedBatches
from lightning_ft_callbacks.caching.sample_shapes import CannotCacheError, Samples, SampleShape

EVERY = 8  # samples of a batch, one of which is compared whole when it comes again
FEW = 256  # numbers of each other one, spread over it
FEW_OF_TOKEN = 16


class SameSamples:
    """Samples that were seen, to be compared when they come again."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, dict[int, int]] = {}

    def check(self, what: Hashable, tensor: Tensor, shape: SampleShape, samples: Samples) -> None:
        """Compare samples with what they were the first time: some numbers of each, and all of every eighth.

        Args:
            what: Which tensor it is.
            tensor: One row for each sample.
            shape: Its shape, which tells what is padding.
            samples: The samples.

        Raises:
            CannotCacheError: If one is another, with what to change, or their shape follows no rule.
        """
        shape.see(tensor, samples, "what the frozen blocks read")
        if shape.token_dims not in ((), (1,)):
            return  # a mask of pairs of tokens, which follows from the samples' lengths
        rows = tensor.detach().reshape(len(tensor), tensor.shape[1] if shape.token_dims else 1, -1)
        few = rows[:, :, _spread(rows.shape[2], FEW_OF_TOKEN if shape.token_dims else FEW)]
        for part, numbers in (("few", slice(None)), ("whole", slice(None, None, EVERY))):
            seen = self._seen.setdefault((what, part), {})
            here = (few if part == "few" else rows[numbers]).cpu().contiguous().view(torch.uint8).numpy()
            for row, data in zip(range(len(rows))[numbers], here, strict=True):
                found = crc32(data[samples.place(row)].tobytes() if shape.token_dims else data.data)
                if seen.setdefault(samples.ids[row], found) != found:
                    raise another_sample("the data or what the step makes of it")


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
        if isinstance(epoch, Tensor):
            epoch.add_(1)
        try:
            second = loader.read(ids)
        finally:
            if isinstance(epoch, Tensor):
                epoch.sub_(1)
    if not equal(first, second):
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


def _spread(size: int, num_positions: int) -> Tensor | slice:
    """Return positions that are spread over a size; all if these are few."""
    return slice(None) if size <= num_positions else torch.linspace(0, size - 1, num_positions).long()
