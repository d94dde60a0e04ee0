"""Calibration: torchmetrics' own error, the temperature that the loss asks for, and the error of chance."""

import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError

from lightning_ft.report.calibration import Calibration, chance_error, reliability, temperature
from lightning_ft.report.noise import mean_error, r2_error, share_error


def drawn(num_rows: int, num_classes: int = 3, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits, times a factor, of a classifier that is calibrated with a factor of 1, and classes."""
    draw = torch.Generator().manual_seed(num_rows)
    logits = 2 * torch.randn(num_rows, num_classes, generator=draw)
    targets = torch.multinomial(logits.softmax(-1), 1, generator=draw).squeeze(1)
    return scale * logits, targets


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_the_error_is_that_of_torchmetrics(scale):
    logits, targets = drawn(500, scale=scale)
    reference = MulticlassCalibrationError(3, n_bins=15, norm="l1")(logits.softmax(-1), targets)
    assert Calibration.of(logits, targets).error == pytest.approx(reference.item(), abs=1e-6)


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_the_temperature_takes_back_what_logits_were_multiplied_by(scale):
    logits, targets = drawn(20_000, scale=scale)
    assert temperature(logits, targets) == pytest.approx(scale, rel=0.05)


def test_no_other_temperature_has_a_lower_loss():
    logits, targets = drawn(400, scale=2.5)
    found = Calibration.of(logits, targets)
    for factor in (0.9, 0.99, 1.01, 1.1):
        other = torch.nn.functional.cross_entropy(logits / (found.temperature * factor), targets).item()
        assert found.cooled_loss <= other + 1e-7


def test_a_classifier_that_is_always_right_has_a_finite_temperature():
    logits = 10 * torch.eye(3)
    assert 0 < temperature(logits, torch.arange(3)) < 0.06


def test_the_error_of_chance_is_what_calibrated_classifiers_have_on_average():
    errors, expected = [], []
    for draw in range(200):
        generator = torch.Generator().manual_seed(draw)
        confidence = 0.4 + 0.6 * torch.rand(300, generator=generator)
        bins = reliability(confidence, torch.rand(300, generator=generator) < confidence)
        errors.append(sum(one.number * abs(one.confidence - one.accuracy) for one in bins) / 300)
        expected.append(chance_error(bins))
    assert sum(errors) / 200 == pytest.approx(sum(expected) / 200, rel=0.1)


def test_the_error_of_a_share_is_that_of_repeated_draws():
    draws = (torch.rand(4000, 250, generator=torch.Generator().manual_seed(0)) < 0.8).float().mean(1)
    assert share_error(0.8, 250) == pytest.approx(draws.std().item(), rel=0.05)
    assert share_error(1.0, 9) > 0.05


def test_the_error_of_r2_is_that_of_repeated_samples():
    draw = torch.Generator().manual_seed(0)
    scores, told = [], []
    for _ in range(150):
        true = torch.randn(200, generator=draw)
        predicted = true + 0.7 * torch.randn(200, generator=draw)
        scores.append(1 - ((predicted - true) ** 2).sum() / ((true - true.mean()) ** 2).sum())
        told.append(r2_error(predicted, true))
    assert sum(told) / 150 == pytest.approx(torch.stack(scores).std().item(), rel=0.2)


def test_the_error_of_a_mean_falls_with_the_root_of_the_rows():
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    assert mean_error(values) == pytest.approx(0.01, rel=0.05)
