"""What to do next: rules from what was measured to a sentence with its numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from lightning_ft.report.calibration import Calibration
from lightning_ft.report.history import Validation
from lightning_ft.report.movement import Movement
from lightning_ft.report.phases import Phase, scores_of

# a gain within so many standard errors is taken for noise
NUM_ERRORS = 1.0
# an expected calibration error so far above that of chance is poor
POOR_CALIBRATION = 0.03
# relative changes of a block's weights that are hardly any, and that leave little of what was pretrained
BARELY, MUCH = 1e-4, 0.3
# the noise of a share above which few comparisons can be made
NOISY = 0.02
# losses that rise by more than this share of the lowest tell of overfitting
RISE = 0.05


@dataclass(frozen=True, slots=True)
class Advice:
    """Something to do.

    Attributes:
        sentence: What to do.
        evidence: What it follows from, with its numbers.
    """

    sentence: str
    evidence: str


def last_phase_gained_nothing(phases: Sequence[Phase], score: str, noise: float | None) -> Advice | None:
    """Advise to leave the last phase out where it gained no more than the noise of the score.

    Args:
        phases: The phases.
        score: Name of the score.
        noise: Its standard error; None where it is not known: then only what gained nothing at all is left out.
    """
    if len(phases) < 2 or phases[-1].gain is None:
        return None
    last, bound = phases[-1], NUM_ERRORS * (noise or 0.0)
    gain = last.gain
    assert gain is not None
    if gain > bound:
        return None
    cost = "" if last.seconds is None else f" and took {duration(last.seconds)}"
    known = f"the noise of the score is {noise:.3g}" if noise else "the noise of the score is not known"
    before = phases[-2].number
    return Advice(
        f"The last phase gained nothing: stop at phase {before}.",
        f"Phase {last.number} changed the best {score} by {gain:+.3g}{cost}; {known}.",
    )


def no_better_than_guessing(
    score: str, value: float | None, guessing: float | None, noise: float | None
) -> Advice | None:
    """Advise to look at the rate and the data where the model is no better than one that has learnt nothing.

    Args:
        score: Name of the score.
        value: Its value; None where there is none.
        guessing: What one has who has learnt nothing; None where that is not known.
        noise: The standard error of the score; None where it is not known.
    """
    if value is None or guessing is None or value > guessing + NUM_ERRORS * (noise or 0.0):
        return None
    known = f"; the noise of the score is {noise:.3g}" if noise else ""
    return Advice(
        "It has learnt nothing yet: train longer, find a learning rate with LRFinder, or look at the labels.",
        f"Its {score} is {value:.3g}, and {guessing:.3g} without any learning{known}.",
    )


def phases_never_began(phases: Sequence[Phase], num_planned: int, *, early: bool = False) -> Advice | None:
    """Advise to end phases sooner where the fit was over before the last ones could begin.

    Args:
        phases: The phases that the fit came to.
        num_planned: The phases of its schedule.
        early: Whether a callback may have stopped the fit.
    """
    last = phases[-1]
    missing = [str(number) for number in range(last.number + 1, num_planned)]
    if not missing:
        return None
    named = f"Phase {missing[0]}" if len(missing) == 1 else f"Phases {', '.join(missing[:-1])} and {missing[-1]}"
    stopped = ", and EarlyStopping more patience than a phase" if early else ""
    return Advice(
        f"{named} never began: end phase {last.number} after a number of epochs, or give its plateau less "
        f"patience{stopped}.",
        f"The schedule has {num_planned} phases, and the fit ended in phase {last.number}, after "
        f"{_counted(last.num_epochs, 'validation')} in it.",
    )


def still_improving(
    validations: Sequence[Validation], score: str, noise: float | None, *, low: bool, early: bool = False
) -> Advice | None:
    """Advise to train longer where the last of at least three validations is the best by more than the noise.

    Where the noise is not known, the one before it must have been the best so far too.

    Args:
        validations: All validations.
        score: Name of the score.
        noise: Its standard error; None where it is not known.
        low: Whether low values of it are better.
        early: Whether something other than its length ended the run, or kept it from its later phases.
    """
    values = [(-value if low else value) for value in scores_of(validations, score)]
    if early or len(values) < 3:
        return None
    gain = values[-1] - max(values[:-1])
    if gain <= NUM_ERRORS * (noise or 0.0) or (not noise and values[-2] <= max(values[:-2])):
        return None
    known = f"the noise of the score is {noise:.3g}" if noise else "the noise of the score is not known"
    return Advice(
        "It was still getting better when it stopped: train for more epochs.",
        f"The last epoch improved {score} by {gain:.3g} over the best before it; {known}.",
    )


def overfitting(validations: Sequence[Validation]) -> Advice | None:
    """Advise to train shorter where the validation's loss has risen again, for two validations at least."""
    found = [(one.epoch, one.scores["val/loss"]) for one in validations if "val/loss" in one.scores]
    if len(found) < 3:
        return None
    best = min(range(len(found)), key=lambda index: found[index][1])
    epoch, lowest = found[best]
    rise = found[-1][1] / lowest - 1 if lowest > 0 else 0.0
    if len(found) - 1 - best < 2 or rise <= RISE:
        return None
    enough = "1 epoch is" if epoch == 0 else f"{epoch + 1} epochs are"
    return Advice(
        f"It was overfitting at the end: {enough} enough, or use more data, dropout or weight decay.",
        f"The validation loss was lowest in epoch {epoch} ({lowest:.4g}) and is {rise:.0%} higher in epoch "
        f"{found[-1][0]}.",
    )


def poorly_calibrated(calibration: Calibration | None) -> Advice | None:
    """Advise a temperature where a classifier is not right as often as it is sure, and a temperature helps."""
    if calibration is None:
        return None
    excess = calibration.error - calibration.chance
    if excess <= POOR_CALIBRATION or calibration.cooled_loss >= calibration.loss:
        return None
    sure = "surer than it is right" if calibration.temperature > 1 else "less sure than it is right"
    return Advice(
        f"Do not take its probabilities at their word, it is {sure}: divide the logits by "
        f"{calibration.temperature:.2f}.",
        f"Its expected calibration error is {calibration.error:.3f}, of which so few rows explain "
        f"{calibration.chance:.3f}; that temperature, fitted to the same rows, lowers the loss from "
        f"{calibration.loss:.4g} to {calibration.cooled_loss:.4g}.",
    )


def never_predicted(names: Sequence[str], true: Sequence[int], predicted: Sequence[int]) -> Advice | None:
    """Advise weights of the classes where some that are there are never predicted.

    Args:
        names: Names of the classes.
        true: Rows of each class, shape (class,).
        predicted: Predictions of each class, shape (class,).
    """
    missing = [(name, rows) for name, rows, hits in zip(names, true, predicted, strict=True) if rows and not hits]
    if not missing:
        return None
    named = ", ".join(f"“{shortened(name)}” ({rows})" for name, rows in missing[:5]) + (", …" if missing[5:] else "")
    what = "class is" if len(missing) == 1 else "classes are"
    return Advice(
        f"{len(missing)} {what} never predicted: give rare classes more rows, or a weight (class_weights).",
        f"Never predicted, with their rows in the validation data: {named}.",
    )


def rate_at_the_edge(tests: Sequence[Mapping[str, Any]]) -> Advice | None:
    """Advise a wider range where the rate that a test found lies at an end of what it tried.

    Args:
        tests: The range tests of ``lr_finder.json``.
    """
    for test in tests:
        lrs, found = test["curve"]["lrs"], test["lr"]
        if not lrs or found is None:
            continue
        # the test's first and last tenth, in steps
        low, high = lrs[len(lrs) // 10], lrs[-1 - len(lrs) // 10]
        if low < found < high:
            continue
        end, key = ("lower", "min_lr") if found <= low else ("upper", "max_lr")
        return Advice(
            f"The learning rate hit the {end} end of its test: test a wider range ({key}).",
            f"{found:.1e} was chosen among rates from {lrs[0]:.1e} to {lrs[-1]:.1e}.",
        )
    return None


def barely_moved(movements: Sequence[Movement], trained: Sequence[str]) -> Advice | None:
    """Advise to freeze blocks that were trained and hardly moved.

    Args:
        movements: How far each block moved.
        trained: Names of the blocks that some phase trained.
    """
    still = [one for one in movements if one.block in trained and one.distance < BARELY]
    if not still or len(still) == len(movements):
        return None
    farthest = max(still, key=lambda one: one.distance)
    return Advice(
        f"{_blocks(len(still))} hardly moved: freeze what lies so low, which saves time, or raise its rate.",
        f"Of {', '.join(shortened(one.block) for one in still[:4])}{', …' if still[4:] else ''} the weights changed by "
        f"{farthest.distance:.1e} of their norm at most.",
    )


def moved_much(movements: Sequence[Movement]) -> Advice | None:
    """Advise a lower rate where blocks moved so far that little of what was pretrained is left."""
    far = [one for one in movements if one.distance > MUCH]
    if not far:
        return None
    farthest = max(far, key=lambda one: one.distance)
    return Advice(
        f"{_blocks(len(far))} moved far from what was pretrained: try a lower learning rate, or DiscriminativeLR.",
        f"The weights of {shortened(farthest.block)} changed by {farthest.distance:.0%} of their norm.",
    )


def too_few_rows(score: str, value: float | None, noise: float | None, num_rows: int) -> Advice | None:
    """Advise to validate on more rows where the noise of a share is so large that few comparisons can be made."""
    share = value is not None and 0 <= value <= 1
    if not share or noise is None or isnan(noise) or noise <= NOISY:
        return None
    return Advice(
        "Validate on more rows (val_size), or do not compare runs that are about as good.",
        f"With {num_rows} rows {score} is known to ±{noise:.3f} only (one standard error).",
    )


def advice(*rules: Callable[[], Advice | None]) -> list[Advice]:
    """Return what rules say, those without a reason left out."""
    return [said for rule in rules if (said := rule()) is not None]


def duration(seconds: float) -> str:
    """Return a time for a person: ``"2 min 5 s"``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def shortened(text: str, most: int = 40) -> str:
    """Return a text of so many characters at most."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _blocks(number: int) -> str:
    return "One block" if number == 1 else f"{number} blocks"
