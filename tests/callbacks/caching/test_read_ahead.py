"""ReadAhead: the next batch is read while a step is under way, and a wrong guess costs time only."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, RandomSampler, SequentialSampler

from lightning_ft_callbacks.caching.identified_batches import IdentifiedBatches
from lightning_ft_callbacks.caching.read_ahead import ReadAhead
from lightning_ft_callbacks.caching.sample_shapes import Samples, SampleShape
from lightning_ft_callbacks.caching.sample_store import SampleStore
from lightning_ft_callbacks.caching.storage import Budget, Storage


class Watched(SampleStore):
    """Notes which thread reads."""

    threads: list[str]

    def get(self, samples: Samples) -> list[Tensor]:
        self.threads.append(threading.current_thread().name)
        return super().get(samples)


def texts(lengths: Sequence[int]) -> tuple[Samples, Tensor]:
    """Return samples with as many tokens, and their states (batch, token, 2), which are the sample's number."""
    samples = Samples(tuple(range(len(lengths))), tuple(lengths), max(lengths))
    states = torch.arange(len(lengths)).float()[:, None, None].expand(-1, max(lengths), 2) * samples.mask()[..., None]
    return samples, states


def store_of(lengths: Sequence[int]) -> Watched:
    samples, states = texts(lengths)
    store = Watched(len(lengths), [SampleShape(states, samples)], Storage(Budget(2**20), Path(), lambda: None))
    store.put(samples, [states])
    store.threads = []
    return store


def of(ids: tuple[int, ...], lengths: Sequence[int], more: int = 0) -> Samples:
    own = tuple(lengths[number] for number in ids)
    return Samples(ids, own, max(own) + more)


LENGTHS = (3, 5, 2, 4)


def test_what_was_guessed_is_read_by_the_thread() -> None:
    store, ahead = store_of(LENGTHS), ReadAhead()
    ahead.begin(store, (2, 3), of((0, 1), LENGTHS))
    (found,) = ahead.get(store, of((2, 3), LENGTHS))
    assert found[:, 0, 0].tolist() == [2.0, 3.0]
    assert found.shape == (2, 4, 2)
    (thread,) = store.threads
    assert thread.startswith("prefix-cache")
    ahead.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("prefix-cache")]


@pytest.mark.parametrize("asked", [of((3, 2), LENGTHS), of((2, 3), LENGTHS, more=1), of((0,), LENGTHS)])
def test_a_wrong_guess_is_read_again(asked: Samples) -> None:
    store, ahead = store_of(LENGTHS), ReadAhead()
    ahead.begin(store, (2, 3), of((0, 1), LENGTHS))
    assert torch.equal(ahead.get(store, asked)[0], store.get(asked)[0])
    assert len(store.threads) == 3


def test_nothing_is_read_ahead_where_padding_follows_no_rule_or_a_sample_is_missing() -> None:
    store, ahead = store_of(LENGTHS), ReadAhead()
    ahead.begin(store, (2, 3), of((0, 1), LENGTHS, more=3))
    store._index[3] = 0
    ahead.begin(store, (2, 3), of((0, 1), LENGTHS))
    ahead.stop()
    assert not store.threads


def test_what_goes_wrong_in_the_thread_is_tried_again_where_it_is_asked_for() -> None:
    class Fails(Watched):
        def get(self, samples: Samples) -> list[Tensor]:
            if threading.current_thread().name.startswith("prefix-cache"):
                raise OSError("gone")
            return super().get(samples)

    store, ahead = store_of(LENGTHS), ReadAhead()
    store.__class__ = Fails
    ahead.begin(store, (2, 3), of((0, 1), LENGTHS))
    assert ahead.get(store, of((2, 3), LENGTHS))[0].shape == (2, 4, 2)


class Numbers(Dataset):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> int:
        return index


class Resumed(DistributedSampler):
    """Has eight samples of its epoch behind it, which its length does not say."""

    def __iter__(self) -> Iterator[int]:
        yield from [*super().__iter__()][8:]


class Own(RandomSampler):
    """Draws who knows what while it goes."""

    def __iter__(self) -> Iterator[int]:
        yield from super().__iter__()


DATA = Numbers()
SAMPLERS: dict[str, tuple[Any, bool]] = {
    "sequential": (SequentialSampler(DATA), True),
    "random": (RandomSampler(DATA), True),
    "a part of it": (RandomSampler(DATA, num_samples=8), True),
    "of a rank": (DistributedSampler(DATA, num_replicas=2, rank=0), True),
    "of a resumed epoch": (Resumed(DATA, num_replicas=1, rank=0), True),
    "with replacement": (RandomSampler(DATA, replacement=True), False),
    "longer than the data": (RandomSampler(DATA, num_samples=24), False),
    "somebody's own": (Own(DATA), False),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_batch_is_drawn_ahead_where_that_changes_nobodys_random_numbers(name: str) -> None:
    sampler, draws_ahead = SAMPLERS[name]
    loader = DataLoader(DATA, batch_sampler=BatchSampler(sampler, 4, drop_last=False))
    torch.manual_seed(0)
    whole = [batch.tolist() for batch in loader]
    torch.manual_seed(0)
    identified = IdentifiedBatches(loader, 0, None)
    upcoming, found = [], []
    for batch in identified:
        found.append(batch.tolist())
        upcoming.append(identified.upcoming)
    assert found == whole
    assert upcoming == ([*map(tuple, whole[1:]), None] if draws_ahead else [None] * len(whole))


def test_an_order_is_not_asked_for_more_than_its_batches() -> None:
    states = []
    for identify in (False, True):
        generator = torch.Generator().manual_seed(0)
        loader: Any = DataLoader(DATA, 4, shuffle=True, generator=generator)
        batches = iter(IdentifiedBatches(loader, 0, None) if identify else loader)
        for _ in range(3):  # Lightning does not ask for a fourth
            next(batches)
        states.append(generator.get_state())
    assert torch.equal(*states)
