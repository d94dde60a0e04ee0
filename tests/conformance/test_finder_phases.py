"""What LRFinder tests, and what its rate drives, where GradualUnfreezing trains in phases."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from nets import Net, Seen, loader, tensors, trainer
from test_range_test import LOADERS, Watchful, observe, same
from test_ranks import weights
from torch import Tensor
from torch.optim import SGD

from lightning_ft_callbacks import DiscriminativeLR, FrozenPrefixCache, GradualUnfreezing, LRFinder, lr_find

OPTIONS: dict[str, Any] = {"num_steps": 40, "min_lr": 1e-4, "max_lr": 10.0, "suggestion": "minimum"}
# the head, then two blocks that no phase trains together
APART = [{"train": ["head"], "epochs": 1}, {"train": ["layers.1"], "epochs": 1}, {"train": ["layers.2"]}]
LP_FT = [{"train": ["head"], "epochs": 1}, {"train": ["*"]}]


class Telling(Net):
    """Notes which blocks each step trains, and whether the lowest is in train mode."""

    told: ClassVar[list[tuple[set[str], bool]]] = []  # of the class: what a module holds is put back

    def __init__(self) -> None:
        super().__init__(lambda parameters: SGD(parameters, lr=0.01))
        self.told.clear()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        names = {name.rpartition(".")[0] for name, p in self.named_parameters() if p.requires_grad}
        self.told.append((names, self.layers[0].training))
        return super().training_step(batch, batch_idx)


def steps_of(schedule: Any, finder: LRFinder, *callbacks: Callback, epochs: int = 3) -> list[tuple[set[str], bool]]:
    """Return what each training step, of tests too, trained, and whether the lowest block was in train mode."""
    torch.manual_seed(0)
    module = Telling()
    begun: list[int] = []

    class Begins(Callback):
        def on_train_start(self, *_: Any) -> None:
            begun.append(len(module.told))

    callbacks = (Begins(), GradualUnfreezing(schedule), finder, *callbacks)
    trainer(*callbacks, max_epochs=epochs).fit(module, loader(1024, 256))
    return module.told[begun[0] :]


@pytest.mark.parametrize("schedule", ["gradual", "chain_thaw", "lp_ft", LP_FT])
def test_one_test_for_all_phases_trains_what_the_widest_trains_and_then_the_first_phase_trains_its_own(
    schedule: Any,
) -> None:
    finder = LRFinder(**OPTIONS)
    steps = steps_of(schedule, finder, epochs=6)
    assert finder.curve is not None
    num_tested = len(finder.curve.lrs)
    everything = {f"layers.{n}.{part}" for n in range(3) for part in (0, 1)} | {"head"}
    assert steps[: num_tested - 1] == [(everything, True)] * (num_tested - 1)
    assert steps[-4 * 6 :][:4] == [({"head"}, False)] * 4


def test_where_no_phase_contains_the_others_the_test_trains_all_that_any_does() -> None:
    finder = LRFinder(**OPTIONS)
    steps = steps_of(APART, finder)
    assert steps[0][0] == {"layers.1.0", "layers.1.1", "layers.2.0", "layers.2.1", "head"}
    (test,) = finder.state_dict()["report"]
    assert test["tested"] == "layers.1 to head, which phases 0 and later train together"


def test_with_each_phase_a_test_trains_what_its_phase_does() -> None:
    steps = steps_of(LP_FT, finder := LRFinder(each_phase=True, **OPTIONS), epochs=2)
    assert finder.curve is not None
    assert steps[0] == ({"head"}, False)
    assert [test["tested"] for test in finder.state_dict()["report"]] == [
        "head, which phase 0 trains",
        "all, which phase 1 trains",
    ]


def test_what_was_tested_is_said_in_a_line_the_table_the_file_and_the_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    texts: list[str] = []

    def savefig(figure: Figure, path: Path, **_: Any) -> None:
        Path(path).touch()
        texts.extend(part.get_text() for part in figure.findobj(Text))

    monkeypatch.setattr(Figure, "savefig", savefig)
    logger = CSVLogger(tmp_path, name="", version="run")
    trainer(GradualUnfreezing(LP_FT), LRFinder(**OPTIONS), max_epochs=2, logger=logger).fit(
        Telling(), loader(1024, 256)
    )
    (test,) = json.loads((tmp_path / "run" / "lr_finder.json").read_text())["tests"]
    assert test["tested"] == "all, which phase 1 trains"
    assert test["blocks"] == ["layers.0", "layers.1", "layers.2", "head"]
    assert "tested: all, which phase 1 trains" in capsys.readouterr().out
    assert any("all, which phase 1 trains" in text for text in texts)


def test_lr_find_tests_what_the_widest_phase_trains_and_leaves_the_module_as_it_was() -> None:
    module = Telling()
    before = tensors(module)
    curve = lr_find(trainer(GradualUnfreezing(LP_FT), max_epochs=2), module, loader(1024, 256), **OPTIONS)
    assert len(module.told[-1][0]) == 7
    assert len(curve.lrs) > 10
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(part.training for part in module.modules())


def test_no_trace_of_a_test_that_trains_what_later_phases_do() -> None:
    runs = []
    for finder in (False, True):
        torch.manual_seed(0)
        callbacks = [GradualUnfreezing(LP_FT, ramp_steps=2), DiscriminativeLR(0.5)]
        seen, find = observe(Watchful(), LOADERS["shuffled"](), *callbacks, finder=finder)
        runs.append(seen)
    assert find.state_dict()["report"][0]["tested"] == "layers.0 to head, which phase 1 trains"
    same(*runs)


def test_a_cache_of_frozen_blocks_keeps_what_it_keeps_without_a_test(recwarn: pytest.WarningsRecorder) -> None:
    runs = []
    for finder in ([], [LRFinder(apply=False, **OPTIONS)]):
        torch.manual_seed(0)
        module = Net(lambda parameters: SGD(parameters, lr=0.01), dropout=0.0, norm=False)
        schedule = [{"train": ["head"], "epochs": 2}, {"train": ["*"]}]
        shares = Seen(lambda t, _: t.callbacks[1]._fit.part(("train", 0)).share_held)
        callbacks = [GradualUnfreezing(schedule), FrozenPrefixCache(), *finder, shares]
        trainer(*callbacks, max_epochs=3).fit(module, loader(64))
        runs.append((tensors(module), shares.values))
    assert runs[0][1] == runs[1][1]
    assert 1.0 in runs[1][1]
    assert all(torch.equal(runs[0][0][name], tensor) for name, tensor in runs[1][0].items())
    assert not [found for found in recwarn if "FrozenPrefixCache" in str(found.message)]


class Flat(Net):
    """Learns in its first phase alone: later ones have a loss that no rate changes."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss if not self.layers[0][0].weight.requires_grad else loss * 0 + 1.0


def test_a_phase_that_says_nothing_has_the_rate_before_any_test_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    finder = LRFinder(each_phase=True, **OPTIONS)
    bases = Seen(lambda t, _: t.optimizers[0].param_groups[0]["lr"])
    torch.manual_seed(0)
    module = Flat(lambda parameters: SGD(parameters, lr=0.01))
    with caplog.at_level("INFO"):
        trainer(GradualUnfreezing(LP_FT), finder, bases, max_epochs=2).fit(module, loader(1024, 256))
    first, second = finder.state_dict()["report"]
    assert bases.values[0] == pytest.approx(first["lr"])
    assert first["lr"] != pytest.approx(0.01, rel=0.1)
    assert bases.values[-1] == pytest.approx(0.01)
    assert (second["lr"], second["applied"]) == (None, False)
    assert second["lr_used"] == pytest.approx(0.01)
    assert "the learning rate is the one that was set before any test again, 0.01" in caplog.text


def test_a_resumed_run_goes_back_to_the_rate_before_any_test_too(tmp_path: Path) -> None:
    def fit(checkpoint: Path | None = None) -> list[float]:
        torch.manual_seed(0)
        finder = LRFinder(each_phase=True, **OPTIONS)
        bases = Seen(lambda t, _: t.optimizers[0].param_groups[0]["lr"])
        done = trainer(GradualUnfreezing(LP_FT), finder, Saves(), bases, max_epochs=2)
        module = Flat(lambda parameters: SGD(parameters, lr=0.01))
        done.fit(module, loader(1024, 256), ckpt_path=checkpoint, weights_only=True if checkpoint else None)
        return bases.values

    class Saves(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "step2.ckpt")

    whole = fit()
    resumed = fit(tmp_path / "step2.ckpt")
    assert resumed == whole[2:]


def test_a_fit_without_phases_after_one_with_them_is_in_phase_0() -> None:
    finder = LRFinder(each_phase=True, apply=False, num_steps=20, trial_steps=0)
    trainer(GradualUnfreezing([{"train": ["head"], "steps": 1}, {"train": ["*"]}]), finder, max_epochs=1).fit(
        Telling(), loader()
    )
    trainer(finder, max_epochs=1).fit(Telling(), loader())
    (test,) = finder.state_dict()["report"]
    assert (test["phase"], test["tested"]) == (0, None)


def test_two_ranks_test_what_later_phases_train_as_one_process_and_then_agree(tmp_path: Path) -> None:
    first, second = weights("lr_finder_once", tmp_path / "two")
    (alone,) = weights("one_lr_finder_once", tmp_path / "one")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(first["found"]) == 1
    torch.testing.assert_close(first["curve"], alone["curve"], rtol=1e-3, atol=1e-4)
    for name, tensor in alone.items():
        torch.testing.assert_close(first[name], tensor, rtol=2e-3, atol=1e-4)
