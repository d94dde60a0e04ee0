"""Page: a story, or several side by side, as one HTML file that needs nothing else."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_ft.extras import require
from lightning_ft.report import charts
from lightning_ft.report.comparison import class_table, difference_table, summary_table, verdict
from lightning_ft.report.confusion import class_rows, confusion_matrix, confusions
from lightning_ft.report.facts import (
    calibration_words,
    facts,
    phase_table,
    provenance,
    score_list,
    score_noise,
    subject,
    tiles,
)
from lightning_ft.report.metric_tables import metric_tables
from lightning_ft.report.shown import plain, without_places
from lightning_ft.report.story import Story

MOST_BYTES = 1_900_000
MOST_CONFIGURATION = 30_000
MOST_CELL = 600
MOST_TESTS = 4


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
        "noise": score_noise(run),
        "subject": subject(run),
        "tiles": tiles(run),
        "facts": facts(run),
        "phases": phase_table(run),
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
        "classes": class_rows(run),
        "matrix": confusion_matrix(run),
        "confusions": confusions(run),
        "tables": [] if evaluation is None else metric_tables(evaluation),
        "calibration": calibration_words(run),
        "mistakes": run.mistakes,
        "metrics": score_list(run),
        "provenance": provenance(run),
        "configuration": configuration,
    }


def _shown(number: int, total: int) -> str:
    return f"all {number:,} samples" if number == total else f"{number:,} of its {total:,} samples"
