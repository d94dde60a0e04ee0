"""lr_finder.png: what was measured, what `auto` looks at, and what is suggested, all inside and readable."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from matplotlib.text import Text
from nets import Net, loader, trainer

from lightning_ft_callbacks import GradualUnfreezing, LRCurve, LRFinder
from lightning_ft_callbacks.range_test import lr_report
from lightning_ft_callbacks.range_test.lr_picture import figure_of, spread
from lightning_ft_callbacks.range_test.lr_suggestions import medians

LRS = torch.logspace(-6, 0, 90, dtype=torch.float64)


def curve(noise: float = 0.02) -> LRCurve:
    """Return a curve that falls around 1e-3 and explodes behind 1e-1."""
    draw = torch.Generator().manual_seed(0)
    rate = LRS.log10()
    losses = 2 - (rate + 3).mul(4).sigmoid() + 200 * (rate + 1).relu() ** 2
    return LRCurve.of_raw(LRS, losses + noise * torch.randn(len(LRS), generator=draw))


def labels_of(figure: Any) -> list[Any]:
    return [text for text in figure.axes[0].texts if text.get_text()]


def test_the_median_that_auto_looks_at_is_drawn_at_its_rates() -> None:
    shown = curve()
    lines = {line.get_label(): line for line in figure_of(shown, "auto", shown.suggest()).axes[0].lines}
    median = lines["median of 7"]
    assert list(median.get_ydata()) == medians(shown.raw).tolist()
    assert list(median.get_xdata()) == shown.lrs[3:-3].tolist()
    assert median.get_linewidth() > lines["running average"].get_linewidth()


def test_labels_neither_overlap_nor_leave_the_picture() -> None:
    shown = curve()
    figure = figure_of(shown, "auto", shown.suggest(), 1e-3, "head")
    figure.canvas.draw()
    labels = labels_of(figure)
    assert {label.get_text().split("\n")[0] for label in labels} == {
        *("auto", "steep", "valley", "minimum", "slide", "before")
    }
    boxes = sorted((Text.get_window_extent(label) for label in labels), key=lambda box: box.x0)
    page = figure.bbox
    assert all(page.x0 <= box.x0 and box.x1 <= page.x1 and box.y1 <= page.y1 for box in boxes)
    assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))


@pytest.mark.parametrize(
    ("places", "found"),
    [
        ([0.2, 0.5], [0.2, 0.5]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.0, 0.0, 0.9], [0.05, 0.15, 0.9]),
        ([0.99, 1.0], [0.85, 0.95]),
        ([0.4, 0.41, 0.45, 0.8], [0.32, 0.42, 0.52, 0.8]),
        ([], []),
    ],
)
def test_labels_move_as_little_as_they_must(places: list[float], found: list[float]) -> None:
    assert spread(places, 0.1) == pytest.approx(found)


def test_what_explodes_leaves_room_for_the_fall_and_is_marked_at_the_top() -> None:
    shown = curve()
    axes = figure_of(shown, "auto", shown.suggest()).axes[0]
    low, high = axes.get_ylim()
    assert low < 1 < 2 < high < 3
    lines = {line.get_label(): line for line in axes.lines}
    points, above = lines["a step"], lines["above"]
    assert len(points.get_xdata()) + len(above.get_xdata()) == len(LRS)
    assert set(above.get_ydata()) == {high}
    assert axes.get_xlim()[0] < LRS[0]
    assert axes.get_xlim()[1] > LRS[-1]


def test_trials_are_drawn_with_their_errors_and_the_chosen_one_is_filled() -> None:
    rate = curve().suggest()
    assert rate is not None
    shown = replace(curve(), trials={rate: torch.tensor([0.9, 1.1]), 3 * rate: torch.tensor([math.nan, 1.0])})
    axes = figure_of(shown, "auto", rate).axes[0]
    (bars,) = axes.containers
    diamond, *_ = bars.lines
    assert (diamond.get_xdata()[0], diamond.get_ydata()[0]) == (rate, pytest.approx(1.0))
    assert diamond.get_markerfacecolor() != "white"
    (exploded,) = [line for line in axes.lines if line.get_marker() == "X"]
    assert exploded.get_xdata()[0] == 3 * rate
    assert exploded.get_ydata()[0] == axes.get_ylim()[1]


def test_the_title_says_what_was_tested_and_what_came_of_it() -> None:
    shown = curve()
    title = figure_of(shown, "auto", 1e-3, tested="head").get_suptitle()
    assert title == "Range test of 90 steps, training head\nauto suggests 0.001"
    flat = LRCurve.of_raw(LRS, torch.rand(len(LRS), generator=torch.Generator().manual_seed(0)))
    said = "no rate stands out: the loss does not fall by more than its noise at any rate"
    assert said in flat.plot().get_suptitle()
    assert LRCurve([], []).plot().get_suptitle().startswith("Range test of 0 steps\nno rate stands out")


def test_a_curve_tells_itself_in_a_line() -> None:
    assert repr(curve()).startswith("LRCurve(90 steps from 1e-06 to 1; suggests 0.00")
    assert repr(LRCurve([1e-3], [2.0])).endswith("the test has 1 points to look at, fewer than 10)")


@pytest.mark.parametrize(
    ("callbacks", "tested"),
    [
        ([], None),
        ([GradualUnfreezing("lp_ft")], "all, which phase 1 trains"),
        ([GradualUnfreezing([{"train": ["*.1", "head"]}])], "layers.1, head, which phase 0 trains"),
    ],
)
def test_the_file_says_what_was_trained_in_the_test(callbacks: list[Any], tested: str | None, tmp_path: Path) -> None:
    finder = LRFinder(num_steps=12, trial_steps=0)
    trainer(*callbacks, finder, max_epochs=2, logger=CSVLogger(tmp_path)).fit(Net(), loader())
    folder = tmp_path / "lightning_logs" / "version_0"
    (test,) = json.loads((folder / "lr_finder.json").read_text())["tests"]
    assert test["tested"] == tested
    assert (folder / "lr_finder.png").stat().st_size > 1000


def test_without_matplotlib_the_numbers_are_written_and_a_line_says_so(tmp_path: Path, monkeypatch: Any) -> None:
    def missing(*_: Any) -> None:
        raise ImportError

    said: list[str] = []
    monkeypatch.setattr(lr_report, "figure_of", missing)
    monkeypatch.setattr(lr_report, "rank_zero_info", said.append)
    trainer(LRFinder(num_steps=12, trial_steps=0), max_epochs=1, logger=CSVLogger(tmp_path)).fit(Net(), loader())
    assert said == ["LRFinder: lr_finder.png wants matplotlib, which is not installed"]
    assert (tmp_path / "lightning_logs" / "version_0" / "lr_finder.json").is_file()
