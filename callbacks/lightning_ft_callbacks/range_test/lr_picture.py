"""The picture of a range test: losses against rates, what is suggested, and what trials of it came to."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

from lightning_ft_callbacks.lr_curve import HALF, MOST, LRCurve
from lightning_ft_callbacks.range_test.lr_suggestions import NEIGHBOURS, medians

WIDTH, HEIGHT = 8.0, 4.9  # inches
LABEL = 0.125  # of the width, that a suggestion's label takes
FIRST = 10  # losses that tell where the fall begins
ABOVE, AROUND = 0.6, 1.2  # of the fall, shown above its beginning, and where there is none
# colours that all eyes tell apart (Okabe and Ito 2008); line styles and markers do it in grey
LOCAL, AVERAGE, CHOSEN, TRIAL = "#0072B2", "0.45", "#D55E00", "#009E73"


def figure_of(curve: LRCurve, method: str, found: float | None, before: float | None = None, tested: str = "") -> Any:
    """Return a matplotlib figure of a range test.

    Points are the losses of single steps, those above the picture small triangles at its top. The thick line is what
    ``auto`` looks at, the median of each loss and its neighbours; the dashed one the running average that fastai's
    suggestions look at. The band goes from the rate at which the loss has fallen by half to that of nine tenths.

    Args:
        curve: The test's curve.
        method: Whose suggestion was asked for.
        found: What it is; None where the curve says nothing.
        before: The rate that the user chose; None to leave it out.
        tested: What was trained in the test, in words.

    Raises:
        ImportError: Without matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    axes.set_xscale("log")
    marked = curve.suggestions() | ({"before": before} if before else {})
    low, high = _height(curve)
    axes.set_ylim(low, high)
    known = [*curve.lrs.tolist(), *curve.trials, *marked.values()]
    if known:
        axes.set_xlim(min(known) / 1.25, max(known) * 1.25)
    _draw_losses(axes, curve, high)
    _draw_trials(axes, curve, found, high)
    _draw_marks(axes, marked, method)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    figure.suptitle(_title(curve, method, found, tested), fontsize=10)
    if known:
        figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def _title(curve: LRCurve, method: str, found: float | None, tested: str) -> str:
    steps = f"Range test of {len(curve.lrs)} steps{f', training {tested}' if tested else ''}"
    said = f"no rate stands out: {curve.why_not}" if found is None else f"{method} suggests {found:.2g}"
    return f"{steps}\n{said}"


def _height(curve: LRCurve) -> tuple[float, float]:
    """Return the lowest and the highest loss shown: the whole fall, and the beginning of an explosion."""
    raw = curve.raw[curve.raw.isfinite()]
    if not len(raw):
        return 0.0, 1.0
    trials = [losses.mean() for losses in curve.trials.values() if losses.isfinite().all()]
    low = min(raw.min().item(), *(loss.item() for loss in trials)) if trials else raw.min().item()
    start = raw[:FIRST].median().item()
    fall = max(start - low, 1e-6 * abs(start), 1e-12)
    return low - 0.08 * fall, start + (ABOVE if curve.informative else AROUND) * fall


def _draw_losses(axes: Any, curve: LRCurve, high: float) -> None:
    finite = curve.raw.isfinite()
    lrs, raw = curve.lrs[finite], curve.raw[finite]
    inside = raw <= high
    axes.plot(lrs[inside], raw[inside], ".", color="0.7", ms=5, label="a step", zorder=1)
    if not inside.all():
        axes.plot(
            lrs[~inside], [high] * int((~inside).sum()), "^", color="0.7", ms=5, clip_on=False, label="above", zorder=1
        )
    axes.plot(curve.lrs, curve.losses, color=AVERAGE, lw=1.1, ls="--", label="running average", zorder=2)
    if len(raw) < NEIGHBOURS:
        return
    local = medians(raw)
    middle = lrs[NEIGHBOURS // 2 :][: len(local)]
    axes.plot(middle, local, color=LOCAL, lw=2.2, label=f"median of {NEIGHBOURS}", zorder=3)
    if (interval := curve.interval()) is not None:
        axes.axvspan(*interval, color=CHOSEN, alpha=0.16, lw=0, label=f"{HALF:.0%} to {MOST:.0%} of its fall")
        levels = [local[int((middle <= lr).sum()) - 1].item() for lr in interval]
        axes.plot(interval, levels, "o", color=LOCAL, mfc="white", mew=1.6, ms=6, zorder=4)


def _draw_trials(axes: Any, curve: LRCurve, found: float | None, high: float) -> None:
    label: str | None = "loss after a trial (± standard error)"
    for lr, losses in curve.trials.items():
        filled = TRIAL if lr == found else "white"
        style: dict[str, Any] = {"color": TRIAL, "mec": TRIAL, "mfc": filled, "mew": 1.6, "ms": 8, "zorder": 5}
        if losses.isfinite().all() and losses.mean() <= high:
            error = losses.std().item() / len(losses) ** 0.5 if len(losses) > 1 else 0.0
            axes.errorbar(lr, losses.mean().item(), error, marker="D", capsize=3, ls="", label=label, **style)
            label = None
        else:
            axes.plot([lr], [high], "X", clip_on=False, **style)


def _draw_marks(axes: Any, marked: dict[str, float], method: str) -> None:
    """Draw a line a suggestion, and above the picture its name, with room between them."""
    ordered = sorted(marked.items(), key=lambda one: one[1])
    shares = [axes.transAxes.inverted().transform(axes.transData.transform((lr, 1.0)))[0] for _, lr in ordered]
    for (name, lr), share, place in zip(ordered, shares, spread(shares, LABEL), strict=True):
        chosen = name == method
        style: dict[str, Any] = {"color": CHOSEN, "lw": 2.0} if chosen else {"color": "0.55", "lw": 0.9, "ls": ":"}
        axes.axvline(lr, zorder=2.5 if chosen else 0, **style)
        axes.annotate(
            f"{name}\n{lr:.2g}",
            (share, 1.0),
            (place, 1.07),
            xycoords="axes fraction",
            textcoords="axes fraction",
            ha="center",
            va="bottom",
            fontsize=8,
            fontweight="bold" if chosen else "normal",
            color=CHOSEN if chosen else "0.25",
            arrowprops={"arrowstyle": "-", "color": style["color"], "lw": 0.9, "shrinkB": 0, "relpos": (0.5, 0)},
        )


def spread(places: Sequence[float], width: float) -> list[float]:
    """Return where labels stand so that none covers another, together as near as can be to the places they belong to.

    Args:
        places: The middles that they want, rising, in [0, 1].
        width: The width of a label.
    """
    # without their widths labels may meet but not cross: those that would, meet at their mean (isotonic regression)
    groups: list[list[float]] = []
    for index, place in enumerate(places):
        groups.append([place - index * width])
        while len(groups) > 1 and mean(groups[-2]) > mean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    least, most = width / 2, 1 + width / 2 - len(places) * width
    met = [min(max(mean(group), least), most) for group in groups for _ in group]
    return [place + index * width for index, place in enumerate(met)]
