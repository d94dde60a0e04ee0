"""IdentifiedBatches: a fit's loaders, which tell the samples of each batch, and need not read those that are known."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any

import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)

KNOWN = "known"  # stands for the samples of a batch that need not be read, on its way through workers


class Source(ABC):
    """Gives batches that need not be read."""

    @abstractmethod
    def has(self, loader: int, ids: tuple[int, ...]) -> bool:
        """Tell whether a loader's batch of some samples need not be read."""

    @abstractmethod
    def batch(self, loader: int, ids: tuple[int, ...]) -> Any:
        """Return it."""


class IdentifiedLoaders(CombinedLoader):
    """Lightning's combined loader over loaders that tell their samples.

    Args:
        loaders: What ``train_dataloader`` or ``val_dataloader`` returned.
        mode: How several are combined.
        source: Gives batches that need not be read; None if all are.
        views: See IdentifiedBatches.
    """

    def __init__(self, loaders: Any, mode: Any, source: Source | None, views: int = 1) -> None:
        super().__init__(loaders, mode)
        self._source = source
        self._views = views
        self._identified: dict[int, tuple[Any, IdentifiedBatches]] = {}

    def __iter__(self) -> Any:
        """Begin an epoch."""
        found = self._flattened
        identified = [self.identified(number) for number in range(len(found))]
        self._flattened = [loader if known is None else known for known, loader in zip(identified, found, strict=True)]
        try:
            return super().__iter__()
        finally:
            self._flattened = found

    def reset(self) -> None:
        """Let go of the iterators, and of workers that would wait for the next epoch."""
        super().reset()
        for _, batches in self._identified.values():
            batches.reset()

    def identified(self, number: int) -> "IdentifiedBatches | None":
        """Return a loader that tells its samples; None where it cannot."""
        loader: Any = self._flattened[number]
        known = self._identified.get(number)
        if known is None or known[0] is not loader:
            if why_not_identified(loader) is not None:
                return None
            known = loader, IdentifiedBatches(loader, number, self._source, self._views)
            self._identified[number] = known
        return known[1]


class IdentifiedBatches:
    """A DataLoader's batches in its own order, from its own sampler and generator.

    Args:
        loader: The loader.
        number: Its number among the loaders.
        source: Gives batches that need not be read; None if all are.
        views: Epochs after which a data set that augments by its ``epoch``, a tensor, begins anew.

    Attributes:
        loader: The loader.
        view: The epoch that the data set augments by now.
        handed_out: Of the batches that nobody has asked for yet, the samples, and whether they were not read.
    """

    def __init__(self, loader: DataLoader, number: int, source: Source | None, views: int = 1) -> None:
        dataset: Any = loader.dataset
        self.loader = loader
        self.views = views
        self.view = 0
        if views > 1:
            if not isinstance(getattr(dataset, "epoch", None), Tensor):
                raise ValueError(
                    f"views={views} needs a data set whose samples follow from its epoch, a tensor; "
                    f"{type(dataset).__name__} has none"
                )
            self._epoch = dataset.epoch
            dataset.epoch = torch.zeros_like(self._epoch).share_memory_()
        self.handed_out: deque[tuple[tuple[int, ...], bool]] = deque()
        self._number = number
        self._source = source
        self._drawn: deque[tuple[int, ...]] = deque()
        self._twin = copy(loader)
        own = vars(self._twin)
        own["batch_sampler"] = _Drawing(loader.batch_sampler, self._drawn, number, source)
        own["_iterator"] = None
        if source is not None:
            own["dataset"] = _PassingData(loader.dataset)
            own["collate_fn"] = _PassingCollate(loader.collate_fn)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        """Begin an epoch, as a DataLoader does: at once, because that draws random numbers."""
        self.handed_out.clear()
        self._drawn.clear()
        if self.views > 1:
            self.view = int(self._epoch) % self.views
            self.loader.dataset.epoch.fill_(self.view)  # type: ignore[attr-defined]
        return self._batches(iter(self._twin))

    def reset(self) -> None:
        """Let go of workers that would wait for the next epoch."""
        vars(self._twin)["_iterator"] = None

    @property
    def upcoming(self) -> tuple[int, ...] | None:
        """The samples of the batch after the last one that was asked for; None where they are not drawn yet."""
        return self._drawn[0] if self._drawn else None

    def read(self, ids: Sequence[int]) -> Any:
        """Return a batch of some samples, read and collated in this process."""
        return self.loader.collate_fn(_samples(self.loader.dataset, list(ids)))

    def _batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            ids = self._drawn.popleft()
            known = self._source is not None and isinstance(batch, str) and batch == KNOWN
            self.handed_out.append((ids, known))
            yield self._source.batch(self._number, ids) if known and self._source else batch


class _Drawing:
    """A batch sampler that notes what it draws, and passes on what is to be read."""

    def __init__(self, sampler: Any, drawn: deque[tuple[int, ...]], number: int, source: Source | None) -> None:
        self._sampler = sampler
        self._drawn = drawn
        self._number = number
        self._source = source

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Any]:
        ahead: deque[Any] = deque()
        # no batch after the last is asked for, because an order that ends may draw the next one from its generator
        last, num_ahead = (len(self._sampler), 1) if _draws_at_once(self._sampler) else (0, 0)
        for drawn, batch in enumerate(self._noted(), 1):
            ahead.append(batch)
            while len(ahead) > (num_ahead if drawn < last else 0):
                yield self._passed_on(ahead.popleft())
        while ahead:  # a resumed epoch ends before its length says
            yield self._passed_on(ahead.popleft())

    def _noted(self) -> Iterator[Any]:
        for drawn in self._sampler:
            self._drawn.append(tuple(int(number) for number in drawn))
            yield drawn

    def _passed_on(self, drawn: Any) -> Any:
        ids = tuple(int(number) for number in drawn)
        return KNOWN if self._source is not None and self._source.has(self._number, ids) else drawn


class _PassingData:
    """A data set that passes on what need not be read."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, ids: Any) -> Any:
        return KNOWN if ids == KNOWN else _samples(self._dataset, ids)


class _PassingCollate:
    """A collate function that passes on what was not read."""

    def __init__(self, collate: Any) -> None:
        self._collate = collate

    def __call__(self, samples: Any) -> Any:
        return samples if isinstance(samples, str) else self._collate(samples)


def _draws_at_once(sampler: Any) -> bool:
    """Tell whether an epoch's order is drawn at its start, so that a batch ahead changes nobody's random numbers."""
    if type(sampler) is not BatchSampler:
        return False
    order = sampler.sampler
    if type(order) is RandomSampler:
        return not order.replacement and order.num_samples <= len(order.data_source)
    return isinstance(order, DistributedSampler) or type(order) is SequentialSampler


def whole_data(dataset: Any) -> tuple[Any, list[int] | None]:
    """Return the data set that torch's ``Subset`` takes its samples from, and their numbers in it.

    Args:
        dataset: A data set, a subset of one, or a subset of a subset.

    Returns:
        The data set, and the numbers; None for them where the data set is no subset.
    """
    numbers: list[int] | None = None
    while type(dataset) is Subset:  # one of another kind may change its samples
        own = [int(number) for number in dataset.indices]
        numbers = own if numbers is None else [own[number] for number in numbers]
        dataset = dataset.dataset
    return dataset, numbers


def why_not_identified(loader: Any) -> str | None:
    """Return why a loader's samples have no numbers; None where they have."""
    if not isinstance(loader, DataLoader):
        return f"the data is a {type(loader).__name__}, whose samples have no numbers; give a DataLoader"
    if isinstance(loader.dataset, IterableDataset):
        return f"{type(loader.dataset).__name__} is iterable, so its samples have no numbers; give a data set with them"
    if loader.batch_sampler is None:
        return "the DataLoader has batch_size=None, so nobody knows its samples; let it make the batches"
    if not getattr(loader, "in_order", True):
        return "the DataLoader has in_order=False, so its batches cannot be told apart"
    return None


def _samples(dataset: Any, ids: Sequence[int]) -> Any:
    return dataset.__getitems__(ids) if hasattr(dataset, "__getitems__") else [dataset[number] for number in ids]
