"""phases.png: what was trained, from when to when, at which rate, and to what losses."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from nets import Net, loader, trainer

from lightning_ft_callbacks import DiscriminativeLR, GradualUnfreezing
from lightning_ft_callbacks.phases import phase_picture
from lightning_ft_callbacks.phases.phase_history import MOST_ENTRIES, PhaseHistory
from lightning_ft_callbacks.phases.phase_picture import figure_of, running_median


def falling(num_steps: int, starts: dict[int, int], decay: float = 0.8, blocks: int = 4) -> PhaseHistory:
    """Return a fit whose rate falls to almost zero, and whose phase n trains the n + 1 highest blocks."""
    history = PhaseHistory([f"block{number}" for number in range(blocks)])
    for step in range(1, num_steps + 1):
        phase = max(number for number, start in starts.items() if start < step)
        history.begin(phase, step - 1)
        if history.wants(step):
            base = 1e-3 * (1 - step / num_steps) + 1e-9
            trained = range(blocks - 1 - phase, blocks)
            history.add(step, {f"block{n}": base * decay ** (blocks - 1 - n) for n in trained}, 1 / step)
    return history


def rendered(history: PhaseHistory, end: int) -> tuple[Any, Any]:
    """Return a fit's figure, laid out, and the colours of its cells, shape (block, cell, channel)."""
    figure = figure_of(history, end)
    figure.canvas.draw()
    mesh = next(one for one in figure.axes[-2].collections if hasattr(one, "get_coordinates"))
    values = mesh.get_array()
    return figure, mesh.to_rgba(values)


def test_phases_begin_at_their_true_steps_however_many_steps_are_kept() -> None:
    history = falling(5000, {0: 0, 1: 1703, 2: 1704, 3: 4001})
    assert MOST_ENTRIES <= len(history.steps) <= 2 * MOST_ENTRIES
    edges, rates = history.cells(5000)
    assert (edges[0], edges[-1]) == (0, 5000)
    for block, start in ((3, 0), (2, 1703), (1, 1704), (0, 4001)):
        first = next(index for index, row in enumerate(rates) if not math.isnan(row[block]))
        assert edges[first] == start
    figure = figure_of(history, 5000)
    lines = [
        line.get_xdata()[0]
        for line in figure.axes[0].lines
        if line.get_linestyle() != "-" and len(line.get_xdata()) == 2
    ]
    assert lines == [1703, 1704, 4001]


def test_the_axis_ends_with_the_last_step() -> None:
    history = falling(48, {0: 0, 1: 24})
    figure = figure_of(history, 48)
    assert all(axes.get_xlim() == (0, 48) for axes in figure.axes[:3])


def test_the_last_steps_of_a_schedule_leave_colours_for_a_decay() -> None:
    history = falling(300, {3: 0}, decay=0.8)
    _, colours = rendered(history, 300)
    middle = colours[:, colours.shape[1] // 3]
    grey = middle[:, :3] @ [0.299, 0.587, 0.114]
    for below, above in pairwise(range(4)):
        assert abs(middle[below] - middle[above]).max() > 0.04
        assert grey[below] - grey[above] > 0.02  # the higher rate is the darker one, in print too


def test_a_block_trained_at_a_rate_of_zero_is_not_shown_as_frozen() -> None:
    history = PhaseHistory(["low", "head"])
    history.begin(0, 0)
    history.add(1, {"head": 0.0})
    history.add(2, {"head": 0.1})
    _, colours = rendered(history, 2)
    assert colours[1, :, 3].tolist() == [1.0, 1.0]  # drawn
    assert colours[0, :, 3].tolist() == [0.0, 0.0]  # not drawn: the hatched ground is seen


def test_the_first_block_is_lowest_with_its_peak_beside_it() -> None:
    history = PhaseHistory(["low", "mid", "head"])
    history.begin(0, 0)
    history.add(1, {"mid": 0.1, "head/pg0": 0.1, "head/pg1": 0.2})
    figure = figure_of(history, 1)
    blocks = figure.axes[-2]
    assert [label.get_text() for label in blocks.get_yticklabels()] == ["low", "mid", "head"]
    (right,) = blocks.child_axes
    assert [label.get_text() for label in right.get_yticklabels()] == ["never", "1.0e-01", "2.0e-01"]


def test_every_phase_has_its_number_where_there_is_room_and_all_text_is_inside() -> None:
    history = falling(260, {number: 10 * number for number in range(26)}, blocks=26)
    history.add_validation(260, {"val/loss": 0.4, "val/accuracy": 0.7})
    figure, _ = rendered(history, 260)
    above = figure.axes[0].child_axes[0]
    assert [label.get_text() for label in above.get_xticklabels()] == [str(number) for number in range(26)]
    boxes = [label.get_window_extent() for label in above.get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert 0 <= drawn.x0 < drawn.x1 <= width
    assert 0 <= drawn.y0 < drawn.y1 <= height


def test_one_step_that_explodes_does_not_flatten_the_losses() -> None:
    history = falling(100, {0: 0})
    history._losses[30] = 1e6
    assert figure_of(history, 100).axes[0].get_ylim()[1] < 2


def test_the_loss_and_the_score_of_validations_are_drawn() -> None:
    history = falling(10, {0: 0})
    history.add_validation(5, {"val_loss": 0.5, "val_acc": 0.7, "val_f1": 0.6}, monitor="val_loss")
    history.add_validation(10, {"val_loss": 0.4, "val_acc": 0.8, "val_f1": 0.7}, monitor="val_loss")
    assert (history.loss_name, history.score_name) == ("val_loss", "val_acc")
    losses, scores, *_ = figure_of(history, 10).axes
    assert ([5, 10], [0.5, 0.4]) in [(list(line.get_xdata()), list(line.get_ydata())) for line in losses.lines]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in scores.lines] == [([5, 10], [0.7, 0.8])]
    asked = falling(10, {0: 0})
    asked.add_validation(5, {"val_loss": 0.5, "val_acc": 0.7, "val_f1": 0.6}, monitor="val_f1")
    assert asked.score_name == "val_f1"


def test_a_checkpoint_brings_the_history_back() -> None:
    history = falling(1000, {0: 0, 1: 300})
    history.add_validation(500, {"loss": 1.0})
    again = PhaseHistory(history.names)
    again.load(history.state())
    assert again.state().keys() == history.state().keys()
    assert torch.equal(again.state()["entries"].nan_to_num(), history.state()["entries"].nan_to_num())
    assert again.cells(1000)[0] == history.cells(1000)[0]
    assert again.wants(1001) == history.wants(1001)
    assert (again.losses, again.starts) == (history.losses, history.starts)
    other = PhaseHistory(["another"])
    other.load(history.state())
    assert not other.steps


def test_the_median_of_neighbours_passes_over_what_is_not_finite() -> None:
    assert running_median([1.0, math.nan, 3.0, math.inf, 5.0], 3) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert math.isnan(running_median([math.nan], 3)[0])


def test_a_fit_of_fewer_steps_than_are_logged_has_its_picture(tmp_path: Path) -> None:
    from PIL import Image

    callbacks = [GradualUnfreezing(), DiscriminativeLR(0.5)]
    fit = trainer(*callbacks, max_epochs=4, logger=CSVLogger(tmp_path), log_every_n_steps=50)
    fit.fit(Net(), loader())
    with Image.open(tmp_path / "lightning_logs" / "version_0" / "phases.png") as picture:
        pixels = torch.tensor(list(picture.convert("RGB").get_flattened_data()))
    assert len(pixels.unique(dim=0)) > 20  # drawn, and in colours
    history = callbacks[0]._history
    assert history.steps == list(range(1, 17))
    assert history.starts == [(0, 0), (1, 4), (2, 8), (3, 12)]


def test_without_matplotlib_a_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phase_picture, "figure_of", lambda *_: None)
    said: list[str] = []
    monkeypatch.setattr("lightning_ft_callbacks.gradual_unfreezing.rank_zero_info", said.append)
    trainer(GradualUnfreezing("full"), max_epochs=1, logger=CSVLogger(tmp_path)).fit(Net(), loader())
    assert said == ["GradualUnfreezing: phases.png wants matplotlib, which is not installed"]


def test_a_resumed_run_draws_the_whole_fit(tmp_path: Path) -> None:
    first = GradualUnfreezing()
    fit = trainer(first, max_epochs=2, logger=CSVLogger(tmp_path / "a"))
    fit.fit(Net(), loader())
    fit.save_checkpoint(tmp_path / "two.ckpt")
    second = GradualUnfreezing()
    trainer(second, max_epochs=4, logger=CSVLogger(tmp_path / "b")).fit(
        Net(), loader(), ckpt_path=tmp_path / "two.ckpt", weights_only=True
    )
    assert second._history is not None
    assert second._history.steps == list(range(1, 17))
    assert second._history.starts == [(0, 0), (1, 4), (2, 8), (3, 12)]


def test_a_second_fit_of_a_trainer_goes_on_in_the_same_picture(tmp_path: Path) -> None:
    callback, module = GradualUnfreezing(), Net()
    fit = trainer(callback, max_epochs=2, logger=CSVLogger(tmp_path))
    fit.fit(module, loader())
    fit.fit_loop.max_epochs = 4
    fit.fit(module, loader())
    assert callback._history is not None
    assert callback._history.steps == list(range(1, 17))
