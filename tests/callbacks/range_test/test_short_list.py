"""The short list: neighbours of a suggested rate are tried, and what is clearly better is chosen."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_ft_callbacks import LRCurve
from lightning_ft_callbacks.range_test.short_list import NUM_SCORED, chosen, clearly_lower, course, scores, walk

NOISE = torch.randn(NUM_SCORED, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def bowl(best: float) -> Callable[[float], Tensor]:
    """Return losses that grow with a rate's distance from the best, where batches differ more than rates do."""
    return lambda lr: 5.0 * NOISE + torch.tensor(lr / best).log().abs().double()


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (1e-3, ["1.0e-03", "3.0e-03", "3.3e-04"]),
        (3e-3, ["1.0e-03", "3.0e-03", "9.0e-03"]),
        (1.0, ["1.0e-03", "3.0e-03", "9.0e-03"]),
        (3e-4, ["1.0e-03", "3.0e-03", "3.3e-04", "1.1e-04"]),
        (1e-7, ["1.0e-03", "3.0e-03", "3.3e-04", "1.1e-04"]),
    ],
)
def test_walks_by_threes_towards_the_best_two_moves_at_most(best: float, tried: list[str]) -> None:
    trials = walk(1e-3, bowl(best), (1e-7, 1.0))
    assert [f"{lr:.1e}" for lr in trials] == tried
    near = min(trials, key=lambda lr: abs(torch.tensor(lr / best).log()))
    assert chosen(trials) == near


def test_tries_no_rate_outside_the_test() -> None:
    assert list(walk(1e-3, bowl(1.0), (5e-4, 2e-3))) == [1e-3]


def test_keeps_the_suggestion_where_the_others_are_lower_by_noise_alone() -> None:
    trials = {1e-3: NOISE, 3e-3: NOISE.flip(0) - 0.01, 3e-4: NOISE.roll(3) - 0.01}
    assert chosen(trials) == 1e-3


def test_differences_are_of_the_same_batches() -> None:
    assert clearly_lower(NOISE - 0.01, NOISE)
    assert not clearly_lower(NOISE.flip(0) - 0.01, NOISE)
    assert not clearly_lower(NOISE, NOISE)


def test_a_gain_too_small_to_matter_is_left() -> None:
    assert chosen({1e-3: NOISE, 3e-3: NOISE - 0.01}, least=0.02) == 1e-3
    assert chosen({1e-3: NOISE, 3e-3: NOISE - 0.03}, least=0.02) == 3e-3
    assert list(walk(1e-3, bowl(1e-2), (1e-7, 1.0), least=10.0)) == pytest.approx([1e-3, 3e-3, 1e-3 / 3])


def test_what_matters_is_a_hundredth_of_the_fall() -> None:
    lrs = torch.logspace(-7, 0, 60, dtype=torch.float64)
    curve = LRCurve.of_raw(lrs, 8 - 6 * torch.sigmoid(5 * (lrs.log10() + 4)))
    assert curve.least_gain == pytest.approx(0.06, rel=0.02)
    assert replace(curve, trials={1e-4: NOISE, 3e-4: NOISE - 0.05}).suggest() == 1e-4
    assert replace(curve, trials={1e-4: NOISE, 3e-4: NOISE - 0.07}).suggest() == 3e-4


def test_a_rate_that_explodes_is_worse_than_any() -> None:
    exploded = scores([1.0] * 5, num_planned=30 + NUM_SCORED)
    assert exploded.isnan().all()
    assert chosen({1e-1: exploded, 3e-1: exploded, 3e-2: NOISE}) == 3e-2
    assert chosen({1e-1: NOISE, 3e-1: exploded}) == 1e-1


@pytest.mark.parametrize("highest", [3e-3, 2e-5])
def test_where_the_suggestion_explodes_the_walk_goes_down_to_a_rate_that_does_not(highest: float) -> None:
    falls = bowl(1e-9)
    trials = walk(1e-2, lambda lr: falls(lr) if lr < highest else torch.full((NUM_SCORED,), torch.inf), (1e-7, 1.0))
    assert all(losses.isinf().all() for lr, losses in trials.items() if lr >= highest)
    assert chosen(trials) < highest
    assert list(trials) == sorted(trials, reverse=True)


def test_where_every_rate_explodes_none_is_suggested_and_it_is_said() -> None:
    lrs = torch.logspace(-7, 0, 60, dtype=torch.float64)
    nothing = torch.full((NUM_SCORED,), torch.nan)
    tried = walk(1e-6, lambda _: nothing, (1e-7, 1.0))
    assert list(tried) == pytest.approx([1e-6, 1e-6 / 3, 1e-6 / 9])
    curve = LRCurve.of_raw(lrs, 2 - torch.sigmoid(3 * (lrs.log10() + 4)))
    assert curve.suggest() is not None
    curve = replace(curve, trials=tried)
    assert curve.suggest() is None
    assert "auto" not in curve.suggestions()
    assert curve.why_not == "the loss explodes within a few steps at every rate that was tried, 1.1e-07 the lowest"


def test_the_course_rises_falls_to_nothing_and_stays_there() -> None:
    rates = course(2.0, 30)
    assert len(rates) == 30 + NUM_SCORED
    assert rates[:3] == pytest.approx([2 / 3, 4 / 3, 2.0])
    assert rates[3:30] == sorted(rates[3:30], reverse=True)
    assert rates[29] == pytest.approx(2 / 27)
    assert rates[30:] == [0.0] * NUM_SCORED


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_a_short_course_trains(num_steps: int) -> None:
    rates = course(2.0, num_steps)
    assert max(rates) <= 2.0
    assert min(rates[:num_steps]) > 0


def test_the_curve_suggests_what_was_chosen_and_keeps_it() -> None:
    lrs = torch.logspace(-7, 0, 60, dtype=torch.float64)
    losses = 2 - torch.sigmoid(3 * (lrs.log10() + 4))
    alone = LRCurve.of_raw(lrs, losses)
    tried = LRCurve(alone.lrs, alone.losses, alone.raw, trials={1e-4: NOISE, 3e-4: NOISE - 1, 9e-4: [torch.nan] * 10})
    again = LRCurve.from_dict(tried.to_dict())
    for curve in (tried, again):
        assert curve.suggest() == 3e-4
        assert curve.suggestions()["auto"] == 3e-4
        assert curve.suggest("steep") == alone.suggest("steep")
    assert list(again.trials) == [1e-4, 3e-4, 9e-4]
    assert torch.equal(again.trials[3e-4], NOISE - 1)
    assert again.trials[9e-4].isnan().all()
