"""LRCurve: what a curve suggests, and when it suggests nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_ft_callbacks import LRCurve
from lightning_ft_callbacks.lr_curve import smoothed
from lightning_ft_callbacks.range_test.lr_suggestions import METHODS, minimum, slide, steep, valley


def curve(num_steps: int = 100, noise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return rates and losses that fall around 1e-3 and rise from 1e-1 on."""
    place = np.linspace(-7, 1, num_steps)
    losses = 1 - 0.6 / (1 + np.exp(-3 * (place + 3))) + 0.5 * np.maximum(0, place + 1) ** 2
    return 10**place, losses + np.random.default_rng(seed).normal(0, noise, num_steps)


def naive_valley(lrs: np.ndarray, losses: np.ndarray) -> float:
    """The definition, by the book: all longest falling subsequences, by dynamic programming over pairs."""
    best = [1] * len(losses)
    for after in range(len(losses)):
        best[after] = 1 + max((best[b] for b in range(after) if losses[b] > losses[after]), default=0)
    longest = max(best)
    end = best.index(longest)
    start = end - longest if longest > 1 else 0
    third = (end - start) / 3
    return float(lrs[max(0, start + int(third) + int(third / 2))])


def naive_slide(lrs: np.ndarray, losses: np.ndarray) -> float:
    slopes = np.gradient(losses)
    for right in range(len(losses) - 1, 14, -1):
        if abs(slopes[right] - slopes[right - 15]) <= 0.005:
            return float(lrs[min(right - 14, len(losses) - 16)])
    return float(lrs[0])


NAIVE = {
    "steep": lambda lrs, losses: float(lrs[np.argmin(np.diff(losses) / np.diff(np.log(lrs)))]),
    "minimum": lambda lrs, losses: float(lrs[np.argmin(losses)] / 10),
    "valley": naive_valley,
    "slide": naive_slide,
}


@settings(max_examples=200, deadline=None)
@given(
    losses=st.lists(st.floats(-5, 5, allow_nan=False, width=32), min_size=16, max_size=60),
    method=st.sampled_from(sorted(METHODS)),
)
def test_each_method_is_its_definition(losses: list[float], method: str) -> None:
    lrs = np.geomspace(1e-7, 1, len(losses))
    found = METHODS[method](torch.tensor(lrs), torch.tensor(losses, dtype=torch.float64))
    assert found == pytest.approx(NAIVE[method](lrs, np.array(losses)))


def test_methods_on_a_curve_without_noise() -> None:
    lrs, losses = (torch.tensor(values) for values in curve())
    assert steep(lrs, losses) == pytest.approx(1e-3, rel=0.3)
    assert minimum(lrs, losses) == pytest.approx(lrs[losses.argmin()] / 10)
    assert 1e-6 < valley(lrs, losses) < 1e-2
    assert 1e-5 < slide(lrs, losses) < 1


def test_a_constant_stays_what_it_is() -> None:
    assert smoothed(torch.full((50,), 1.0)).tolist() == pytest.approx([1.0] * 50)


def test_smoothing_is_the_weighted_mean_of_all_so_far() -> None:
    losses = torch.randn(30, dtype=torch.float64)
    for step, value in enumerate(smoothed(losses, 0.9).tolist()):
        weights = 0.9 ** torch.arange(step, -1, -1, dtype=torch.float64)
        assert value == pytest.approx(((weights * losses[: step + 1]).sum() / weights.sum()).item())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_loss_costs_its_own_point_only(bad: float) -> None:
    lrs, losses = curve(noise=0.01)
    whole = LRCurve.of_raw(lrs, losses)
    losses[40] = bad
    hurt = LRCurve.of_raw(lrs, losses)
    assert len(hurt.known[0]) == len(whole.known[0]) - 1
    assert np.isfinite(hurt.losses.numpy()).all()
    for method in (*METHODS, "auto"):
        assert hurt.suggest(method) == pytest.approx(whole.suggest(method), rel=0.5)


def test_no_information_suggests_nothing_and_says_why() -> None:
    lrs, losses = curve()
    flat = LRCurve.of_raw(lrs, np.ones(100))
    noise = LRCurve.of_raw(lrs, 1 + np.random.default_rng(0).normal(0, 0.1, 100))
    rising = LRCurve.of_raw(lrs, np.linspace(1, 2, 100))
    short = LRCurve.of_raw(lrs[:12], losses[:12])
    for nothing in (flat, noise, rising, short):
        assert nothing.suggest("steep") is nothing.suggest("auto") is None
        assert nothing.suggestions() == {}
        assert nothing.interval() is None
    assert "does not fall" in flat.why_not
    assert "fewer than 10" in short.why_not
    assert LRCurve.of_raw(lrs, losses).suggest() is not None


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_is_rarely_taken_for_information(seed: int) -> None:
    lrs, _ = curve()
    assert not LRCurve.of_raw(lrs, np.random.default_rng(seed).normal(1, 0.1, 100)).informative


@pytest.mark.parametrize("seed", range(10))
def test_the_default_lies_in_its_interval_and_below_where_the_loss_rises(seed: int) -> None:
    found = LRCurve.of_raw(*curve(noise=0.05, seed=seed))
    lr, interval = found.suggest(), found.interval()
    assert lr is not None
    assert interval is not None
    assert interval[0] <= lr <= interval[1]
    assert 1e-5 < lr < 1e-1


def test_it_is_the_same_after_a_round_through_plain_data() -> None:
    lrs, losses = curve()
    losses[3] = np.nan
    one = LRCurve.of_raw(lrs, losses)
    other = LRCurve.from_dict(one.to_dict())
    assert other.suggestions() == one.suggestions()
    assert torch.equal(other.losses, one.losses)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1e-3, 1e-2], [1.0]), "one shape"),
        (([1e-2, 1e-3], [1.0, 2.0]), "rise"),
        (([0.0, 1e-3], [1.0, 2.0]), "above 0"),
    ],
)
def test_what_is_no_curve_is_refused(arguments: tuple[list[float], list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LRCurve(*arguments)


def test_an_unknown_method_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="no suggestion 'vally'; did you mean 'valley'"):
        LRCurve(*curve()).suggest("vally")
