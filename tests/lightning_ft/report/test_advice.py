"""Advice: each rule speaks on one side of its threshold, with its numbers, and is silent on the other."""

from dataclasses import replace

import pytest

from lightning_ft.report import advice
from lightning_ft.report.calibration import Calibration
from lightning_ft.report.history import Validation
from lightning_ft.report.movement import Movement
from lightning_ft.report.phases import Phase

FIRST = Phase(0, 0, 9, ("head",), 10, 1, 0.7, None, 5.0, None)
SECOND = Phase(1, 10, 19, ("head", "body"), 99, 1, 0.71, 0.01, 65.0, None)
CALIBRATION = Calibration([], error=0.2, chance=0.05, temperature=1.8, loss=0.7, cooled_loss=0.6)


def validations(name: str, *values: float) -> list[Validation]:
    return [Validation(epoch, epoch, {name: value}) for epoch, value in enumerate(values)]


def test_a_last_phase_within_the_noise_is_to_be_left_out():
    said = advice.last_phase_gained_nothing([FIRST, SECOND], "val/accuracy", 0.011)
    assert said.sentence == "The last phase gained nothing: stop at phase 0."
    assert "+0.01 and took 1 min 5 s; the noise of the score is 0.011" in said.evidence
    assert advice.last_phase_gained_nothing([FIRST, SECOND], "val/accuracy", 0.009) is None


def test_a_phase_without_known_noise_is_left_out_only_where_it_gained_nothing_at_all():
    assert advice.last_phase_gained_nothing([FIRST, SECOND], "val/map", None) is None
    said = advice.last_phase_gained_nothing([FIRST, replace(SECOND, gain=0.0)], "val/map", None)
    assert "noise of the score is not known" in said.evidence


def test_a_single_phase_has_none_before_it():
    assert advice.last_phase_gained_nothing([FIRST], "val/accuracy", 1.0) is None


def test_a_model_that_is_no_better_than_guessing_has_learnt_nothing():
    said = advice.no_better_than_guessing("val/accuracy", 0.52, 0.5, 0.03)
    assert "learnt nothing yet" in said.sentence
    assert "is 0.52, and 0.5 without any learning; the noise of the score is 0.03" in said.evidence
    assert advice.no_better_than_guessing("val/accuracy", 0.54, 0.5, 0.03) is None
    assert advice.no_better_than_guessing("val/f1", 0.0, 0.0, None) is not None
    assert advice.no_better_than_guessing("val/loss", 0.5, None, 0.1) is None


@pytest.mark.parametrize(("low", "sign"), [(False, 1), (True, -1)])
def test_a_run_whose_last_epoch_is_best_by_more_than_the_noise_is_to_go_on(low, sign):
    found = validations("val/x", *(sign * value for value in (0.5, 0.6, 0.7)))
    said = advice.still_improving(found, "val/x", 0.09, low=low)
    assert "train for more epochs" in said.sentence
    assert "by 0.1 over the best before" in said.evidence
    assert advice.still_improving(found, "val/x", 0.11, low=low) is None
    assert advice.still_improving(found[:2], "val/x", 0.0, low=low) is None
    assert advice.still_improving(found[::-1], "val/x", 0.0, low=low) is None
    assert advice.still_improving(found, "val/x", 0.09, low=low, early=True) is None
    assert "not known" in advice.still_improving(found, "val/x", None, low=low).evidence
    assert advice.still_improving([found[1], found[0], found[2]], "val/x", None, low=low) is None


def test_phases_that_never_began_are_told_instead_of_asking_for_more_epochs():
    said = advice.phases_never_began([FIRST, SECOND], 4)
    assert said.sentence == (
        "Phases 2 and 3 never began: end phase 1 after a number of epochs, or give its plateau less patience."
    )
    assert said.evidence == "The schedule has 4 phases, and the fit ended in phase 1, after 1 validation in it."
    assert advice.phases_never_began([FIRST], 2, early=True).sentence.startswith("Phase 1 never began")
    assert "EarlyStopping more patience" in advice.phases_never_began([FIRST], 2, early=True).sentence
    assert advice.phases_never_began([FIRST, SECOND], 2) is None
    assert advice.phases_never_began([FIRST], 0) is None  # nothing is known of a schedule


def test_a_loss_that_has_risen_for_two_validations_tells_of_overfitting():
    said = advice.overfitting(validations("val/loss", 1.0, 0.5, 0.52, 0.53))
    assert "2 epochs are enough" in said.sentence
    assert "lowest in epoch 1 (0.5) and is 6% higher in epoch 3" in said.evidence
    assert "1 epoch is enough" in advice.overfitting(validations("val/loss", 0.5, 0.52, 0.53)).sentence
    assert advice.overfitting(validations("val/loss", 1.0, 0.5, 0.52, 0.52)) is None
    assert advice.overfitting(validations("val/loss", 1.0, 0.6, 0.5, 0.9)) is None


def test_a_calibration_error_well_above_chance_asks_for_a_temperature():
    said = advice.poorly_calibrated(CALIBRATION)
    assert "divide the logits by 1.80" in said.sentence
    assert "surer than it is right" in said.sentence
    assert "0.200" in said.evidence
    assert "0.050" in said.evidence
    assert "less sure" in advice.poorly_calibrated(replace(CALIBRATION, temperature=0.5)).sentence
    assert advice.poorly_calibrated(replace(CALIBRATION, error=0.079)) is None
    assert advice.poorly_calibrated(replace(CALIBRATION, cooled_loss=0.7)) is None
    assert advice.poorly_calibrated(None) is None


def test_a_class_that_is_never_predicted_is_named_with_its_rows():
    said = advice.never_predicted(["a", "b", "c"], [10, 3, 0], [13, 0, 0])
    assert "1 class is never predicted" in said.sentence
    assert "“b” (3)" in said.evidence
    assert advice.never_predicted(["a", "b"], [10, 3], [12, 1]) is None


def lr_test(found: float | None) -> dict:
    lrs = [10 ** (-6 + index / 10) for index in range(50)]
    return {"lr": found, "phase": 0, "curve": {"lrs": lrs}}


def test_a_rate_at_the_end_of_its_test_asks_for_a_wider_range():
    assert "(min_lr)" in advice.rate_at_the_edge([lr_test(2e-6)]).sentence
    said = advice.rate_at_the_edge([lr_test(1e-4), lr_test(5e-2)])
    assert "upper end of its test: test a wider range (max_lr)" in said.sentence
    assert "5.0e-02 was chosen among rates from 1.0e-06 to 7.9e-02" in said.evidence
    assert advice.rate_at_the_edge([lr_test(1e-4), lr_test(None)]) is None


def test_a_trained_block_that_hardly_moved_is_named():
    moved = [Movement("low", 9, 9e-5), Movement("mid", 9, 2e-4), Movement("top", 9, 0.02)]
    said = advice.barely_moved(moved, ["low", "mid", "top"])
    assert said.sentence.startswith("One block hardly moved")
    assert "low" in said.evidence
    assert "mid" not in said.evidence
    assert advice.barely_moved(moved, ["mid", "top"]) is None


def test_a_block_that_moved_far_asks_for_a_lower_rate():
    said = advice.moved_much([Movement("low", 9, 0.01), Movement("top", 9, 0.31)])
    assert "lower learning rate" in said.sentence
    assert "top changed by 31%" in said.evidence
    assert advice.moved_much([Movement("top", 9, 0.29)]) is None


def test_a_share_of_few_rows_asks_for_more_of_them():
    said = advice.too_few_rows("val/accuracy", 0.8, 0.021, 360)
    assert "360 rows" in said.evidence
    assert "±0.021" in said.evidence
    assert advice.too_few_rows("val/accuracy", 0.8, 0.019, 360) is None
    assert advice.too_few_rows("val/mae", 8.0, 0.5, 360) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.12, "0.1 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (7300, "2 h 1 min"), (12, "12 s")]
)
def test_times_are_told_as_people_do(seconds, text):
    assert advice.duration(seconds) == text
