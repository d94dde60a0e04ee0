"""The charts of a run's story."""

from collections.abc import Mapping, Sequence
from math import isfinite, nan
from typing import Any

from lightning_ft.report.calibration import Calibration
from lightning_ft.report.chart import FAINT, FIRST, GRID, INK, SECOND, THIRD, Chart, canvas
from lightning_ft.report.evaluation import Evaluation, spread
from lightning_ft.report.history import History
from lightning_ft.report.movement import Movement
from lightning_ft.report.phases import Phase
from lightning_ft.report.shown import plain

MOST_POINTS = 240
MOST_COLUMNS = 60
MOST_BLOCKS = 24
MOST_NAME = 22


def losses_chart(history: History, phases: Sequence[Phase]) -> Chart | None:
    """Draw training and validation losses over the steps; None where there are none."""
    losses = [point for point in history.losses if isfinite(point[1])]
    validations = [(one.step, one.scores["val/loss"]) for one in history.validations if "val/loss" in one.scores]
    if not losses and not validations:
        return None
    kept = [losses[index] for index in spread(len(losses), MOST_POINTS)]
    with canvas() as drawn:
        axes = drawn.axes
        if kept:
            axes.plot(*zip(*kept, strict=True), color=FAINT, lw=0.9, alpha=0.75, label="training")
        if validations:
            axes.plot(*zip(*validations, strict=True), "o-", color=FIRST, ms=4.5, label="validation")
        _phases(axes, phases)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("loss")
        axes.set_xlim(left=0)
        drawn.figure.legend(loc="outside lower center", ncols=2)
        words = f"Training loss from {losses[0][1]:.3g} to {losses[-1][1]:.3g}. " if losses else ""
        if validations:
            words += f"Validation loss from {validations[0][1]:.3g} to {validations[-1][1]:.3g}, "
            words += f"lowest {min(value for _, value in validations):.3g}."
        rows = [(one.epoch, one.step, f"{one.scores.get('val/loss', nan):.4g}") for one in history.validations]
        return drawn.chart("Loss", words, ("epoch", "step", "validation loss"), _some(rows))


def score_chart(history: History, phases: Sequence[Phase], score: str, noise: float | None) -> Chart | None:
    """Draw the score of each validation with its noise; None where there is none."""
    points = [(one.epoch, one.step, one.scores[score]) for one in history.validations if score in one.scores]
    points = [point for point in points if isfinite(point[2])]
    if not points:
        return None
    kept = [points[index] for index in spread(len(points), MOST_POINTS)]
    name = plain(score, 28)
    with canvas() as drawn:
        axes = drawn.axes
        steps, values = [point[1] for point in kept], [point[2] for point in kept]
        if noise:
            low, high = [value - noise for value in values], [value + noise for value in values]
            axes.vlines(steps, low, high, color=SECOND, lw=5, alpha=0.3)
        axes.plot(steps, values, "o-", color=SECOND, ms=4.5)
        _phases(axes, phases)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(name)
        axes.set_xlim(left=0)
        words = f"{name} from {values[0]:.3g} to {values[-1]:.3g} over {len(points)} validations"
        words += f"; bars reach one standard error, {noise:.2g}, up and down." if noise else "."
        rows = [(epoch, step, f"{value:.4g}") for epoch, step, value in points]
        return drawn.chart(name, words, ("epoch", "step", name), _some(rows))


def rates_chart(rates: Sequence[tuple[int, Mapping[str, float]]], blocks: Sequence[str]) -> Chart | None:
    """Draw the effective learning rate of each block over the steps, empty where it was frozen.

    Args:
        rates: Steps and the rates of the blocks trained then.
        blocks: All blocks, input first.
    """
    names = [*blocks] or [*dict.fromkeys(name for _, row in rates for name in row)]
    highest = max((rate for _, row in rates for rate in row.values()), default=0.0)
    if not names or not highest > 0:
        return None
    shown = [names[index] for index in spread(len(names), MOST_BLOCKS)]
    kept = [rates[index] for index in spread(len(rates), MOST_COLUMNS)]
    values = [[row.get(name, 0.0) or nan for _, row in kept] for name in shown]
    lowest = min(rate for _, row in kept for rate in row.values() if rate > 0)
    steps = [step for step, _ in kept]
    edges = [*steps, steps[-1] + max(1, (steps[-1] - steps[0]) // max(1, len(steps) - 1))]
    with canvas(height=1.3 + 0.21 * len(shown)) as drawn:
        from matplotlib.colors import LogNorm
        from matplotlib.ticker import LogFormatter, NullLocator

        axes = drawn.axes
        axes.grid(False)
        norm = LogNorm(min(lowest, highest * 0.5), highest)
        mesh = axes.pcolormesh(
            edges, range(len(shown) + 1), values, norm=norm, cmap="viridis", edgecolors="face", linewidth=0.3
        )
        axes.set_yticks([index + 0.5 for index in range(len(shown))], [_short(name) for name in shown], fontsize=8)
        axes.set_xlabel("optimizer step")
        bar = drawn.figure.colorbar(mesh, location="top", fraction=0.06, aspect=40, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.xaxis.set_minor_locator(NullLocator())
        bar.ax.xaxis.set_major_formatter(LogFormatter())
        bar.ax.tick_params(labelsize=8)
        rows = []
        for name in shown:
            own = [(step, row[name]) for step, row in rates if row.get(name, 0.0) > 0]
            trained = f"{own[0][0]} to {own[-1][0]}" if own else "never"
            rows.append((plain(name, 60), trained, f"{max((rate for _, rate in own), default=0.0):.2e}"))
        frozen = [row[0] for row in rows if row[1] == "never"]
        words = f"Rates of {len(names)} blocks, the highest {highest:.1e}. "
        words += f"Never trained: {', '.join(frozen[:4])}." if frozen else "Each block was trained at some time."
        return drawn.chart(
            "Learning rate of each block", words, ("block", "trained in logged steps", "highest rate"), rows
        )


def base_rate_chart(rates: Sequence[tuple[int, float]]) -> Chart | None:
    """Draw the learning rate that all blocks have; None where it was not recorded."""
    if not rates:
        return None
    kept = [rates[index] for index in spread(len(rates), MOST_POINTS)]
    with canvas(height=2.4) as drawn:
        drawn.axes.plot(*zip(*kept, strict=True), color=THIRD)
        drawn.axes.set_xlabel("optimizer step")
        drawn.axes.set_ylabel("learning rate")
        drawn.axes.set_ylim(bottom=0)
        highest = max(rate for _, rate in rates)
        words = (
            f"One rate for all blocks: it begins at {rates[0][1]:.1e}, is {highest:.1e} at its highest, and ends at "
        )
        words += f"{rates[-1][1]:.1e}."
        rows = [(step, f"{rate:.2e}") for step, rate in rates]
        return drawn.chart("Learning rate", words, ("step", "rate"), _some(rows))


def range_test_chart(test: Mapping[str, Any]) -> Chart | None:
    """Draw a range test: the loss against the learning rate."""
    curve = test["curve"]
    points = [
        (lr, raw, smooth)
        for lr, raw, smooth in zip(curve["lrs"], curve["raw"], curve["losses"], strict=True)
        if raw is not None and smooth is not None
    ]
    if not points:
        return None
    points = [points[index] for index in spread(len(points), MOST_POINTS)]
    lrs, raw, smooth = zip(*points, strict=True)
    found = test["lr"]
    with canvas() as drawn:
        axes = drawn.axes
        axes.plot(lrs, raw, ".", color=FAINT, ms=3, alpha=0.6, label="loss of a step")
        axes.plot(lrs, smooth, color=FIRST, label="smoothed")
        if test.get("interval"):
            axes.axvspan(*test["interval"], color=SECOND, alpha=0.15, lw=0)
        if found is not None:
            axes.axvline(found, color=SECOND, lw=1.6)
        low, high = min(smooth), sorted(smooth)[int(0.9 * (len(smooth) - 1))]
        axes.set_ylim(low - 0.15 * (high - low + 1e-9), high + 0.5 * (high - low + 1e-9))
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("training loss")
        drawn.figure.legend(loc="outside lower center", ncols=2)
        words = f"Tested from {lrs[0]:.1e} to {lrs[-1]:.1e}; "
        words += "no rate stands out." if found is None else f"{found:.2e} was found."
        candidates = [(plain(str(name), 40), f"{lr:.2e}") for name, lr in test.get("candidates", {}).items()]
        title = f"Loss against learning rate, phase {int(test.get('phase') or 0)}"
        return drawn.chart(title, words, ("suggestion", "learning rate"), candidates)


def reliability_chart(calibration: Calibration) -> Chart:
    """Draw how often a classifier is right against how sure it is."""
    with canvas(4.0, 3.4) as drawn:
        axes = drawn.axes
        axes.plot([0, 1], [0, 1], color=FAINT, lw=1, ls="--", label="as often as sure")
        confidence = [one.confidence for one in calibration.bins]
        right = [one.accuracy for one in calibration.bins]
        largest = max(one.number for one in calibration.bins)
        axes.vlines(confidence, confidence, right, color=SECOND, lw=2, alpha=0.45)
        sizes = [14 + 130 * one.number / largest for one in calibration.bins]
        axes.scatter(confidence, right, sizes, color=FIRST, linewidths=0, zorder=3, label="predictions")
        axes.set(xlim=(0, 1.03), ylim=(0, 1.03), xlabel="how sure it is", ylabel="how often it is right")
        legend = axes.legend(loc="upper left")
        legend.legend_handles[1].set_sizes([30])
        words = f"Expected calibration error {calibration.error:.3f}; with so few rows a calibrated classifier would "
        words += f"have {calibration.chance:.3f}. Larger dots stand for more predictions."
        rows = [(f"{one.confidence:.3f}", f"{one.accuracy:.3f}", one.number) for one in calibration.bins]
        return drawn.chart("Calibration", words, ("confidence", "right", "predictions"), rows)


def regression_chart(evaluation: Evaluation) -> Chart | None:
    """Draw predicted against true numbers; None where each sample has several."""
    assert evaluation.logits is not None
    assert evaluation.targets is not None
    if evaluation.logits.shape[1] != 1:
        return None
    rows = spread(len(evaluation.targets), 400)
    true = evaluation.targets.flatten().float()[rows].tolist()
    predicted = evaluation.logits.flatten()[rows].tolist()
    with canvas(4.0, 3.4) as drawn:
        axes = drawn.axes
        low, high = min(true + predicted), max(true + predicted)
        axes.plot([low, high], [low, high], color=FAINT, lw=1, ls="--")
        axes.scatter(true, predicted, 10, color=FIRST, alpha=0.55, linewidths=0)
        axes.set(xlabel="true", ylabel="predicted")
        errors = sorted(abs(one - other) for one, other in zip(true, predicted, strict=True))
        words = f"True numbers from {min(true):.3g} to {max(true):.3g}, predicted ones from {min(predicted):.3g} to "
        words += f"{max(predicted):.3g}; half of the errors are below {errors[len(errors) // 2]:.3g}."
        table = [(f"{one:.4g}", f"{other:.4g}") for one, other in zip(true, predicted, strict=True)]
        return drawn.chart("Predicted against true", words, ("true", "predicted"), _some(table))


def movement_chart(movements: Sequence[Movement]) -> Chart | None:
    """Draw how far each block moved from its pretrained weights."""
    if not movements:
        return None
    shown = [movements[index] for index in spread(len(movements), MOST_BLOCKS)]
    with canvas(height=0.9 + 0.22 * len(shown)) as drawn:
        axes = drawn.axes
        axes.barh(range(len(shown)), [100 * one.distance for one in shown], color=FIRST, height=0.6)
        axes.set_yticks(range(len(shown)), [_short(one.block) for one in shown], fontsize=8)
        axes.grid(False, axis="y")
        axes.set_xlabel("change of the weights [% of their norm]")
        farthest = max(movements, key=lambda one: one.distance)
        words = f"{plain(farthest.block, 60)} moved farthest, by {farthest.distance:.2%} of the norm of its weights."
        rows = [(plain(one.block, 60), f"{one.num_parameters:,}", f"{one.distance:.4%}") for one in movements]
        return drawn.chart("Distance from the pretrained weights", words, ("block", "parameters", "change"), rows)


def runs_chart(histories: Mapping[str, History], score: str) -> Chart | None:
    """Draw the score of several runs over their steps.

    Args:
        histories: From the name of a run to what it logged.
        score: The metric.
    """
    lines = {
        name: [(one.step, one.scores[score]) for one in history.validations if score in one.scores]
        for name, history in histories.items()
    }
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return None
    name_of_score = plain(score, 28)
    colours, styles = (FIRST, SECOND, THIRD, INK), ("-", "--", ":", "-.")
    with canvas(5.2, 3.4) as drawn:
        axes = drawn.axes
        for number, (name, points) in enumerate(lines.items()):
            kept = [points[index] for index in spread(len(points), MOST_POINTS)]
            style = styles[number // len(colours) % len(styles)]
            line = f"o{style}"
            axes.plot(*zip(*kept, strict=True), line, color=colours[number % len(colours)], ms=4, label=plain(name, 28))
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(name_of_score)
        if len(lines) <= 8:
            drawn.figure.legend(loc="outside lower center", ncols=2)
        rows = [(plain(name, 60), f"{points[0][1]:.4g}", f"{points[-1][1]:.4g}") for name, points in lines.items()]
        words = "; ".join(f"{name} from {first} to {last}" for name, first, last in rows[:6])
        return drawn.chart(name_of_score, f"{words}.", ("run", "first", "last"), rows)


def _phases(axes: Any, phases: Sequence[Phase]) -> None:
    """Mark where phases begin."""
    if len(phases) < 2:
        return
    for phase in phases:
        if phase.first_step > phases[0].first_step:
            axes.axvline(phase.first_step, color=GRID, lw=1)
        axes.annotate(
            f"phase {phase.number}" if len(phases) <= 4 else str(phase.number),
            (phase.first_step, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, 3),
            textcoords="offset points",
            fontsize=8,
            color=FAINT,
        )


def _some(rows: Sequence[Any], most: int = 60) -> list[Any]:
    return [rows[index] for index in spread(len(rows), most)]


def _short(name: str) -> str:
    """Return the end of a block's name, which tells blocks apart."""
    name = plain(name.removeprefix("backbone."), 200)
    return name if len(name) <= MOST_NAME else f"…{name[1 - MOST_NAME :]}"
