"""Several runs side by side: their numbers, what differs between them, and which is best."""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

from lightning_ft.report.advice import NUM_ERRORS, duration
from lightning_ft.report.metric_tables import MetricTable
from lightning_ft.report.shown import plain, without_places
from lightning_ft.report.story import Story

MOST_CELL = 120
MOST_ROWS = 80
# settings that say where a run's files lie, and nothing of the run
PLACES = ("trainer.default_root_dir", "trainer.logger")


def summary_table(runs: Sequence[Story]) -> MetricTable:
    """Return the summary of each run, a column a run."""
    rows: list[tuple[str, ...]] = []

    def row(name: str, cells: Sequence[str]) -> None:
        if any(cells):
            rows.append((name, *cells))

    row("score", [run.score for run in runs])
    row("value", ["none" if run.value is None else f"{run.value:.4g}" for run in runs])
    row("± standard error", ["not known" if run.noise is None else f"{run.noise:.2g}" for run in runs])
    row("validation loss", [_number(run.best.scores.get("val/loss")) if run.best else "" for run in runs])
    row("validation samples", [f"{run.num_rows:,}" for run in runs])
    row("best epoch", [str(run.best.epoch) if run.best else "" for run in runs])
    row("phases", [str(len(run.phases)) for run in runs])
    row("time", [duration(run.seconds) if run.seconds else "" for run in runs])
    row("memory", [f"{run.peak_bytes / 1e6:,.0f} MB" if run.peak_bytes else "" for run in runs])
    row("trained parameters", [f"{max(phase.num_trained or 0 for phase in run.phases):,}" for run in runs])
    row("calibration error", [f"{run.calibration.error:.3f}" if run.calibration else "" for run in runs])
    row("seed", [str(run.record.seed) if run.record else "" for run in runs])
    row("data fingerprint", [run.record.data.get("train", "") if run.record else "" for run in runs])
    return MetricTable("", ("", *names_of(runs)), rows)


def difference_table(runs: Sequence[Story]) -> MetricTable:
    """Return the settings that are not the same in all runs."""
    flat = [_flat(without_places(run.config)) for run in runs]
    keys = [key for key in dict.fromkeys(key for one in flat for key in one) if not key.startswith(PLACES)]
    # a setting of one class that is left open says no more than that another class does not have it
    differing = [key for key in keys if len({one.get(key, "None") for one in flat}) > 1]
    rows = [(key, *(plain(one.get(key, "not set"), MOST_CELL) for one in flat)) for key in differing[:MOST_ROWS]]
    return MetricTable("", ("setting", *names_of(runs)), rows)


def class_table(runs: Sequence[Story]) -> MetricTable:
    """Return the F1 of each class in each run."""
    known = dict.fromkeys(one.name for run in runs for one in run.classes)
    scores = [{one.name: f"{one.f1:.3f}" for one in run.classes} for run in runs]
    rows = [(plain(name, 60), *(one.get(name, "") for one in scores)) for name in [*known][:MOST_ROWS]]
    return MetricTable("", ("class", *names_of(runs)), rows)


def verdict(runs: Sequence[Story]) -> str:
    """Say which run is best, and whether it is so by more than the noise."""
    judged = [run for run in runs if run.value is not None]
    if len({run.score for run in judged}) != 1 or len(judged) < 2:
        return "They are judged by different scores, so none of them can be called the best."
    score = judged[0].score

    def goodness(run: Story) -> float:
        assert run.value is not None
        return -run.value if run.low else run.value

    first, second = sorted(judged, key=goodness, reverse=True)[:2]
    apart = goodness(first) - goodness(second)
    if len({run.record.data.get("val") or run.record.data.get("train") for run in judged if run.record}) > 1:
        said = f"{first.name} has the best {score}, but they were not validated on the same data."
    elif first.noise is None or second.noise is None:
        said = f"{first.name} has the best {score}, {apart:.3g} better than {second.name}; its noise is not known."
    elif apart <= NUM_ERRORS * sqrt(first.noise**2 + second.noise**2):
        both = sqrt(first.noise**2 + second.noise**2)
        said = f"{first.name} and {second.name} are as good as one another: their {score} differs by {apart:.3g}, and "
        said += f"the noise of that is {both:.2g}."
    else:
        both = sqrt(first.noise**2 + second.noise**2)
        said = f"{first.name} is best: its {score} is {apart:.3g} better than that of {second.name}, with a noise of "
        said += f"{both:.2g}."
    return plain(said, 600)


def names_of(runs: Sequence[Story]) -> tuple[str, ...]:
    """Return the runs' names, in parts of a table that is as wide as the page."""
    return tuple(plain(run.name, 60) for run in runs)


def _flat(config: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(config, Mapping):
        inner = config.items()
    elif isinstance(config, list) and any(isinstance(one, Mapping) for one in config):
        inner = zip(_named(config), config, strict=True)
    else:
        return {prefix.rstrip("."): str(config)}
    return {key: value for name, one in inner for key, value in _flat(one, f"{prefix}{name}.").items()}


def _named(parts: Sequence[Any]) -> list[str]:
    """Return what tells the parts of a list apart: their classes, which other runs have at other places, or places."""
    names: list[str] = []
    for index, part in enumerate(parts):
        path = part.get("class_path", "") if isinstance(part, Mapping) else ""
        name = str(path).rpartition(".")[2] or str(index)
        names.append(f"{name}_{index}" if name in names else name)
    return names


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
