"""The picture of a fit by phases: losses, score and learning rate over the steps, and which blocks were trained."""

from math import isfinite, isnan, nan
from pathlib import Path
from statistics import median
from typing import Any

from lightning_ft_callbacks.phases.phase_history import PhaseHistory
from lightning_ft_callbacks.whole_file import whole_file

WIDTH, LOSS, SCORE, RATE = 9.0, 1.7, 1.0, 0.8  # inches
ROW, MOST_HEIGHT = 0.26, 10.0
DARK, TRAINING = "0.25", "#0072B2"  # colours that all eyes tell apart (Okabe and Ito 2008); markers do it in grey
VALIDATED: dict[str, Any] = {"color": "#D55E00", "lw": 1.2, "ls": "--", "marker": "o", "ms": 4, "clip_on": False}
FEW = 60  # steps whose points are seen one by one
BELOW = 10.0  # how far below the lowest block's peak colours still tell rates apart
LEAST_LABEL = 0.022  # of the width, that a phase's number takes


def draw(history: PhaseHistory, end: int, path: Path) -> bool:
    """Draw a fit into a file, and tell whether it could: not without matplotlib, and nothing of no step.

    Args:
        history: The fit.
        end: Optimizer steps done at its end.
        path: The picture's file.
    """
    figure = figure_of(history, end)
    if figure is None:
        return False
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    return True


def figure_of(history: PhaseHistory, end: int) -> Any:
    """Return a matplotlib figure of a fit; None without matplotlib, and of no step.

    From the top: training and validation loss, the score, the highest rate of all blocks, and the blocks, input lowest,
    the darker the higher their rate. Dotted lines are the ends of phases, whose numbers stand above.

    Args:
        history: The fit.
        end: Optimizer steps done at its end.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return None
    if not history.steps:
        return None
    edges, rates = history.cells(end)
    blocks = min(MOST_HEIGHT, max(1.0, ROW * len(history.names)))
    heights = [LOSS, *([SCORE] if history.score_name else []), RATE, blocks]
    figure = Figure(figsize=(WIDTH, sum(heights) + 1.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    _draw_losses(panels[0], history)
    if history.score_name:
        _draw_score(panels[1], history)
    _draw_highest(panels[-2], edges, rates)
    _draw_blocks(figure, panels[-1], history, edges, rates)
    borders = [start for _, start in history.starts[1:]]
    for panel in panels:
        panel.set_xlim(edges[0], edges[-1])
        for border in borders:
            panel.axvline(border, color=DARK, lw=0.9, ls=(0, (1, 2)))
    _number_phases(panels[0], history, edges[0], edges[-1])
    panels[-1].set_xlabel("optimizer step (hatched: frozen)")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels(panels[:-1])
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _draw_losses(axes: Any, history: PhaseHistory) -> None:
    losses = history.losses
    few = len(losses) < FEW
    axes.plot(history.steps, losses, ".", color="0.72", ms=4 if few else 2.5, label="a step", zorder=1)
    smooth = running_median(losses, max(3, len(losses) // 20))
    axes.plot(history.steps, smooth, color=TRAINING, lw=1.4, label="training, median", zorder=2)
    found = [(step, loss) for step, loss, _ in history.validations if isfinite(loss)]
    if found:
        axes.plot(*zip(*found, strict=True), label=history.loss_name, **VALIDATED)
    # one step that explodes shall not flatten the rest
    usual = sorted(loss for loss in losses if isfinite(loss))
    shown = [loss for loss in smooth if isfinite(loss)] + [loss for _, loss in found]
    shown += usual[len(usual) // 50 : len(usual) - len(usual) // 50]
    if shown and max(shown) > min(shown):
        room = 0.06 * (max(shown) - min(shown))
        axes.set_ylim(min(shown) - room, max(shown) + room)
    axes.set_ylabel("loss")


def _draw_score(axes: Any, history: PhaseHistory) -> None:
    found = [(step, score) for step, _, score in history.validations if isfinite(score)]
    if found:
        axes.plot(*zip(*found, strict=True), **VALIDATED)
    axes.set_ylabel(history.score_name.replace("/", "/\n"))
    axes.margins(y=0.15)


def _draw_highest(axes: Any, edges: list[int], rates: list[list[float]]) -> None:
    highest = [max((rate for rate in row if isfinite(rate)), default=nan) for row in rates]
    axes.stairs(highest, edges, baseline=None, color=DARK, lw=1.4)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", scilimits=(0, 0), useMathText=True)
    axes.set_ylabel("highest\nrate")


def _draw_blocks(figure: Any, axes: Any, history: PhaseHistory, edges: list[int], rates: list[list[float]]) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    peaks = history.peaks()
    positive = [peak for peak in peaks if peak > 0]
    high = max(positive, default=1.0)
    # rates that a schedule takes to zero at its end would use up the colours for all that matters
    low = min(positive, default=1.0) / BELOW
    count = len(history.names)
    frozen = Rectangle((edges[0], 0), edges[-1] - edges[0], count, fc="0.96", ec="0.82", hatch="///", lw=0, zorder=0)
    axes.add_patch(frozen)
    # a block that is trained at a rate of 0, as in a warm-up's first step, is trained
    values = [[nan if isnan(row[index]) else max(row[index], low) for row in rates] for index in range(count)]
    below = any(rate < low for row in rates for rate in row)
    mesh = axes.pcolormesh(edges, range(count + 1), values, norm=LogNorm(low, high), cmap="viridis_r", zorder=1)
    for row in range(1, count):
        axes.axhline(row, color="white", lw=0.8, zorder=2)
    size = max(4.0, min(8.0, 72 * 0.8 * axes.get_window_extent().height / figure.dpi / count))
    axes.set_ylim(0, count)
    axes.set_yticks([index + 0.5 for index in range(count)], history.names, fontsize=size)
    axes.tick_params(axis="y", length=0)
    right = axes.secondary_yaxis("right")
    right.set_yticks(
        [index + 0.5 for index in range(count)],
        ["never" if isnan(peak) else f"{peak:.1e}" for peak in peaks],
        fontsize=size,
    )
    right.tick_params(length=0)
    right.spines["right"].set_visible(False)
    axes.annotate("peak", (1, 1), (4, 3), xycoords="axes fraction", textcoords="offset points", fontsize=size)
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=18, extend="min" if below else "neither")
    bar.set_label("learning rate", fontsize=8)
    bar.ax.tick_params(labelsize=8, which="both")


def _number_phases(axes: Any, history: PhaseHistory, begin: int, end: int) -> None:
    stops = [*(start for _, start in history.starts[1:]), end]
    places, numbers = [], []
    for (phase, start), stop in zip(history.starts, stops, strict=True):
        place = (start + min(stop, end)) / 2
        if not places or place - places[-1] >= LEAST_LABEL * (end - begin):
            places.append(place)
            numbers.append(str(phase))
    above = axes.secondary_xaxis("top")
    above.set_xticks(places, numbers, fontsize=8)
    above.tick_params(length=0)
    above.spines["top"].set_visible(False)
    axes.annotate(
        "phase", (0, 1), (-5, 3), xycoords="axes fraction", textcoords="offset points", ha="right", fontsize=8
    )


def running_median(values: list[float], width: int) -> list[float]:
    """Return the median of each value and its neighbours, as many values; NaN where none of them is finite.

    Args:
        values: The values; what is not finite is passed over.
        width: How many values the median is of, but at the ends, where there are fewer.
    """
    half = width // 2
    near = [values[max(0, index - half) : index + half + 1] for index in range(len(values))]
    finite = [[value for value in some if isfinite(value)] for some in near]
    return [median(some) if some else nan for some in finite]
