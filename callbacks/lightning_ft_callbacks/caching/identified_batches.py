"""IdentifiedBatches: a fit's loaders, which tell the samples of each batch, and need not read those that are known."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import Any

from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from lightning_ft_callbacks.caching.augmented_views import AugmentedViews, samples_of, whole_data

KNOWN = "known"  # stands for the samples of a batch that need not be read, on its way through workers


class Source(ABC):
    """Gives batches that need not be read."""

    @abstractmethod
    def has(self, batches: "IdentifiedBatches", ids: tuple[int, ...]) -> bool:
        """Tell whether a loader's batch of some samples need not be read."""

    @abstractmethod
    def batch(self, batches: "IdentifiedBatches", ids: tuple[int, ...]) -> Any:
        """Return it."""


class IdentifiedLoaders(CombinedLoader):
    """Lightning's combined loader over loaders that tell their samples.

    Args:
        loaders: What ``train_dataloader`` or ``val_dataloader`` returned.
        mode: How several are combined.
        source: Gives batches that need not be read; None if all are.
        views: See IdentifiedBatches.
        epoch: See IdentifiedBatches.
    """

    def __init__(
        self,
        loaders: Any,
        mode: Any,
        source: Source | None,
        views: int = 1,
        epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        super().__init__(loaders, mode)
        self._source = source
        self._views = views
        self._epoch = epoch
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
            known = loader, IdentifiedBatches(loader, number, self._source, self._views, self._epoch)
            self._identified[number] = known
        return known[1]


class IdentifiedBatches:
    """A DataLoader's batches in its own order, from its own sampler and generator.

    Args:
        loader: The loader.
        number: Its number among the loaders.
        source: Gives batches that need not be read; None if all are.
        views: Epochs after which a random augmentation begins anew; 1 for data without one.
        epoch: Returns the epoch that a data set is in which does not know of epochs.

    Attributes:
        loader: The loader.
        number: Its number among the loaders.
        view: The view that the data set gives now.
        handed_out: Of the batches that nobody has asked for yet, the samples, and whether they were not read.
    """

    def __init__(
        self,
        loader: DataLoader,
        number: int,
        source: Source | None,
        views: int = 1,
        epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        self.loader = loader
        self.number = number
        self.views = views
        self.view = 0
        self.handed_out: deque[tuple[tuple[int, ...], bool]] = deque()
        self._source = source
        self._epoch = epoch
        self._augmented = AugmentedViews(loader.dataset) if views > 1 else None
        self._drawn: deque[tuple[int, ...]] = deque()
        self._twin = copy(loader)
        self._tells_view = source is not None or views > 1
        own = vars(self._twin)
        own["batch_sampler"] = _Drawing(loader.batch_sampler, self._drawn, self, source)
        own["_iterator"] = None
        if self._tells_view:
            own["dataset"] = _PassingData(loader.dataset, self._augmented)
            own["collate_fn"] = _PassingCollate(loader.collate_fn)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        """Begin an epoch, as a DataLoader does: at once, because that draws random numbers."""
        self.handed_out.clear()
        self._drawn.clear()
        self._follow_epoch()
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
        return self.loader.collate_fn(samples_of(self._augmented or self.loader.dataset, list(ids)))

    def read_whole(self, numbers: Sequence[int]) -> Any:
        """Return a batch of samples of the whole data set, of which the loader's may be a subset.

        Args:
            numbers: The number of each sample, plus its view times the samples of the whole.
        """
        if self._augmented is not None:
            return self.loader.collate_fn(self._augmented.read_whole(numbers))
        return self.loader.collate_fn(samples_of(whole_data(self.loader.dataset)[0], list(numbers)))

    def _follow_epoch(self) -> None:
        """Have the data set give the view of the epoch."""
        if self._augmented is not None:
            own = self._augmented.epoch
            self.view = (self._epoch() if own is None else int(own)) % self.views
            self._augmented.view.fill_(self.view)

    def _batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        self._follow_epoch()  # a resumed fit learns its epoch after the iterator was made, when workers read already
        for found in batches:
            ids = self._drawn.popleft()
            view, batch = found if self._tells_view else (self.view, found)
            known = self._source is not None and isinstance(batch, str) and batch == KNOWN
            if known and self._source and self._source.has(self, ids):
                batch = self._source.batch(self, ids)
            elif known or view != self.view:  # what was kept when the batch was drawn is gone, or it is another view
                batch, known = self.read(ids), False
            if batch is not None:  # which Lightning passes over
                self.handed_out.append((ids, known))
            yield batch


class _Drawing:
    """A batch sampler that notes what it draws, and passes on what is to be read."""

    def __init__(self, sampler: Any, drawn: deque[tuple[int, ...]], batches: Any, source: Source | None) -> None:
        self._sampler = sampler
        self._drawn = drawn
        self._batches = batches
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
            self._drawn.append(_numbers(drawn))
            yield drawn

    def _passed_on(self, drawn: Any) -> Any:
        ids = _numbers(drawn)
        return KNOWN if self._source is not None and self._source.has(self._batches, ids) else drawn


def _numbers(drawn: Any) -> tuple[int, ...]:
    """Return the numbers of a batch's samples, as a sampler draws them."""
    try:
        return tuple(int(number) for number in drawn)
    except (TypeError, ValueError):
        raise ValueError(
            f"FrozenPrefixCache: the sampler draws {drawn!r}, which are no numbers of samples; let it draw numbers"
        ) from None


class _PassingData:
    """A data set that passes on what need not be read, and tells the view of what it reads."""

    def __init__(self, dataset: Any, augmented: AugmentedViews | None) -> None:
        self._dataset = dataset
        self._augmented = augmented

    def __len__(self) -> int:
        return len(self._dataset)

    def __getattr__(self, name: str) -> Any:
        """Return what a worker's ``worker_init_fn`` looks for in its data set."""
        if name.startswith("__") or name == "_dataset":  # while it is unpickled in a worker
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __getitems__(self, ids: Any) -> tuple[int, Any]:
        view = 0 if self._augmented is None else int(self._augmented.view)
        return view, KNOWN if ids == KNOWN else samples_of(self._augmented or self._dataset, ids)


class _PassingCollate:
    """A collate function that passes on what was not read."""

    def __init__(self, collate: Any) -> None:
        self._collate = collate

    def __call__(self, read: tuple[int, Any]) -> tuple[int, Any]:
        view, samples = read
        return view, samples if isinstance(samples, str) else self._collate(samples)


def _draws_at_once(sampler: Any) -> bool:
    """Tell whether an epoch's order is drawn at its start, so that a batch ahead changes nobody's random numbers."""
    if type(sampler) is not BatchSampler:
        return False
    order = sampler.sampler
    if type(order) is RandomSampler:
        return not order.replacement and order.num_samples <= len(order.data_source)
    return isinstance(order, DistributedSampler) or type(order) is SequentialSampler


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
    if hasattr(loader, "state_dict"):
        return (
            f"{type(loader).__name__} keeps its own place in an epoch for a checkpoint, which it would lose; give a "
            "DataLoader"
        )
    return None
