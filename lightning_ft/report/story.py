"""Story: all that a report tells of one run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lightning_ft.report import advice as rules
from lightning_ft.report.advice import Advice
from lightning_ft.report.calibration import Calibration
from lightning_ft.report.classes import ClassScores, class_scores
from lightning_ft.report.evaluation import Evaluation, evaluate
from lightning_ft.report.history import History, Validation, low_is_better
from lightning_ft.report.mistakes import Mistake, mistakes
from lightning_ft.report.movement import Movement, movements, starting_backbone
from lightning_ft.report.noise import SHARES, mean_error, r2_error, share_error
from lightning_ft.report.phases import Phase, phases_of, scores_of
from lightning_ft.report.record import RunRecord
from lightning_ft.resources import nearest_path
from lightning_ft.run.finished_run import FinishedRun, finished_run, read_config

LR_TESTS = "lr_finder.json"
# rebuilding a larger model only for its report would take long
MOST_PARAMETERS = 1_000_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Story:
    """What a report tells of one run.

    Attributes:
        name: The name of its folder.
        config: Its configuration.
        record: What was recorded while training; None where nothing was.
        history: What was logged.
        score: The metric that it is judged by: ``"val/accuracy"``.
        best: The validation that its best checkpoint is of; None where there was none.
        noise: The standard error of the score; None where it is not known.
        num_rows: Rows of the validation.
        phases: Its phases.
        tests: Its range tests of the learning rate.
        evaluation: What the best model makes of the validation data; None where that could not be had.
        calibration: Of a classifier of one class a sample, whether it is right as often as it is sure.
        classes: Of a classifier, how each class fared.
        mistakes: The mistakes that it was surest of.
        movements: How far each block moved.
        not_compared: Why that is not known; empty where it is.
        not_evaluated: Why there is no evaluation; empty where there is.
        advice: What to do next.
    """

    name: str
    config: Mapping[str, Any]
    record: RunRecord | None
    history: History
    score: str
    best: Validation | None
    noise: float | None
    num_rows: int
    phases: list[Phase]
    tests: list[dict[str, Any]]
    evaluation: Evaluation | None = None
    calibration: Calibration | None = None
    classes: list[ClassScores] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)
    movements: list[Movement] = field(default_factory=list)
    not_compared: str = ""
    not_evaluated: str = ""
    advice: list[Advice] = field(default_factory=list)

    @property
    def low(self) -> bool:
        """Whether low values of the score are better."""
        return low_is_better(self.score)

    @property
    def value(self) -> float | None:
        """The score of the best checkpoint's validation."""
        return None if self.best is None else self.best.scores.get(self.score)

    @property
    def guessing(self) -> float | None:
        """The score of who has learnt nothing; None where that is not known.

        Of an accuracy it is that of the most frequent class, of F1, average precision and R2 it is 0.
        """
        total = sum(one.num_true for one in self.classes)
        if self.score == "val/accuracy" and self.calibration is not None and total:
            return max(one.num_true for one in self.classes) / total
        return 0.0 if self.score.rpartition("/")[2] in ("f1", "map", "r2") else None

    @property
    def seconds(self) -> float | None:
        """The time that training and validating took [s]; None where it was not recorded."""
        return sum(phase.seconds or 0.0 for phase in self.phases) or None

    @property
    def peak_bytes(self) -> int | None:
        """The most memory of any phase [byte]; None where it was not recorded."""
        return max((phase.peak_bytes or 0 for phase in self.phases), default=0) or None


def story(folder: str | Path, *, safe: bool | None = None) -> Story:
    """Read a run's folder, and run its best model over its validation data.

    Args:
        folder: The run's folder.
        safe: Whether to refuse other people's classes in its configuration; None to trust them.

    Raises:
        FileNotFoundError: If there is no such folder, configuration or checkpoint.
        ValueError: If one of its files is not what its name says.
    """
    place = Path(folder)
    if not place.is_dir():
        raise FileNotFoundError(f"no such run: {str(folder)!r}{nearest_path(place.absolute())}")
    config = read_config(place)
    record, history = RunRecord.read(place), History.read(place)
    if record is not None and sum(record.blocks.values()) > MOST_PARAMETERS:
        why = f"The model has more than {MOST_PARAMETERS / 1e9:.0f} billion parameters, so it was not built again."
        return _advised(_read(place, config, record, history, None, None, why))
    run = finished_run(place, safe=safe)
    device = device_of(config)
    try:
        evaluation, why = evaluate(run.model, run.data, device), "The run has no validation data."
    except (OSError, ValueError) as error:
        # data that moved away are no reason to tell nothing of the run
        evaluation, why = None, f"The run's data cannot be read any more ({type(error).__name__})."
    told = _read(place, config, record, history, run, evaluation, "" if evaluation else why)
    return _advised(_compared(told, run))


def device_of(config: Mapping[str, Any]) -> torch.device:
    """Return where a run's model is computed again: on the accelerator, unless the run was told to do without."""
    chosen = (config.get("trainer") or {}).get("accelerator")
    found = None if chosen == "cpu" else torch.accelerator.current_accelerator(check_available=True)
    return found or torch.device("cpu")


def _read(
    place: Path,
    config: Mapping[str, Any],
    record: RunRecord | None,
    history: History,
    run: FinishedRun | None,
    evaluation: Evaluation | None,
    why: str,
) -> Story:
    monitor = (config.get("best_checkpoint") or {}).get("monitor") or "val/loss"
    main = f"val/{run.model.head.main_metric}" if run is not None else monitor
    known = {name for one in history.validations for name in one.scores}
    score = main if main in known else monitor
    best = _best(history, monitor, (config.get("best_checkpoint") or {}).get("mode"))
    num_rows = _num_rows(config, record, evaluation)
    value = None if best is None else best.scores.get(score)
    told = Story(
        name=place.resolve().name,
        config=config,
        record=record,
        history=history,
        score=score,
        best=best,
        noise=_noise(score, value, num_rows, evaluation),
        num_rows=num_rows,
        phases=phases_of(history, record, score, low=low_is_better(score)),
        tests=_tests(place),
        evaluation=evaluation,
        not_evaluated=why,
    )
    if evaluation is None or evaluation.logits is None or evaluation.targets is None or run is None:
        return told
    return replace(
        told,
        calibration=(
            Calibration.of(evaluation.logits, evaluation.targets) if evaluation.task == "multiclass" else None
        ),
        classes=class_scores(evaluation),
        mistakes=mistakes(evaluation, run.model, run.data),
    )


def _compared(told: Story, run: FinishedRun) -> Story:
    start = starting_backbone(told.config["model"]["backbone"])
    if isinstance(start, str):
        return replace(told, not_compared=start)
    adapted = (told.config["model"]["backbone"].get("init_args") or {}).get("lora") is not None
    end = finished_run(run.folder, merge=True).model if adapted else run.model
    return replace(told, movements=movements(start, end.backbone))


def _advised(told: Story) -> Story:
    trained = {name for phase in told.phases for name in phase.trained}
    early = any("EarlyStopping" in str(one) for one in _callbacks(told.config))
    validations = told.history.validations
    num_planned = 0 if told.record is None else told.record.num_planned
    unreached = rules.phases_never_began(told.phases, num_planned, early=early)
    said = rules.advice(
        lambda: rules.no_better_than_guessing(told.score, told.value, told.guessing, told.noise),
        lambda: unreached,
        lambda: rules.last_phase_gained_nothing(told.phases, told.score, told.noise),
        lambda: rules.still_improving(
            validations, told.score, told.noise, low=told.low, early=early or bool(unreached)
        ),
        lambda: rules.overfitting(validations),
        lambda: rules.never_predicted(
            [one.name for one in told.classes],
            [one.num_true for one in told.classes],
            [one.num_predicted for one in told.classes],
        ),
        lambda: rules.poorly_calibrated(told.calibration),
        lambda: rules.rate_at_the_edge(told.tests),
        lambda: rules.barely_moved(told.movements, sorted(trained)),
        lambda: rules.moved_much(told.movements),
        lambda: rules.too_few_rows(told.score, told.value, told.noise, told.num_rows),
    )
    return replace(told, advice=said)


def _best(history: History, monitor: str, mode: str | None) -> Validation | None:
    low = mode == "min" if mode else low_is_better(monitor)
    judged = [one for one in history.validations if scores_of([one], monitor)]
    if not judged:
        return history.validations[-1] if history.validations else None
    return (min if low else max)(judged, key=lambda one: one.scores[monitor])


def _noise(score: str, value: float | None, num_rows: int, evaluation: Evaluation | None) -> float | None:
    """Return the standard error of a score; None where it follows from nothing that is known."""
    name = score.rpartition("/")[2]
    if name in SHARES and value is not None and 0 <= value <= 1:
        entities = None if evaluation is None else evaluation.tables.get("by_kind")
        number = num_rows if name == "accuracy" or entities is None else int(entities[:, -1].sum())
        return share_error(value, number) if number else None
    if evaluation is None or evaluation.logits is None or evaluation.targets is None:
        return None
    if evaluation.task == "regression" and evaluation.logits.shape[1] == 1:
        predicted, true = evaluation.logits.flatten(), evaluation.targets.flatten().float()
        return {"r2": r2_error(predicted, true), "mae": mean_error((predicted - true).abs())}.get(name)
    if name == "loss" and evaluation.task == "multiclass":
        return mean_error(torch.nn.functional.cross_entropy(evaluation.logits, evaluation.targets, reduction="none"))
    return None


def _num_rows(config: Mapping[str, Any], record: RunRecord | None, evaluation: Evaluation | None) -> int:
    """Return the rows of a validation during the fit."""
    number = record.num_rows.get("val", 0) if record is not None else evaluation.num_all if evaluation else 0
    limit = (config.get("trainer") or {}).get("limit_val_batches")
    if isinstance(limit, float) and limit < 1:
        return int(number * limit)
    size = (config["data"].get("init_args") or {}).get("batch_size", 1)
    return min(number, int(limit) * size) if limit not in (None, 1.0) else number


def _tests(place: Path) -> list[dict[str, Any]]:
    """Return the range tests of a run.

    Raises:
        ValueError: If the file is no list of them.
    """
    file = place / LR_TESTS
    if not file.is_file():
        return []
    try:
        return list(json.loads(file.read_text(encoding="utf-8"))["tests"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(file)!r} is no list of range tests: {error}") from error


def _callbacks(config: Mapping[str, Any]) -> list[Any]:
    callbacks = (config.get("trainer") or {}).get("callbacks") or []
    return callbacks if isinstance(callbacks, list) else [callbacks]
