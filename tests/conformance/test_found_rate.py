"""The rate that LRFinder finds is the schedule's base, whatever the schedule; a resumed run keeps it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from nets import Net, Save, Seen, Stream, loader, tensors, trainer
from test_rates import SCHEDULERS
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim import lr_scheduler as schedulers
from torch.utils.data import DataLoader, TensorDataset

from lightning_ft_callbacks import DiscriminativeLR, GradualUnfreezing, LRCurve, LRFinder
from lightning_ft_callbacks.block_callback import BlockCallback

MORE_SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "cosine with a floor": lambda o: schedulers.CosineAnnealingLR(o, 12, eta_min=0.003),
    "one cycle with a peak by group": lambda o: schedulers.OneCycleLR(o, [0.02], total_steps=13, div_factor=5),
    "cyclic, triangular2": lambda o: schedulers.CyclicLR(o, 1e-3, 1e-2, step_size_up=3, mode="triangular2"),
    "chained": lambda o: schedulers.ChainedScheduler(
        [schedulers.LinearLR(o, 0.1, 1.0, 4), schedulers.ExponentialLR(o, 0.8)]
    ),
    "warm restarts with a floor": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 4, eta_min=0.001),
    "transformers' cosine with a floor": lambda o: __import__(
        "transformers"
    ).get_cosine_with_min_lr_schedule_with_warmup(o, 3, 13, min_lr_rate=0.1),
}
EVERY = SCHEDULERS | MORE_SCHEDULERS


def data() -> DataLoader:
    """Return four batches that are large enough for a loss without much noise."""
    return loader(1024, 256)


def rates_of(name: str, *callbacks: Callback, epochs: int = 3) -> list[float]:
    """Return the rate that the user's group has in each batch."""
    torch.manual_seed(0)
    module = Net(
        lambda parameters: SGD(parameters, lr=0.01, momentum=0.5),
        lambda o: {"scheduler": EVERY[name](o), "interval": "step"},
    )
    rates: list[float] = []
    module.on_before_optimizer_step = lambda o: rates.append(o.param_groups[0]["lr"])  # type: ignore[method-assign]
    trainer(*callbacks, max_epochs=epochs).fit(module, data(), loader())
    return rates[-4 * epochs :]


@pytest.mark.parametrize("name", EVERY)
def test_the_whole_course_of_the_rate_is_multiplied(name: str) -> None:
    finder = LRFinder(num_steps=40, min_lr=1e-4, max_lr=10.0, suggestion="minimum")
    plain, found = rates_of(name), rates_of(name, finder)
    assert finder.curve is not None
    lr = finder.curve.suggest("minimum")
    assert lr is not None
    peak = 0.02 if "cycle" in name.lower() else 0.01
    assert lr / peak != pytest.approx(1.0, rel=0.05)
    assert found == pytest.approx([rate * lr / peak for rate in plain])


def test_a_plateau_goes_on_from_the_rate_found_and_its_floor_is_scaled() -> None:
    finder = LRFinder(num_steps=40, min_lr=1e-4, max_lr=10.0, suggestion="minimum")
    module = Net(
        lambda parameters: SGD(parameters, lr=0.01),
        lambda o: {
            "scheduler": schedulers.ReduceLROnPlateau(o, factor=0.1, patience=0, threshold=100.0, min_lr=2e-4),
            "monitor": "val/loss",
        },
    )
    seen = Seen(lambda t, _: t.optimizers[0].param_groups[0]["lr"])
    trainer(finder, seen, max_epochs=5, num_sanity_val_steps=0).fit(module, data(), loader())
    assert finder.curve is not None
    lr = finder.curve.suggest("minimum") or 0.0
    assert seen.values[::4] == pytest.approx([lr, lr / 10, lr / 50, lr / 50, lr / 50])


def test_ratios_between_groups_blocks_and_optimizers_are_kept() -> None:
    class Two(Net):
        def __init__(self) -> None:
            super().__init__(dropout=0.0)
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            loss = super().training_step(batch, batch_idx)
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()

        def configure_optimizers(self) -> Any:
            groups = [{"params": self.layers[0].parameters(), "lr": 1e-5}, {"params": self.layers[1:].parameters()}]
            return [SGD(groups, lr=1e-4), AdamW(self.head.parameters(), lr=1e-2)]

    runs = []
    finder = LRFinder(num_steps=40, min_lr=1e-4, max_lr=10.0, suggestion="minimum")
    for callbacks in ([], [finder]):
        torch.manual_seed(0)
        used = Seen(lambda t, _: next(c for c in t.callbacks if isinstance(c, BlockCallback)).block_rates())
        trainer(DiscriminativeLR(0.5), *callbacks, used, max_epochs=1).fit(Two(), data())
        runs.append(used.values[-1])
    assert finder.curve is not None
    lr = finder.curve.suggest("minimum") or 0.0
    assert runs[1] == pytest.approx({block: rate * lr / 1e-2 for block, rate in runs[0].items()})
    assert runs[1]["head"] == pytest.approx(lr)


def test_low_and_high_are_scaled_together() -> None:
    finder = LRFinder(num_steps=40, min_lr=1e-4, max_lr=10.0, suggestion="minimum")
    used = Seen(lambda t, _: next(c for c in t.callbacks if isinstance(c, BlockCallback)).block_rates())
    torch.manual_seed(0)
    module = Net(lambda parameters: AdamW(parameters, lr=0.5), dropout=0.0)
    trainer(DiscriminativeLR(low=1e-3, high=1e-1), finder, used, max_epochs=1).fit(module, data())
    assert finder.curve is not None
    lr = finder.curve.suggest("minimum") or 0.0
    assert used.values[-1]["head"] == pytest.approx(lr)
    assert used.values[-1]["layers.0"] == pytest.approx(lr / 100)


def test_each_phase_has_a_test_of_its_own_with_full_rates() -> None:
    finder = LRFinder(num_steps=40, min_lr=1e-4, max_lr=10.0, suggestion="minimum", each_phase=True)
    curves: list[Any] = []
    bases = Seen(lambda t, _: (curves.append(finder.curve), t.optimizers[0].param_groups[0]["lr"])[1])
    torch.manual_seed(0)
    module = Net(lambda parameters: SGD(parameters, lr=0.01))
    before = tensors(module)
    schedule = [{"train": ["head"], "epochs": 1}, {"train": ["layers.2"], "epochs": 1}, {"train": ["*"]}]
    trainer(finder, GradualUnfreezing(schedule, ramp_steps=3), bases, max_epochs=3).fit(module, data())
    tests = list({id(curve): curve for curve in curves}.values())
    assert [len(curve.lrs) > 10 for curve in tests] == [True] * 3
    assert bases.values[::4] == pytest.approx([curve.suggest("minimum") for curve in tests])
    assert not torch.equal(before["layers.0.0.weight"], module.layers[0][0].weight)


def test_without_each_phase_the_first_test_holds() -> None:
    finder = LRFinder(num_steps=40, min_lr=1e-4, max_lr=10.0, suggestion="minimum")
    bases = Seen(lambda t, _: t.optimizers[0].param_groups[0]["lr"])
    module = Net(lambda parameters: SGD(parameters, lr=0.01))
    trainer(finder, GradualUnfreezing("gradual"), bases, max_epochs=4).fit(module, data())
    assert len(set(bases.values)) == 1


def run(
    folder: Path | None = None, ckpt_path: Path | None = None, **options: Any
) -> tuple[dict[str, Tensor], LRFinder]:
    torch.manual_seed(0)
    module = Net(
        lambda parameters: AdamW(parameters, lr=0.02),
        lambda o: {"scheduler": schedulers.OneCycleLR(o, 0.02, total_steps=16), "interval": "step"},
        dropout=0.0,
    )
    every = list(data())
    finder = LRFinder(num_steps=40, min_lr=1e-4, max_lr=10.0, suggestion="minimum", **options)
    callbacks = [GradualUnfreezing("gradual"), DiscriminativeLR(low=1e-3, high=1e-2), finder]
    fit = trainer(*callbacks, *([Save(folder)] if folder else []), max_epochs=4, num_sanity_val_steps=0)
    fit.fit(
        module,
        DataLoader([every[0]] * 4, batch_size=None),
        ckpt_path=ckpt_path,
        weights_only=True if ckpt_path else None,
    )
    return tensors(module), finder


@pytest.mark.parametrize("each_phase", [False, True])
def test_a_resumed_run_keeps_the_rate_and_ends_as_one_never_stopped(each_phase: bool, tmp_path: Path) -> None:
    whole, first = run(tmp_path, each_phase=each_phase)
    for checkpoint in sorted(tmp_path.glob("*.ckpt")):
        if checkpoint.stem in ("step16", "epoch3"):
            continue
        resumed, finder = run(ckpt_path=checkpoint, each_phase=each_phase)
        assert all(torch.equal(whole[name], resumed[name]) for name in whole), checkpoint.name
        assert finder.curve is not None
        assert first.curve is not None
        assert torch.equal(finder.curve.raw, first.curve.raw)
        assert (finder.found, finder.factor) == (first.found, first.factor)


def test_a_second_fit_and_another_module_are_tested_anew() -> None:
    finder = LRFinder(num_steps=20, min_lr=1e-4, max_lr=10.0)
    curves = []
    for _ in range(2):
        trainer(finder, max_epochs=1).fit(Net(dropout=0.0), loader())
        curves.append(finder.curve)
    assert curves[0] is not curves[1]


def test_fewer_batches_than_steps_go_round() -> None:
    finder = LRFinder(num_steps=40, min_lr=1e-4)
    trainer(finder, max_epochs=1).fit(Net(), loader(num_samples=16))
    assert finder.curve is not None
    assert len(finder.curve.lrs) == 40


def test_spacing_and_range() -> None:
    exponential, linear = LRFinder(min_lr=1e-5, max_lr=1e-1, num_steps=5), LRFinder(num_steps=3, spacing="linear")
    assert exponential.lrs == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
    assert linear.lrs == pytest.approx([1e-7, 0.5, 1.0], rel=1e-3)


def test_the_test_sees_the_losses_of_the_rates_and_a_constant_one_as_it_is() -> None:
    class Constant(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * 0 + 1.0

    finder = LRFinder(num_steps=30)
    rates = Seen(lambda t, _: t.optimizers[0].param_groups[0]["lr"])
    trainer(finder, rates, max_epochs=1).fit(Constant(), data())
    assert finder.curve is not None
    assert finder.curve.losses.tolist() == pytest.approx([1.0] * 30)
    assert finder.curve.suggest() is None
    assert set(rates.values) == {0.01}  # no information: the user's rate stays


def test_a_bad_batch_costs_its_point_only() -> None:
    class Bad(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * float("nan") if batch_idx == 12 else loss

        def on_before_optimizer_step(self, optimizer: Any) -> None:  # as people guard themselves
            if any(not p.grad.isfinite().all() for p in self.parameters() if p.grad is not None):
                optimizer.zero_grad()

    finder = LRFinder(num_steps=60, max_lr=0.1)
    trainer(finder, max_epochs=1, limit_train_batches=8).fit(Bad(), loader(64))
    assert finder.curve is not None
    assert finder.curve.raw.isnan().nonzero().flatten().tolist() == [12]
    assert finder.curve.losses.isfinite().all()


def test_divergence_ends_the_test_early() -> None:
    finder = LRFinder(max_lr=1e6)
    trainer(finder, max_epochs=1).fit(Net(lambda parameters: SGD(parameters, lr=0.1)), loader())
    assert finder.curve is not None
    assert 10 < len(finder.curve.lrs) < 100


def test_curve_picture_and_table_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoardLogger(tmp_path, name="", version="run")
    finder = LRFinder(num_steps=40, min_lr=1e-4, max_lr=10.0)
    trainer(finder, max_epochs=1, logger=[board, CSVLogger(tmp_path / "csv")]).fit(Net(), data())
    assert finder.curve is not None
    printed = capsys.readouterr().out
    for name in ("steep", "valley", "minimum", "slide", "auto *"):
        assert name in printed
    (test,) = json.loads((tmp_path / "run" / "lr_finder.json").read_text())["tests"]
    assert test["lr"] == finder.curve.suggest()
    assert test["lr_before"] == 0.01
    assert test["candidates"] == finder.curve.suggestions()
    assert (test["method"], test["step"], test["phase"], test["applied"]) == ("auto", 0, 0, True)
    assert test["interval"] == list(finder.curve.interval() or ())
    assert test["interval"][0] < test["lr"] < test["interval"][1]
    assert torch.equal(LRCurve.from_dict(test["curve"]).raw, finder.curve.raw)
    with Image.open(tmp_path / "run" / "lr_finder.png") as picture:
        assert len(torch.tensor(list(picture.convert("RGB").getdata())).unique(dim=0)) > 20
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert events.Tags()["images"] == ["lr_finder"]


def test_other_loggers_get_the_picture_as_they_take_it(tmp_path: Path) -> None:
    given: list[Any] = []

    class Other(CSVLogger):
        @property
        def experiment(self) -> Any:
            return super().experiment

    class Images(Other):  # as Weights & Biases
        def log_image(self, key: str, images: list[Any]) -> None:
            given.append((key, [Path(image).name for image in images]))

    class Client:  # as MLflow's
        def log_figure(self, run_id: str, figure: Any, name: str) -> None:
            given.append((run_id, type(figure).__name__, name))

    class Runs(Other):
        run_id = "run"

        @property
        def experiment(self) -> Any:
            return Client()

        def log_metrics(self, metrics: Any, step: int | None = None) -> None: ...

        def save(self) -> None: ...

        def finalize(self, status: str) -> None: ...

    loggers = [kind(tmp_path, name=kind.__name__, version="run") for kind in (CSVLogger, Images, Runs)]
    trainer(LRFinder(num_steps=20), max_epochs=1, logger=loggers).fit(Net(), data())
    assert given == [("lr_finder", ["lr_finder.png"]), ("run", "Figure", "lr_finder.png")]


def test_a_stream_of_unknown_length_works() -> None:
    finder = LRFinder(num_steps=30, min_lr=1e-4, max_lr=10.0)
    trainer(finder, max_epochs=1).fit(Net(), DataLoader(Stream(), batch_size=8))
    assert finder.curve is not None
    assert len(finder.curve.lrs) == 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_lr": 1.0, "max_lr": 0.1}, "expected min_lr to be below max_lr, but got 1.0 and 0.1"),
        ({"min_lr": 0.1, "max_lr": 0.1}, "expected min_lr to be below max_lr, but got 0.1 and 0.1"),
        ({"min_lr": 0.0}, "expected min_lr to be positive, but got 0.0"),
        ({"min_lr": 0}, "expected min_lr to be positive, but got 0"),
        ({"min_lr": "1e-6"}, "expected min_lr to be a number, but got '1e-6'; write 1.0e-06"),
        ({"max_lr": -1.0}, "expected max_lr to be positive, but got -1.0"),
        ({"max_lr": float("inf")}, "expected max_lr to be finite, but got inf"),
        ({"num_steps": 1}, "expected num_steps to be at least 2, but got 1"),
        ({"num_steps": 1e2}, "expected num_steps to be a whole number, but got 100.0; write 100"),
        ({"trial_steps": -1}, "expected trial_steps to be at least 0, but got -1"),
        ({"each_phase": "yes"}, "expected each_phase to be True or False, but got 'yes'"),
        ({"suggestion": "valey"}, "no suggestion 'valey'; did you mean 'valley'"),
        ({"suggestion": "steap"}, "no suggestion 'steap'; did you mean 'steep'"),
        ({"spacing": "log"}, "expected spacing to be 'exponential' or 'linear', but got 'log'"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        LRFinder(**options)


def refused(module: Net, data: Any, message: str, **options: Any) -> None:
    before = tensors(module)
    with pytest.raises(ValueError, match=message):
        trainer(LRFinder(num_steps=20), max_epochs=1, **options).fit(module, data)
    after = tensors(module)
    assert all(torch.equal(before[name], after[name]) for name in before)


class NaN(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * float("nan")


class WithoutLR(torch.optim.Optimizer):
    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})


class Fetching(Net):
    def training_step(self, dataloader_iter: Any) -> Tensor:  # type: ignore[override]
        batch, index, _ = next(dataloader_iter)
        return super().training_step(batch, index)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (NaN, "loss of NaN is nan at the first step already.*look at the data"),
        (lambda: Net(WithoutLR), "WithoutLR has no lr"),
        (lambda: Net(lambda parameters: SGD(parameters, lr=0.0)), "is 0, and no factor changes that"),
        (Fetching, "takes dataloader_iter"),
    ],
)
def test_a_module_without_a_rate_to_find_is_refused(make: Callable[[], Net], message: str) -> None:
    refused(make(), loader(), message)


def test_data_that_can_be_read_once_is_refused() -> None:
    refused(Net(), iter(list(loader())), "can be read once only")


def test_no_training_data_is_refused() -> None:
    empty = DataLoader(TensorDataset(torch.empty(0, 6), torch.empty(0, dtype=torch.long)))
    refused(Net(), empty, "no training batches")


def test_a_module_that_sets_its_own_rates_is_refused() -> None:
    class Own(Net):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:  # type: ignore[override]
            for group in optimizer.param_groups:
                group["lr"] = 0.5
            super().optimizer_step(epoch, batch_idx, optimizer, closure)

    refused(Own(), loader(), "sets learning rates itself")


def test_nothing_is_looked_for_outside_fit() -> None:
    finder = LRFinder()
    fit: Trainer = trainer(finder)
    fit.validate(Net(), loader(), verbose=False)
    assert finder.curve is None
    assert isinstance(fit.lightning_module, nn.Module)
