"""What each phase bought, and what it cost."""

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_ft.report.history import History, Validation
from lightning_ft.report.record import PhaseRecord, RunRecord


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase of a run.

    Attributes:
        number: Its number, from 0.
        first_step: The optimizer step that it began with.
        last_step: The last step that was logged in it.
        trained: Names of the blocks that it trained; empty where that is not known.
        num_trained: Scalar parameters that it trained; None where that is not known.
        num_epochs: Validations in it.
        score: The best value of the score in it; None where it had no validation.
        gain: How much better that is than the best before it; None in the first phase.
        seconds: Time that it took [s]; None where that is not known.
        peak_bytes: The most memory that it took [byte]; None where that is not known.
    """

    number: int
    first_step: int
    last_step: int
    trained: tuple[str, ...]
    num_trained: int | None
    num_epochs: int
    score: float | None
    gain: float | None
    seconds: float | None
    peak_bytes: int | None


def phases_of(history: History, record: RunRecord | None, score: str, *, low: bool) -> list[Phase]:
    """Return a run's phases; one of the whole run where nothing was recorded.

    Args:
        history: What was logged.
        record: What was recorded; None where nothing was.
        score: The metric that the phases are judged by.
        low: Whether low values of it are better.
    """
    recorded = record.phases if record is not None and record.phases else [PhaseRecord(0, 0, [], 0, 0.0)]
    last = max([step for step, _ in history.losses] + [one.step for one in history.validations], default=0)
    best_of = min if low else max
    before: float | None = None
    found = []
    for phase, following in zip(recorded, [*recorded[1:], None], strict=True):
        end = last if following is None else following.first_step - 1
        inside = [one for one in history.validations if phase.first_step <= one.step <= end]
        values = scores_of(inside, score)
        best = best_of(values, default=None)
        gain = None if best is None or before is None else (before - best if low else best - before)
        found.append(
            Phase(
                phase.phase,
                phase.first_step,
                end,
                tuple(phase.trained),
                phase.num_trained or None,
                len(inside),
                best,
                gain,
                phase.seconds or None,
                phase.peak_bytes,
            )
        )
        before = best if before is None or best is None else best_of(before, best)
    return found


def scores_of(validations: Sequence[Validation], score: str) -> list[float]:
    """Return the finite values of a score, in the order of the validations."""
    values = [one.scores[score] for one in validations if score in one.scores]
    return [value for value in values if abs(value) != float("inf") and value == value]
