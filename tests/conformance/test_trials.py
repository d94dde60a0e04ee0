"""A suggested rate and its neighbours are tried from the same weights on the same batches; the better one is taken."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from nets import Net, Stream, loader, trainer
from torch import Tensor
from torch.optim import Adam
from torch.utils.data import DataLoader

from lightning_ft_callbacks import LRFinder, lr_find
from lightning_ft_callbacks.range_test.short_list import NUM_SCORED, course

STEPS, TRIAL = 60, 40
RANGE: dict[str, Any] = {"num_steps": STEPS, "min_lr": 1e-6, "trial_steps": TRIAL}
seen: list[dict[str, Any]] = []


class TwoFalls(Net):
    """Has one weight that brings most of the fall, at low rates, and one that needs far higher ones.

    So the loss of a range test has fallen by nine tenths where the second weight still stands.
    """

    def __init__(self) -> None:
        super().__init__(lambda parameters: Adam(parameters, lr=0.01), dropout=0.0)
        self.first, self.second = (torch.nn.Parameter(torch.tensor(start)) for start in (-0.005, 1.0))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002
        random = torch.rand(1).item()
        rate = self.optimizers().param_groups[0]["lr"]
        weights = (self.first.item(), self.second.item())
        seen.append({"weights": weights, "batch": batch[0].clone(), "random": random, "rate": rate})
        return loss(self.first, self.second, batch[0])


def loss(first: Tensor, second: Tensor, batch: Tensor) -> Tensor:
    return 10 * torch.sigmoid(-1000 * first) + second**2 + 0.01 * batch.mean()


@pytest.fixture(autouse=True)
def forget() -> None:
    """Begin with nothing seen."""
    seen.clear()
    torch.manual_seed(0)


def test_each_trial_begins_with_the_same_weights_batches_and_random_numbers() -> None:
    curve = lr_find(trainer(max_epochs=10), TwoFalls(), loader(64), **RANGE)
    length = TRIAL + NUM_SCORED
    assert len(curve.trials) == 3
    assert len(seen) == STEPS + 3 * length
    trials = [seen[start : start + length] for start in range(STEPS, len(seen), length)]
    assert seen[0]["weights"] == pytest.approx((-0.005, 1.0))
    for trial in trials:
        assert trial[0]["weights"] == seen[0]["weights"]
        assert [step["random"] for step in trial] == [step["random"] for step in seen[:length]]
        assert all(torch.equal(mine["batch"], its["batch"]) for mine, its in zip(trial, seen, strict=False))


def test_a_trial_rises_falls_and_is_scored_with_the_weights_that_it_ends_with() -> None:
    curve = lr_find(trainer(max_epochs=10), TwoFalls(), loader(64), **RANGE)
    trial = seen[STEPS : STEPS + TRIAL + NUM_SCORED]
    lr, losses = next(iter(curve.trials.items()))
    assert len({step["weights"] for step in trial[:TRIAL]}) == TRIAL
    assert len({step["weights"] for step in trial[TRIAL:]}) == 1
    expected = [loss(*map(torch.tensor, step["weights"]), step["batch"]).item() for step in trial[TRIAL:]]
    assert losses.tolist() == pytest.approx(expected)
    # a step of Adam is no longer than its rate
    moves = [abs(after["weights"][0] - before["weights"][0]) for before, after in pairwise(trial[: TRIAL + 1])]
    assert all(move <= 1.01 * rate for move, rate in zip(moves, course(lr, TRIAL), strict=False))
    assert max(moves) == pytest.approx(lr, rel=0.35)


def test_a_neighbour_that_is_clearly_better_is_taken_and_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    finder, module = LRFinder(**RANGE), TwoFalls()
    trainer(finder, max_epochs=3, logger=CSVLogger(tmp_path, "", "")).fit(module, loader(128))
    assert finder.curve is not None
    start, *_ = finder.curve.trials
    assert start < 5e-3
    assert finder.found == pytest.approx(9 * start)
    assert seen[-1]["rate"] == pytest.approx(9 * start)
    assert finder.factor == pytest.approx(9 * start / 0.01)
    (test,) = json.loads((tmp_path / "lr_finder.json").read_text())["tests"]
    assert [trial["lr"] for trial in test["curve"]["trials"]] == list(finder.curve.trials)
    printed = capsys.readouterr().out
    assert "loss after a trial" in printed
    assert printed.count("tried") == 2


def test_no_trial_is_longer_than_the_fit() -> None:
    lr_find(trainer(max_steps=5, max_epochs=-1), TwoFalls(), loader(64), **RANGE)
    assert (len(seen) - STEPS) % (5 + NUM_SCORED) == 0
    assert len(seen) > STEPS


def test_trials_on_a_stream_of_unknown_length_are_as_long_as_asked_for() -> None:
    lr_find(trainer(max_epochs=1), TwoFalls(), DataLoader(Stream(), 8), **RANGE)
    assert (len(seen) - STEPS) % (TRIAL + NUM_SCORED) == 0
    trial = seen[STEPS : STEPS + TRIAL + NUM_SCORED]
    assert [step["rate"] > 0 for step in trial] == [True] * TRIAL + [False] * NUM_SCORED


@pytest.mark.parametrize("options", [{"suggestion": "valley"}, {"trial_steps": 0}])
def test_the_curve_alone_is_believed_where_that_is_asked_for(options: dict[str, Any]) -> None:
    finder = LRFinder(**(RANGE | options))
    trainer(finder, max_steps=1).fit(TwoFalls(), loader(64))
    assert len(seen) == STEPS + 1
    assert finder.curve is not None
    assert finder.found == finder.curve.suggest(finder.suggestion)


def test_a_rate_that_explodes_in_its_trial_is_left() -> None:
    class Fragile(TwoFalls):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            found = super().training_step(batch, batch_idx)
            return found + (1e6 if len(seen) > STEPS and self.first.item() > 0.02 else 0.0)

    curve = lr_find(trainer(max_epochs=10), Fragile(), loader(64), **RANGE)
    start, *others = curve.trials
    assert any(curve.trials[lr].isnan().all() for lr in (start, *others))
    assert curve.trials[curve.suggest() or 0.0].isfinite().all()


def test_a_negative_number_of_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="expected trial_steps to be at least 0, but got -1"):
        LRFinder(trial_steps=-1)


def test_where_every_trial_explodes_the_users_rate_stays_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    class Doomed(TwoFalls):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            found = super().training_step(batch, batch_idx)
            return found + (1e6 if len(seen) > STEPS and abs(self.first.item() + 0.005) > 1e-8 else 0.0)

    finder = LRFinder(**RANGE)
    with caplog.at_level("INFO"):
        trainer(finder, max_epochs=1).fit(Doomed(), loader(64))
    assert finder.curve is not None
    assert len(finder.curve.trials) > 1
    assert finder.found is finder.factor is None
    assert seen[-1]["rate"] == 0.01
    assert "explodes within a few steps at every rate that was tried" in caplog.text
    assert "the learning rate stays 0.01" in caplog.text
