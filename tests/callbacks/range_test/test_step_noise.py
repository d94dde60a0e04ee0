"""When losses say something, and when a sweep is over."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from lightning_ft_callbacks import LRCurve
from lightning_ft_callbacks.range_test.range_test import diverged
from lightning_ft_callbacks.range_test.step_noise import falling

STEPS = 100
LRS = np.geomspace(1e-7, 1, STEPS)
Draw = Callable[[np.random.Generator], np.ndarray]


def alike(coefficient: float) -> Draw:
    def draw(random: np.random.Generator) -> np.ndarray:
        losses = [0.0]
        for _ in range(STEPS - 1):
            losses.append(coefficient * losses[-1] + random.normal(0, 0.1))
        return 1 + np.array(losses)

    return draw


def in_16_bits(mean: float, spread: float) -> Draw:
    return lambda random: torch.tensor(random.normal(mean, spread, STEPS)).bfloat16().double().numpy()


NOISE: dict[str, tuple[Draw, float]] = {
    "normal": (lambda random: random.normal(1, 0.1, STEPS), 0.03),
    "a hinge, mostly zero": (lambda r: np.where(r.random(STEPS) < 0.7, 0.0, r.exponential(1, STEPS)), 0.06),
    "right or wrong": (lambda random: (random.random(STEPS) < 0.3).astype(float), 0.03),
    "16 bits": (in_16_bits(0.69, 0.001), 0.03),
    "16 bits, larger": (in_16_bits(2.3, 0.005), 0.06),
    "a few far off": (lambda random: random.lognormal(0, 1.5, STEPS), 0.06),
    "neighbours alike": (alike(0.5), 0.25),
    "neighbours very alike": (alike(0.8), 0.5),
    "rising": (lambda random: np.linspace(1, 2, STEPS) + random.normal(0, 0.1, STEPS), 0.03),
}


@pytest.mark.parametrize("name", NOISE)
def test_noise_of_any_kind_is_rarely_taken_for_information(name: str) -> None:
    draw, most = NOISE[name]
    random = np.random.default_rng(0)
    assert sum(LRCurve.of_raw(LRS, draw(random)).informative for _ in range(150)) / 150 <= most


@pytest.mark.parametrize(("fall", "share"), [(0.2, 0.75), (0.3, 0.95), (0.5, 1.0)])
def test_a_fall_of_some_times_the_noise_is_seen(fall: float, share: float) -> None:
    random, place = np.random.default_rng(0), np.linspace(-7, 0, STEPS)
    explosion = np.minimum(np.exp(np.maximum(0, place + 1) * 5) - 1, 20)
    losses = 1 - fall / (1 + np.exp(-3 * (place + 3))) + explosion
    found = [LRCurve.of_raw(LRS, losses + random.normal(0, 0.1, STEPS)).informative for _ in range(100)]
    assert sum(found) / 100 >= share


@pytest.mark.parametrize("steepness", [3, 10, 50])
def test_a_fall_without_noise_is_seen_however_steep(steepness: float) -> None:
    losses = 1 - 1 / (1 + np.exp(-steepness * (np.linspace(-7, 0, STEPS) + 3)))
    assert LRCurve.of_raw(LRS, losses + np.random.default_rng(0).normal(0, 0.01, STEPS)).informative


@pytest.mark.parametrize("start", [0.0, 0.1, -0.1, 0.3, -1.0])
@pytest.mark.parametrize("spread", [0.05, 0.3, 1.0])
def test_noise_around_zero_does_not_end_a_sweep_whose_loss_falls_later(start: float, spread: float) -> None:
    random, place = np.random.default_rng(0), np.linspace(-7, 0, STEPS)
    early = 0
    for _ in range(60):
        losses = start - 2 / (1 + np.exp(-3 * (place + 2))) + random.normal(0, spread, STEPS)
        early += any(diverged(losses[:step].tolist()) for step in range(1, 30))
    assert early / 60 <= 0.05


@settings(max_examples=50, deadline=None)
@given(losses=st.lists(st.floats(-5, 5, allow_nan=False, width=32), min_size=1, max_size=40))
def test_the_falling_course_is_scikit_learns_isotonic_regression(losses: list[float]) -> None:
    expected = IsotonicRegression(increasing=False).fit_transform(range(len(losses)), losses)
    assert falling(torch.tensor(losses, dtype=torch.float64)).tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_fall_is_seen_before_an_explosion_that_ends_lower_still() -> None:
    place = np.linspace(-4, 1, 40)
    losses = 0.9 - 0.3 / (1 + np.exp(-3 * (place + 1))) + np.random.default_rng(0).normal(0, 0.02, 40)
    losses[32:] = [1.4, 2.7, 1.4, 0.5, 0.2, 0.2, 0.1, 0.1]
    assert LRCurve.of_raw(10**place, losses).informative


def test_a_smooth_fall_over_batches_that_come_again_and_again_is_seen() -> None:
    random, place = np.random.default_rng(0), np.linspace(-4, 1, 40)
    losses = 0.9 - 0.5 / (1 + np.exp(-3 * (place + 1)))
    for spread in (0.0, 0.02, 0.05):
        curves = [losses + np.tile(random.normal(0, spread, 4), 10) for _ in range(40)]
        assert sum(LRCurve.of_raw(10**place, curve).informative for curve in curves) >= 36


@pytest.mark.parametrize("factor", [1.5, 10.0])
def test_an_explosion_ends_a_sweep_within_a_few_steps(factor: float) -> None:
    losses = [*np.random.default_rng(0).normal(0.1, 0.05, 50), *(factor**step for step in range(20))]
    assert next(step for step in range(70) if diverged(losses[: step + 1])) < 65
