"""Page: a story, or several side by side, as one HTML file that needs nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_ft.extras import require
from lightning_ft.report import charts
from lightning_ft.report.advice import duration
from lightning_ft.report.comparison import class_table, difference_table, summary_table, verdict
from lightning_ft.report.evaluation import class_names
from lightning_ft.report.metric_tables import MetricTable, metric_tables
from lightning_ft.report.shown import plain, without_places
from lightning_ft.report.story import Story

MOST_BYTES = 1_900_000
MOST_CLASSES = 60
MATRIX_CLASSES = 16
MOST_CONFUSIONS = 15
MOST_CONFIGURATION = 30_000
MOST_CELL = 600
MOST_TESTS = 4
# of the loss, below which a temperature is not worth telling
LEAST_CHANGE = 0.005


@dataclass(frozen=True, slots=True)
class Tile:
    """A number of the summary."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of the confusion matrix."""

    number: int
    share: float


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the confusion matrix."""

    name: str
    cells: list[Cell]


def run_page(run: Story) -> str:
    """Return the page of one run, of less than 2 MB: what is least missed is left out until it is so small."""
    parts = _run_parts(run)
    html = _render("run.html.jinja", {**parts, "left_out": []})
    left_out: list[str] = []
    for part, without in (
        ("the mistakes", {"mistakes": []}),
        ("the configuration", {"configuration": ""}),
        ("the learning rate of each block", {"charts": {**parts["charts"], "rates": None}}),
    ):
        if len(html.encode()) <= MOST_BYTES:
            break
        left_out.append(part)
        parts |= without
        html = _render("run.html.jinja", {**parts, "left_out": left_out})
    return html


def runs_page(runs: Sequence[Story]) -> str:
    """Return the page of several runs side by side."""
    scores = dict.fromkeys(run.score for run in runs)
    histories = {run.name: run.history for run in runs}
    drawn = [charts.runs_chart(histories, score) for score in dict.fromkeys([*scores, "val/loss"])]
    parts = {
        "runs": runs,
        "verdict": verdict(runs),
        "summary": summary_table(runs),
        "differences": difference_table(runs),
        "classes": class_table(runs),
        "charts": [one for one in drawn if one is not None],
        "left_out": [],
    }
    return _render("runs.html.jinja", parts)


def _render(template: str, parts: Mapping[str, Any]) -> str:
    jinja2: Any = require("jinja2", extra="report", needed_by="lightning-ft report")
    markupsafe: Any = require("markupsafe", extra="report", needed_by="lightning-ft report")

    def shown(value: Any) -> Any:
        """Every value on its way into the page; only what is marked as markup of ours stays as it is."""
        return plain(value, MOST_CELL) if isinstance(value, str) and not hasattr(value, "__html__") else value

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markup"] = markupsafe.Markup
    environment.filters["long"] = lambda text: markupsafe.escape(plain(text, MOST_CONFIGURATION))
    style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(**parts, style=style)


def _run_parts(run: Story) -> dict[str, Any]:
    evaluation, record, value = run.evaluation, run.record, run.value
    regression = evaluation is not None and evaluation.task == "regression"
    blocks = [*record.blocks] if record is not None else []
    rates = charts.rates_chart(run.history.rates, blocks)
    if rates is None and record is not None:
        rates = charts.base_rate_chart(record.rates)
    configuration = yaml.safe_dump(without_places(run.config), sort_keys=False, allow_unicode=True, width=100)
    return {
        "run": run,
        "score": plain(run.score, 60),
        "value": "none" if value is None else f"{value:.4g}",
        "noise": _noise(run),
        "subject": _subject(run),
        "tiles": _tiles(run),
        "facts": _facts(run),
        "phases": _phases(run),
        "shown": "" if evaluation is None else _shown(evaluation.num_samples, evaluation.num_all),
        "charts": {
            "losses": charts.losses_chart(run.history, run.phases),
            "score": (
                charts.score_chart(run.history, run.phases, run.score, run.noise) if run.score != "val/loss" else None
            ),
            "rates": rates,
            "tests": [chart for test in run.tests[:MOST_TESTS] if (chart := charts.range_test_chart(test)) is not None],
            "reliability": None if run.calibration is None else charts.reliability_chart(run.calibration),
            "regression": charts.regression_chart(evaluation) if regression and evaluation is not None else None,
            "movement": charts.movement_chart(run.movements),
        },
        "classes": _classes(run),
        "matrix": _matrix(run),
        "confusions": _confusions(run),
        "tables": [] if evaluation is None else metric_tables(evaluation),
        "calibration": _calibration(run),
        "mistakes": run.mistakes,
        "metrics": _metrics(run),
        "provenance": _provenance(run),
        "configuration": configuration,
    }


def _subject(run: Story) -> str:
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


def _tiles(run: Story) -> list[Tile]:
    tiles = []
    if run.best is not None:
        if run.score != "val/loss" and "val/loss" in run.best.scores:
            tiles.append(Tile("validation loss", f"{run.best.scores['val/loss']:.4g}"))
        last = run.history.validations[-1].epoch
        tiles.append(Tile("best epoch", str(run.best.epoch), f"of epochs 0 to {last}"))
    if run.seconds is not None:
        tiles.append(Tile("time", duration(run.seconds), "training and validating"))
    if run.peak_bytes is not None:
        tiles.append(Tile("memory", size(run.peak_bytes), _memory_of(run)))
    trained = max((phase.num_trained or 0 for phase in run.phases), default=0)
    if trained and run.record is not None:
        total = sum(run.record.blocks.values())
        tiles.append(Tile("parameters trained", count(trained), f"of {count(total)}, at most at once"))
    return tiles


def _noise(run: Story) -> str:
    if run.value is None:
        return "there was no validation"
    if run.noise is None:
        return f"its noise is not known; {run.num_rows:,} validation samples"
    known = f"± {run.noise:.2g} (standard error, {run.num_rows:,} validation samples)"
    return f"{known}; always guessing the most frequent class: {run.guessing:.3g}" if run.guessing else known


def _memory_of(run: Story) -> str:
    on_cpu = run.record is None or run.record.device == "cpu"
    return "of the process, at most" if on_cpu else "of the accelerator, at most"


def _facts(run: Story) -> list[tuple[str, str]]:
    model, data, record = run.config["model"], run.config["data"], run.record
    facts = [
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
        facts.append(("Samples", ", ".join(rows)))
    if run.evaluation is not None and run.evaluation.names:
        names = run.evaluation.names
        more = f", and {len(names) - 12} more" if len(names) > 12 else ""
        facts.append(("Classes", f"{len(names)}: {', '.join(plain(name, 40) for name in names[:12])}{more}"))
    facts.append(("Learning rate", f"{model.get('lr')} at the peak, schedule {_class(model.get('lr_schedule'))}"))
    if record is not None:
        many = f"{record.num_devices} of " if record.num_devices > 1 else ""
        facts.append(("Ran on", f"{many}{record.device}, precision {record.precision}"))
        if not record.finished:
            facts.append(("State", "it was stopped before its end"))
    return facts


def _phases(run: Story) -> MetricTable:
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


def _classes(run: Story) -> dict[str, Any]:
    rows = sorted(run.classes, key=lambda one: one.f1) if len(run.classes) > MOST_CLASSES else run.classes
    hidden = len(rows) - MOST_CLASSES
    said = f"The {MOST_CLASSES} worst of {len(rows)} classes." if hidden > 0 else ""
    kept = rows[:MOST_CLASSES]
    return {"rows": kept, "left_out": said}


def _square(run: Story) -> list[list[int]] | None:
    matrix = None if run.evaluation is None else run.evaluation.tables.get("confusion_matrix")
    return None if matrix is None or matrix.ndim != 2 else matrix.long().tolist()


def _matrix(run: Story) -> dict[str, Any] | None:
    matrix = _square(run)
    if matrix is None or len(matrix) > MATRIX_CLASSES or run.evaluation is None:
        return None
    names = [plain(name, 40) for name in class_names(run.evaluation.names, len(matrix))]
    rows = [
        Row(name, [Cell(number, number / (sum(numbers) or 1)) for number in numbers])
        for name, numbers in zip(names, matrix, strict=True)
    ]
    return {"names": names, "rows": rows}


def _confusions(run: Story) -> list[tuple[str, str, int]]:
    matrix = _square(run)
    if matrix is None or len(matrix) <= MATRIX_CLASSES or run.evaluation is None:
        return []
    names = [plain(name, 60) for name in class_names(run.evaluation.names, len(matrix))]
    wrong = [
        (number, true, predicted)
        for true, numbers in enumerate(matrix)
        for predicted, number in enumerate(numbers)
        if true != predicted and number
    ]
    wrong.sort(key=lambda one: (-one[0], one[1:]))
    return [(names[true], names[predicted], number) for number, true, predicted in wrong[:MOST_CONFUSIONS]]


def _calibration(run: Story) -> str:
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


def _metrics(run: Story) -> list[tuple[str, str]]:
    if run.evaluation is None:
        return []
    return [(plain(name, 60), f"{value:.4g}") for name, value in sorted(run.evaluation.scores.items())]


def _provenance(run: Story) -> list[tuple[str, str]]:
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


def _shown(number: int, total: int) -> str:
    return f"all {number:,} samples" if number == total else f"{number:,} of its {total:,} samples"


def size(number: int) -> str:
    """Return a number of bytes for a person: ``"1.3 GB"``."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def count(number: int) -> str:
    """Return a number for a person: ``"22.6 M"``."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return str(number)
