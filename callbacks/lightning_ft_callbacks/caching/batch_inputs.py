"""BatchInputs: what a step reads of a batch beside the frozen prefix, kept so that batches can be made without data."""

from collections.abc import Callable, Collection, Iterator, Mapping
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_ft_callbacks.caching.postponed import Postponed, Promise
from lightning_ft_callbacks.caching.same_samples import SameSamples
from lightning_ft_callbacks.caching.sample_shapes import CannotCacheError, Samples, SampleShape
from lightning_ft_callbacks.caching.sample_store import SampleStore
from lightning_ft_callbacks.caching.storage import Storage

MASK = "attention_mask"


class BatchInputs:
    """Makes batches of samples that were seen before: labels and masks as they were, the rest read if somebody asks.

    Args:
        batch: A batch, a mapping of names to tensors.
        samples: Its samples.
        unread: Names of what only the prefix reads.
        num_samples: Samples of the data set.
        storage: Where the rest is kept.
        index: A file for the index, shared by processes; None for memory.

    Attributes:
        store: Where they are.

    Raises:
        CannotCacheError: If a batch is something else.
    """

    def __init__(
        self,
        batch: Any,
        samples: Samples,
        unread: Collection[str],
        num_samples: int,
        storage: Storage,
        index: Path | None = None,
    ) -> None:
        if not isinstance(batch, Mapping) or not all(isinstance(value, Tensor) for value in batch.values()):
            raise CannotCacheError("a batch is no mapping of names to tensors")
        self._order = list(batch)
        self._empty: Any = copy(batch)
        self._empty.clear()
        self._unread = {name: SampleShape(batch[name], samples) for name in batch if name in unread}
        self._mask = batch[MASK].dtype if MASK in batch else None
        self._names = [name for name in batch if name not in unread and name != MASK]
        self._shapes = [SampleShape(batch[name], samples) for name in self._names]
        self._padding: dict[str, float | None] = dict.fromkeys(self._names)
        self.store = SampleStore(num_samples, self._shapes, storage, index=index)
        self._left = samples.left

    def see(self, batch: Mapping[str, Tensor], samples: Samples) -> None:
        """Learn the shapes and the padding from another batch.

        Raises:
            CannotCacheError: If they follow no rule.
        """
        if list(batch) != self._order:
            raise CannotCacheError("batches have other parts from batch to batch")
        self._left = self._left or samples.left
        for name, shape in [*self._unread.items(), *zip(self._names, self._shapes, strict=True)]:
            shape.see(batch[name], samples, f"{name!r} of the batch")
        for name, shape in zip(self._names, self._shapes, strict=True):
            if shape.token_dims and samples.lengths and samples.may_be_padded:
                padding = batch[name][~samples.mask(batch[name].device)].unique()
                known = self._padding[name]
                if len(padding) != 1 or known not in (None, padding.item()):
                    raise CannotCacheError(f"{name!r} of the batch is padded with several values")
                self._padding[name] = padding.item()

    def check(self, batch: Mapping[str, Tensor], samples: Samples, same: SameSamples) -> None:
        """Compare what is kept with what a batch that was read has.

        Raises:
            CannotCacheError: If a sample is another, with what to change.
        """
        for name, shape in zip(self._names, self._shapes, strict=True):
            same.check(name, batch[name], shape, samples)

    def taken(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a batch as it is now, whatever a step does with it."""
        return {name: part.clone() if name in self._names else part for name, part in batch.items()}

    def put(self, batch: Mapping[str, Tensor], samples: Samples) -> None:
        """Keep the samples of a batch.

        Raises:
            StorageFullError: If there is no room.
        """
        self.store.put(samples, [batch[name] for name in self._names])

    def has(self, ids: tuple[int, ...]) -> bool:
        """Tell whether a batch of some samples can be made."""
        if not self.store.holds(ids):
            return False
        unknown = any(
            shape.token_dims and self._padding[name] is None
            for name, shape in zip(self._names, self._shapes, strict=True)
        )
        return not unknown or len(set(self.store.lengths(ids))) == 1

    def samples(self, ids: tuple[int, ...]) -> Samples:
        """Return the samples of a batch that can be made."""
        if self._mask is None:
            return Samples(ids)
        lengths = self.store.lengths(ids)
        return Samples(ids, lengths, max(lengths), self._left)

    def batch(self, ids: tuple[int, ...], read: Callable[[], Mapping[str, Tensor]]) -> Any:
        """Return a batch, on the CPU but for what is not read yet.

        Args:
            ids: Its samples.
            read: Reads it after all.
        """
        samples = self.samples(ids)
        parts = dict(zip(self._names, self.store.get(samples), strict=True))
        for name, shape in zip(self._names, self._shapes, strict=True):
            if shape.token_dims and (padding := self._padding[name]):
                parts[name][~samples.mask()] = padding
        if self._mask is not None:
            parts[MASK] = samples.mask().to(self._mask)
        return self._made(parts | self._later(samples, read))

    def blanked(self, batch: Mapping[str, Tensor], samples: Samples) -> Any:
        """Return a batch in which what goes unread is not read yet."""
        return self._made({**batch, **self._later(samples, lambda: batch)})

    def _made(self, parts: Mapping[str, Tensor]) -> Any:
        made = copy(self._empty)
        made.update({name: parts[name] for name in self._order})
        return made

    def _later(self, samples: Samples, read: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return what goes unread, to be read once if somebody asks for any of it."""

        def compute() -> list[Tensor]:
            batch = read()
            return [_fitted(batch[name], shape, samples) for name, shape in self._unread.items()]

        promise = Promise(compute)
        return {
            name: Postponed(
                torch.empty(shape.size(samples), dtype=shape.dtype, device="meta"), shape.device, promise, number
            )
            for number, (name, shape) in enumerate(self._unread.items())
        }


def _fitted(tensor: Tensor, shape: SampleShape, samples: Samples) -> Tensor:
    """Return what was read where a batch has it: without padding that no sample needs."""
    for dim in shape.token_dims:
        tokens = samples.num_tokens or 0
        tensor = tensor.narrow(dim, tensor.shape[dim] - tokens if samples.left else 0, tokens)
    return tensor.to(shape.device, shape.dtype).contiguous()


def mask_of(batch: Any) -> Tensor | None:
    """Return a batch's ``attention_mask``, shape (batch, token), from the mapping that it is or holds; else None.

    Raises:
        CannotCacheError: If there are several that say different things, so that samples have several lengths.
    """
    masks = list(_masks(batch))
    if any(not masks[0].equal(mask) for mask in masks[1:]):
        raise CannotCacheError(
            "a batch has several attention masks that differ, so a sample has several lengths; give its texts in one"
        )
    return masks[0] if masks else None


def _masks(batch: Any) -> Iterator[Tensor]:
    """Yield the masks of a batch, and of the parts that it holds; of ``attention_mask_b`` and the like too."""
    if isinstance(batch, Mapping):
        masks = {name: part for name, part in batch.items() if isinstance(part, Tensor) and part.ndim == 2}
        yield from (masks[name] for name in masks if name == MASK)
        if MASK in masks:
            yield from (masks[name] for name in masks if str(name).startswith(f"{MASK}_"))
        batch = list(batch.values())
    if isinstance(batch, list | tuple):
        for part in batch:
            yield from _masks(part)
