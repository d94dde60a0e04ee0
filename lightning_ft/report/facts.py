"""What a run was, did and reached, in words and tables for its page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_ft.report.advice import duration
from lightning_ft.report.metric_tables import MetricTable
from lightning_ft.report.shown import plain, without_places
from lightning_ft.report.story import Story

# of the loss, below which a temperature is not worth telling
LEAST_CHANGE = 0.005


@dataclass(frozen=True, slots=True)
class Tile:
    """A number of the summary."""

    name: str
    value: str
    note: str = ""


def subject(run: Story) -> str:
    """Return what was trained on what, in a sentence."""
    model, data = run.config["model"], run.config["data"]
    name = _argument(model["backbone"], "name")
    file = _argument(data, "train_file")
    backbone = " ".join(part for part in (_class(model["backbone"]), name) if part)
    return f"{backbone} with {_class(model.get('head'))}, trained on {file or _class(data)}."


def _argument(part: Mapping[str, Any], name: str) -> str:
    value = (part.get("init_args") or {}).get(name)
    return "" if value is None else str(without_places(str(value)))


def _class(part: Any) -> str:
    path = part.get("class_path", "") if isinstance(part, Mapping) else str(part)
    return path.rpartition(".")[2]


def tiles(run: Story) -> list[Tile]:
    """Return the numbers of the summary beside the score."""
    shown = []
    if run.best is not None:
        if run.score != "val/loss" and "val/loss" in run.best.scores:
            shown.append(Tile("validation loss", f"{run.best.scores['val/loss']:.4g}"))
        last = run.history.validations[-1].epoch
        shown.append(Tile("best epoch", str(run.best.epoch), f"of epochs 0 to {last}"))
    if run.seconds is not None:
        shown.append(Tile("time", duration(run.seconds), "training and validating"))
    if run.peak_bytes is not None:
        shown.append(Tile("memory", size(run.peak_bytes), _memory_of(run)))
    trained = max((phase.num_trained or 0 for phase in run.phases), default=0)
    if trained and run.record is not None:
        total = sum(run.record.blocks.values())
        shown.append(Tile("parameters trained", count(trained), f"of {count(total)}, at most at once"))
    return shown


def score_noise(run: Story) -> str:
    """Return how sure the score is."""
    if run.value is None:
        return "there was no validation"
    if run.noise is None:
        return f"its noise is not known; {run.num_rows:,} validation samples"
    known = f"± {run.noise:.2g} (standard error, {run.num_rows:,} validation samples)"
    return f"{known}; always guessing the most frequent class: {run.guessing:.3g}" if run.guessing else known


def _memory_of(run: Story) -> str:
    on_cpu = run.record is None or run.record.device == "cpu"
    return "of the process, at most" if on_cpu else "of the accelerator, at most"


def facts(run: Story) -> list[tuple[str, str]]:
    """Return what the run was, as pairs of a name and words."""
    model, data, record = run.config["model"], run.config["data"], run.record
    told = [
        ("Backbone", " ".join((_class(model["backbone"]), _argument(model["backbone"], "name")))),
        ("Head", _class(model.get("head"))),
        ("Data", " ".join((_class(data), _argument(data, "train_file")))),
    ]
    if record is not None and record.num_rows:
        rows = [
            f"{record.num_rows[part]:,} to {verb}"
            for part, verb in (("train", "train"), ("val", "validate"))
            if part in record.num_rows
        ]
        told.append(("Samples", ", ".join(rows)))
    if run.evaluation is not None and run.evaluation.names:
        names = run.evaluation.names
        more = f", and {len(names) - 12} more" if len(names) > 12 else ""
        told.append(("Classes", f"{len(names)}: {', '.join(plain(name, 40) for name in names[:12])}{more}"))
    told.append(("Learning rate", f"{_rates(run)}, schedule {_class(model.get('lr_schedule'))}"))
    if record is not None:
        many = f"{record.num_devices} of " if record.num_devices > 1 else ""
        told.append(("Ran on", f"{many}{record.device}, precision {record.precision}"))
        if not record.finished:
            told.append(("State", "it was stopped before its end"))
    return told


def _rates(run: Story) -> str:
    """Return the rate at the schedule's peak, and of each phase whose own range test gave it another."""
    given = run.config["model"].get("lr")
    tests = [test for test in run.tests if "lr_used" in test]
    if all(test["lr_used"] == test["lr_before"] for test in tests):
        return f"{given} at the peak"
    rates = ", ".join(
        f"{test['lr_used']:.2g}"
        + (f" in phase {test['phase']}" if len(tests) > 1 else "")
        + (" (nothing was found)" if test["lr"] is None else "")
        for test in tests
    )
    return f"{rates} at the peak, by LRFinder ({given} was given)"


def phase_table(run: Story) -> MetricTable:
    """Return what each phase trained, gained and took."""
    columns = ("phase", "trained", "parameters", "epochs", run.score, "gain", "time", "memory")
    rows = []
    for phase in run.phases:
        gain = "first" if phase.gain is None else f"{phase.gain:+.3g}"
        if phase.gain is None and phase.score is not None and run.guessing:
            gain = f"{phase.score - run.guessing:+.3g} over guessing"
        if phase.gain is not None and run.noise and abs(phase.gain) <= run.noise:
            gain += " (noise)"
        rows.append(
            (
                str(phase.number),
                _trained(phase.trained, run),
                "" if phase.num_trained is None else count(phase.num_trained),
                str(phase.num_epochs),
                "" if phase.score is None else f"{phase.score:.4g}",
                gain,
                "" if phase.seconds is None else duration(phase.seconds),
                "" if phase.peak_bytes is None else size(phase.peak_bytes),
            )
        )
    known = f"The noise of the score is {run.noise:.2g}: a gain below it may be chance. " if run.noise else ""
    memory = f"Memory is that {_memory_of(run)}." if run.peak_bytes is not None else ""
    return MetricTable("", columns, rows, f"{known}{memory}")


def _trained(trained: Sequence[str], run: Story) -> str:
    names = [] if run.record is None else [*run.record.blocks]
    if not trained:
        return "not recorded"
    if len(trained) == len(names):
        return "all blocks"
    if len(trained) <= 2:
        return ", ".join(plain(name.removeprefix("backbone."), 30) for name in trained)
    return f"{len(trained)} of {len(names)} blocks, from {plain(trained[0].removeprefix('backbone.'), 30)}"


def calibration_words(run: Story) -> str:
    """Return how far the model's probabilities can be believed; empty where that is not known."""
    found = run.calibration
    if found is None:
        return ""
    said = (
        f"The expected calibration error is {found.error:.3f}; by chance alone so few rows would give about "
        f"{found.chance:.3f}. "
    )
    if found.loss - found.cooled_loss < LEAST_CHANGE * found.loss:
        return f"{said}No temperature makes the loss noticeably lower."
    more = "surer" if found.temperature > 1 else "less sure"
    return (
        f"{said}On average it is {more} than it is right: the loss is lowest with logits divided by "
        f"{found.temperature:.2f} ({found.cooled_loss:.4g} instead of {found.loss:.4g})."
    )


def score_list(run: Story) -> list[tuple[str, str]]:
    """Return the scores of the evaluation, by name."""
    if run.evaluation is None:
        return []
    return [(plain(name, 60), f"{value:.4g}") for name, value in sorted(run.evaluation.scores.items())]


def provenance(run: Story) -> list[tuple[str, str]]:
    """Return what must be the same for a run to be repeated."""
    record = run.record
    if record is None:
        return [("Record", "The run has no record.json: its versions, times and data fingerprints are not known.")]
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    told = [("Seed", str(record.seed)), ("Versions", versions)]
    told += [
        (f"Data fingerprint, {part}", f"sha256 {digits}" if digits else "none: the data is not a file here")
        for part, digits in record.data.items()
    ]
    return told


def size(number: int) -> str:
    """Return a number of bytes for a person: ``"1.3 GB"``."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def count(number: int) -> str:
    """Return a number for a person: ``"22.6 M"``."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return str(number)
