"""Phases that a fit never reaches, and those that it does."""

from math import inf, nan
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from nets import Net, loader, trainer

from lightning_ft_callbacks import FreezeSchedule, GradualUnfreezing, Phase, Plateau
from lightning_ft_callbacks.phases.reachable import FitLength, phase_starts

EPOCHS = [{"train": ["head"], "epochs": 2}, {"train": ["layers.2", "head"], "epochs": 2}, {"train": ["*"]}]


def fitted(schedule: Any, **options: Any) -> GradualUnfreezing:
    """Train on four batches an epoch, and return the callback."""
    callback = GradualUnfreezing(schedule)
    trainer(callback, **({"max_epochs": 3} | options)).fit(Net(), loader(), loader())
    return callback


@pytest.mark.parametrize(
    ("phases", "epochs", "starts"),
    [
        ([Phase(["*"])], 0, [0]),
        ([Phase(["*"], epochs=2), Phase(["*"])], 3, [0, 2]),
        ([Phase(["*"], epochs=2), Phase(["*"])], 2, [0, None]),
        ([Phase(["*"], steps=6), Phase(["*"])], 2, [0, 1.5]),
        ([Phase(["*"], steps=8), Phase(["*"])], 2, [0, None]),
        ([Phase(["*"], steps=2), Phase(["*"], epochs=1), Phase(["*"])], 2, [0, 0.5, 1]),
        ([Phase(["*"], plateau=Plateau("a", 1)), Phase(["*"], epochs=1), Phase(["*"])], 4, [0, 2, 3]),
        ([Phase(["*"], plateau=Plateau("a", 3)), Phase(["*"])], 5, [0, 4]),
        ([Phase(["*"], plateau=Plateau("a", 3)), Phase(["*"])], 4, [0, None]),
        ([Phase(["*"], epochs=99), Phase(["*"])], inf, [0, 99]),
        ([Phase(["*"], epochs=3), Phase(["*"], epochs=1), Phase(["*"])], 2, [0, None, None]),
        ([*[Phase(["*"], steps=1)] * 4, Phase(["*"])], 1, [0, 0.25, 0.5, 0.75, None]),
    ],
)
def test_a_phase_begins_at_the_earliest_where_those_before_it_end(
    phases: list[Phase], epochs: float, starts: list[float | None]
) -> None:
    assert phase_starts(FreezeSchedule(phases), FitLength(epochs, steps_per_epoch=4)) == starts


def test_steps_add_up_exactly_over_an_epoch_that_no_float_divides() -> None:
    schedule = FreezeSchedule([*[Phase(["*"], steps=1)] * 10, Phase(["*"])])
    assert phase_starts(schedule, FitLength(1.0, 10.0))[-2:] == [0.9, None]
    assert phase_starts(schedule, FitLength(1.1, 10.0))[-1] == 1.0


@pytest.mark.parametrize("unknown", [inf, nan])
def test_where_nobody_knows_an_epochs_steps_the_first_phases_are_reached(unknown: float) -> None:
    schedule = FreezeSchedule([Phase(["*"], epochs=1), Phase(["*"], steps=5)])
    assert phase_starts(schedule, FitLength(2.0, unknown)) == [0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_epochs": 4},
            r"phase 2 is never reached: the fit ends with max_epochs=4, in phase 1, which begins at epoch 2 and would "
            "end after 2 epochs",
        ),
        (
            {"max_epochs": 2},
            r"phases 1 to 2 are never reached: .*max_epochs=2, in phase 0, which begins at epoch 0 .* after 2 epochs",
        ),
        ({"max_steps": 9, "max_epochs": 9}, r"phase 2 is never reached: the fit ends with max_steps=9, in phase 1"),
    ],
)
def test_phases_of_ones_own_beyond_the_end_are_an_error_that_names_the_epoch(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fitted(EPOCHS, **options)


def test_an_accumulated_step_counts_once() -> None:
    schedule = [{"train": ["head"], "steps": 6}, {"train": ["*"]}]
    assert fitted(schedule, max_epochs=2).phase == 1
    with pytest.raises(ValueError, match=r"phase 1 is never reached: .*after 6 steps"):
        fitted(schedule, max_epochs=2, accumulate_grad_batches=2)


def test_a_schedule_that_the_fit_reaches_is_not_complained_of() -> None:
    assert fitted(EPOCHS, max_epochs=5).phase == 2


def test_a_last_phase_with_an_end_lasts_until_the_fit_ends() -> None:
    callback = fitted([{"train": ["head"], "epochs": 1}, {"train": ["*"], "epochs": 1}], max_epochs=4)
    assert callback.phase == 1


def test_of_a_preset_phases_beyond_the_end_are_printed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        callback = fitted("gradual", max_epochs=2)
    assert callback.phase == 1
    (line,) = [record.message for record in caplog.records if "never reached" in record.message]
    assert line.startswith("schedule 'gradual': phases 2 to 3 are never reached: the fit ends with max_epochs=2")


@pytest.mark.parametrize(
    "options",
    [
        {"fast_dev_run": True},
        {"fast_dev_run": 2},
        {"overfit_batches": 1},
        {"overfit_batches": 0.5},
        {"limit_train_batches": 1},
        {"limit_train_batches": 2},
        {"limit_train_batches": 0.5},
        {"limit_val_batches": 0},
        {"limit_val_batches": 2},
    ],
    ids=str,
)
def test_a_fit_cut_short_on_purpose_is_not_asked(options: dict[str, Any]) -> None:
    assert fitted(EPOCHS, max_epochs=1, **options).phase == 0


@pytest.mark.parametrize("options", [{"max_epochs": -1, "max_steps": 20}, {"max_epochs": 9, "max_steps": 20}], ids=str)
def test_max_steps_counts_where_it_comes_first(options: dict[str, Any]) -> None:
    assert fitted(EPOCHS, **options).phase == 2


def test_max_time_is_no_reason_to_complain() -> None:
    assert fitted(EPOCHS, max_epochs=-1, max_time={"seconds": 0}).phase == 0


def test_max_steps_without_max_epochs_is_an_end_too() -> None:
    with pytest.raises(ValueError, match="phase 2 is never reached: the fit ends with max_steps=9"):
        fitted(EPOCHS, max_epochs=-1, max_steps=9)


def test_an_epochs_incomplete_accumulation_is_a_step() -> None:
    with pytest.raises(ValueError, match="phase 1 is never reached"):
        fitted(
            [{"train": ["head"], "epochs": 2}, {"train": ["*"]}], max_epochs=9, max_steps=4, accumulate_grad_batches=3
        )


def test_a_plateau_that_is_judged_more_often_can_end_earlier() -> None:
    schedule = FreezeSchedule([Phase(["head"], plateau=Plateau("val/loss", 3)), Phase(["*"])])
    assert phase_starts(schedule, FitLength(2, 8, epochs_per_validation=0.25)) == [0, 1]
    fitted(schedule, max_epochs=2, val_check_interval=0.25)


def test_a_plateau_that_lasts_longer_than_the_fit_is_an_error() -> None:
    plateau = {"monitor": "val/loss", "patience": 50}
    schedule = [{"train": ["head"], "plateau": plateau}, {"train": ["*"]}]
    with pytest.raises(ValueError, match=r"phase 1 is never reached: .*max_epochs=4, .*no better for 50 validations"):
        fitted(schedule, max_epochs=4)


def test_what_begins_after_a_plateau_is_open_in_the_plan() -> None:
    plateau = {"monitor": "val/loss", "patience": 1}
    plan = fitted([{"train": ["head"], "plateau": plateau}, {"train": ["*"]}], max_epochs=4).plan
    assert plan is not None
    assert [row[4] for row in plan.rows()] == ["begins", "epoch 0", "open"]
    assert "open: when a phase before ends" in str(plan)


class Stepping(Net):
    """Steps two optimizers by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.layers, self.head)]


def test_nobody_counts_the_steps_of_manual_optimization() -> None:
    callback = GradualUnfreezing([{"train": ["head"], "steps": 10}, {"train": ["*"]}])
    trainer(callback, max_epochs=2).fit(Stepping(), loader())
    assert callback.phase == 1  # 16 steps of two optimizers in 8 batches


def test_a_fit_that_ends_before_its_last_phases_says_which_never_began(caplog: pytest.LogCaptureFixture) -> None:
    plateau = {"monitor": "val/loss", "patience": 1, "mode": "max"}
    schedule = [{"train": ["head"], "plateau": plateau}, {"train": ["*"], "epochs": 1}, {"train": ["*"]}]
    with caplog.at_level("INFO"):
        callback = GradualUnfreezing(schedule)
        stop = EarlyStopping("val/loss", patience=1, mode="max", min_delta=9.0)
        trainer(callback, stop, max_epochs=9).fit(Net(), loader(), loader())
    ends = "when val/loss is no better for 1 validation"
    told = [record.message for record in caplog.records if "never began" in record.message]
    assert told == [f"the fit ended in phase 0, which was to end {ends}: phases 1 to 2 never began"]


def test_a_fit_that_reached_all_phases_says_nothing_of_them(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fitted(EPOCHS, max_epochs=5)
    assert "never began" not in caplog.text


def test_where_nothing_is_logged_a_plateau_is_refused() -> None:
    schedule = [{"train": ["head"], "plateau": {"monitor": "val/loss"}}, {"train": ["*"]}]
    with pytest.raises(ValueError, match=r"phase 0 can never end: it watches 'val/loss', and .*barebones"):
        Trainer(callbacks=[GradualUnfreezing(schedule)], accelerator="cpu", barebones=True).fit(Net(), loader())
