"""Law 8 where state hides: in data, hooks and loggers, in the middle of an epoch, and after ``lr_find``."""

import json
import multiprocessing
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.loggers import CSVLogger
from nets import WIDTH, Net, loader, tensors, trainer
from schedulefree import AdamWScheduleFree
from test_optimizers import Switching
from test_range_test import Everything, same
from timm.optim import Lookahead
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from lightning_ft_callbacks import GradualUnfreezing, LRFinder, lr_find
from lightning_ft_callbacks.range_test.range_test import RangeTest

SAMPLES = loader(64).dataset


class Observed(Net):
    """A net that says what everybody can see."""

    def observed(self) -> dict[str, Any]:
        return tensors(self)


class Buffered(Observed):
    """Assigns a buffer anew at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.mean = 0.9 * self.mean + 0.1 * loss.detach()
        return loss * (1 + self.mean)


class Prepared(Observed):
    """Makes what its steps need when training, an epoch and a batch start."""

    def on_train_start(self) -> None:
        self.weight = torch.rand(1)

    def on_train_epoch_start(self) -> None:
        self.losses: list[Tensor] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.batch = batch

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002
        loss = super().training_step(self.batch, batch_idx) * self.weight
        self.losses.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        assert len(self.losses) == 8


class LoadsLate(Observed):
    """Its data are there once ``fit`` has started, which draws random numbers."""

    def on_fit_start(self) -> None:
        self.noise = torch.rand(1)

    def train_dataloader(self) -> DataLoader:
        return DataLoader([(x + self.noise, y) for x, y in SAMPLES], 8, shuffle=True)


class SwitchingObserved(Switching, Observed):
    """Switches its optimizer to train mode when an epoch starts."""


class Noisy(Dataset):
    """Draws from a generator of its own."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor(self.random.normal(size=WIDTH), dtype=torch.float32), index % 2


class Collate:
    """Draws from a generator of its own."""

    def __init__(self) -> None:
        self.random = torch.Generator().manual_seed(0)

    def __call__(self, rows: list[Any]) -> tuple[Tensor, Tensor]:
        inputs = torch.stack([row[0] for row in rows])
        return inputs + torch.rand(inputs.shape, generator=self.random), torch.stack([row[1] for row in rows])


class Augmenting(LightningDataModule):
    """Draws on the device, and counts its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.random, self.count = torch.Generator().manual_seed(0), 0

    def train_dataloader(self) -> DataLoader:
        return DataLoader(SAMPLES, 8)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ARG002
        self.count += 1
        return batch[0] + self.count * torch.rand(batch[0].shape, generator=self.random), batch[1]


class Epochs(IterableDataset):
    """Has another order each epoch, which it counts."""

    def __init__(self) -> None:
        self.epoch = 0

    def __iter__(self) -> Iterator[Any]:
        self.epoch += 1
        order = torch.randperm(64, generator=torch.Generator().manual_seed(self.epoch))
        return iter([SAMPLES[index] for index in order.tolist()])


class OwnLoader:
    """Batches from no DataLoader, in another order each epoch."""

    def __init__(self) -> None:
        self.samples = Epochs()

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Iterator[Any]:
        return iter(DataLoader(self.samples, 8))


class Uncopied(Sampler):
    """Holds what cannot be copied, beside a generator that is lost if it is not set back."""

    def __init__(self) -> None:
        self.random, self.iterator = random.Random(0), (index for index in range(3))

    def __len__(self) -> int:
        return 64

    def __iter__(self) -> Iterator[int]:
        return iter(self.random.sample(range(64), 64))


SCHEDULE = [{"train": ["head"], "steps": 3}, {"train": ["layers.2"], "steps": 2}, {"train": ["*"]}]
Case = tuple[Callable[[], Observed], Callable[[], Any], dict[str, Any]]
CASES: dict[str, Case] = {
    "a buffer that is assigned": (Buffered, loader, {}),
    "hooks that prepare": (Prepared, lambda: DataLoader(SAMPLES, 8, shuffle=True), {}),
    "data that come with the start": (LoadsLate, lambda: None, {}),
    "a dataset's generator": (Observed, lambda: DataLoader(Noisy(), 8), {}),
    "a collate_fn's generator": (Observed, lambda: DataLoader(SAMPLES, 8, collate_fn=Collate()), {}),
    "a data module's generator and count": (Observed, Augmenting, {}),
    "an iterable dataset that counts": (Observed, lambda: DataLoader(Epochs(), 8), {}),
    "a loader of one's own that counts": (Observed, OwnLoader, {}),
    "a sampler that cannot be copied": (Observed, lambda: DataLoader(SAMPLES, 8, sampler=Uncopied()), {}),
    "schedule-free": (lambda: SwitchingObserved(lambda p: AdamWScheduleFree(p, lr=0.01)), loader, {}),
    "lookahead": (lambda: Observed(lambda p: Lookahead(AdamW(p, lr=0.01))), loader, {}),
}
LOADERS: dict[str, dict[str, Any]] = {
    "shuffled": {},
    "its own generator": {"generator": torch.Generator()},
    "persistent workers": {"num_workers": 2, "persistent_workers": True},
}


def run(module: Net, data: Any, *callbacks: Callback, **options: Any) -> list[Any]:
    """Train from one seed, and return all that was seen."""
    torch.manual_seed(1)
    random.seed(2)
    np.random.seed(3)
    everything = Everything()
    source = {"datamodule": data} if isinstance(data, LightningDataModule) else {"train_dataloaders": data}
    trainer(*callbacks, everything, **({"max_epochs": 2} | options)).fit(module, **source)
    return everything.seen


@pytest.mark.parametrize("name", CASES)
def test_no_trace_in_what_module_and_data_hold(name: str) -> None:
    module, data, options = CASES[name]
    runs = []
    for finder in (False, True):
        torch.manual_seed(0)
        found = [LRFinder(apply=False, num_steps=20, min_lr=1e-5)] if finder else []
        runs.append(run(module(), data(), *found, **options))
        assert all(find.curve is not None and len(find.curve.lrs) == 20 for find in found)
    same(*runs)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_trace_of_tests_in_the_middle_of_an_epoch(name: str, accumulate: int) -> None:
    runs, finder = [], LRFinder(apply=False, num_steps=20, min_lr=1e-5, each_phase=True)
    for found in ([], [finder]):
        torch.manual_seed(0)
        if "generator" in LOADERS[name]:
            LOADERS[name]["generator"].manual_seed(3)
        module, data = Observed(), DataLoader(SAMPLES, 8, shuffle=True, **LOADERS[name])
        callbacks = [GradualUnfreezing(SCHEDULE, ramp_steps=2), *found]
        runs.append(run(module, data, *callbacks, accumulate_grad_batches=accumulate, max_epochs=3))
    assert len(finder._tested) == 3
    same(*runs)


class Telling(Net):
    """Changes, in its steps, what belongs to others."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.told:
            self.trainer.should_stop = True
            self.trainer.datamodule.seen += 1
            self.log("told", float(batch_idx), prog_bar=True)
            assert self.trainer.callback_metrics["told"] == self.trainer.progress_bar_metrics["told"]
            self.logger.experiment.log_metrics({"told": batch_idx}, step=0)
        return loss


class Counted(LightningDataModule):
    seen = 0

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def train_dataloader(self) -> DataLoader:
        return loader(64)


def test_a_test_in_a_batch_leaves_metrics_gradients_and_the_wish_to_stop(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Within(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
            if batch_idx != 3:
                return
            for parameter in pl_module.parameters():
                parameter.grad = torch.ones_like(parameter)
            self.note(trainer, pl_module)
            pl_module.told = True
            RangeTest(trainer, pl_module, 0.01).losses([1e-3] * 5)
            pl_module.told = False
            self.note(trainer, pl_module)

        def note(self, trainer: Any, module: Any) -> None:
            seen.append(
                {
                    "metrics": {k: v.item() for k, v in trainer.callback_metrics.items()},
                    "shown": {k: float(v) for k, v in trainer.progress_bar_metrics.items()},
                    "stop": trainer.should_stop,
                    "gradients": [p.grad.clone() for p in module.parameters()],
                    "seen": trainer.datamodule.seen,
                    "profiler": id(trainer.profiler),
                }
            )

    module = Telling()
    module.told = False
    fit = trainer(Within(), max_epochs=1, logger=CSVLogger(tmp_path))
    fit.fit(module, datamodule=Counted())
    assert seen[0]["metrics"]
    same(*seen)
    assert "told" not in seen[1]["metrics"]
    assert "told" not in (Path(fit.logger.log_dir) / "metrics.csv").read_text().splitlines()[0].split(",")


def test_each_worker_of_a_test_has_ended_after_it() -> None:
    children: list[set[int]] = []

    class Count(Callback):
        def on_train_start(self, *_: Any) -> None:
            children.append({child.pid for child in multiprocessing.active_children()})

    class Starting(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if len(children) == 1:
                Count().on_train_start()
            return super().training_step(batch, batch_idx)

    data = DataLoader(SAMPLES, 8, num_workers=2, persistent_workers=True)
    trainer(Count(), LRFinder(num_steps=20), Count(), max_epochs=1).fit(Starting(), data)
    before, within, after = children
    assert len(before) == 2
    assert len(within) == 4
    assert after == before


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_of_a_test_that_fails_end_though_somebody_holds_the_error(persistent: bool) -> None:
    class Failing(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            started.append(len(multiprocessing.active_children()))
            raise RuntimeError(f"no step {batch_idx} of {len(batch)}")

    started: list[int] = []
    data = DataLoader(SAMPLES, 8, num_workers=2, persistent_workers=persistent)
    with pytest.raises(RuntimeError, match="no step") as held:
        trainer(LRFinder(num_steps=20), max_epochs=1).fit(Failing(), data)
    assert started == [4]
    assert held.tb is not None
    assert not multiprocessing.active_children()


def test_ctrl_c_leaves_neither_workers_nor_a_trace() -> None:
    script = Path(__file__).with_name("finder_interrupted.py")
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, start_new_session=True, timeout=120, check=False
    )
    assert json.loads(result.stdout.splitlines()[-1]) == {"ended": "SystemExit", "same": True, "workers": 0}


@pytest.mark.parametrize("options", LOADERS.values(), ids=LOADERS)
def test_a_fit_after_lr_find_is_the_one_without(options: dict[str, Any]) -> None:
    runs = []
    for find in (False, True):
        torch.manual_seed(0)
        if "generator" in options:
            options["generator"].manual_seed(3)
        module, data = Observed(), DataLoader(Noisy(), 8, shuffle=True, **options)
        everything = Everything()
        fit = trainer(everything, max_epochs=2)
        if find:
            curve = lr_find(fit, module, data, num_steps=20, min_lr=1e-5)
            assert len(curve.lrs) == 20
            assert not everything.heard
            assert not multiprocessing.active_children()
        fit.fit(module, data)
        runs.append(everything.seen)
    same(*runs)


def test_lr_find_draws_no_random_number_and_leaves_a_data_module() -> None:
    data, module = Augmenting(), Observed()
    before = [data.random.get_state(), torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()]
    lr_find(trainer(max_epochs=1), module, data, num_steps=20)
    same(before, [data.random.get_state(), torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()])
    assert data.count == 0


def test_lr_find_works_after_a_fit_and_leaves_what_the_fit_reached() -> None:
    module, fit = Observed(), trainer(max_epochs=1)
    fit.fit(module, loader(64))
    before = fit.global_step, fit.current_epoch, {k: v.item() for k, v in fit.callback_metrics.items()}, fit.state
    assert before[2]
    curve = lr_find(fit, module, loader(64), num_steps=20)
    assert len(curve.lrs) == 20
    assert before == (
        fit.global_step, fit.current_epoch, {k: v.item() for k, v in fit.callback_metrics.items()}, fit.state
    )  # fmt: skip
    assert fit.state.finished


def test_lr_find_hears_of_the_modules_callbacks_those_that_freeze() -> None:
    heard: list[str] = []

    class Loud(Callback):
        def on_fit_start(self, *_: Any) -> None:
            heard.append("start")

    class Configured(Net):
        def configure_callbacks(self) -> list[Callback]:
            return [Loud(), GradualUnfreezing("linear_probe")]

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            trained.append(self.layers[0][0].weight.requires_grad)
            return super().training_step(batch, batch_idx)

    trained: list[bool] = []
    module = Configured()
    fit = trainer(max_epochs=1)
    lr_find(fit, module, loader(64), num_steps=20)
    assert not heard
    assert trained[-20:] == [False] * 20  # the plan has tried a step before
    assert not fit.callbacks
    fit.fit(module, loader(64))
    assert heard == ["start"]


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_notebook"])
def test_lr_find_is_refused_where_no_curve_could_come_back(strategy: str) -> None:
    fit = trainer(max_epochs=1, strategy=strategy, devices=2)
    with pytest.raises(ValueError, match="starts processes from which no curve comes back"):
        lr_find(fit, Net(), loader())


def test_lr_find_is_refused_where_nothing_would_be_trained() -> None:
    with pytest.raises(ValueError, match=r"would train nothing \(max_epochs=0"):
        lr_find(trainer(max_epochs=0), Net(), loader())


class MadeLate(Observed):
    """Makes its head once, in ``configure_model``, as Lightning's pages advise."""

    def __init__(self) -> None:
        super().__init__()
        del self.head
        self.head = None
        self.extra = None

    def configure_model(self) -> None:
        if self.head is None:
            self.head = nn.Linear(6, 2)
            self.extra = self.head.weight

    def setup(self, stage: str) -> None:  # noqa: ARG002
        if not hasattr(self, "drawn"):
            self.drawn = torch.rand(()).item()


def test_a_fit_after_lr_find_makes_anew_what_hooks_make_once() -> None:
    runs = []
    for find in (False, True):
        torch.manual_seed(0)
        module, fit = MadeLate(), trainer(max_epochs=1)
        if find:
            lr_find(fit, module, loader(64), num_steps=12, trial_steps=0)
            assert module.head is None
            assert module.extra is None
            assert not hasattr(module, "drawn")
            assert fit.strategy.lightning_module is None
        fit.fit(module, loader(64))
        runs.append([module.drawn, tensors(module)])
    same(*runs)


def test_lr_find_after_a_fit_leaves_the_optimizers_for_a_checkpoint(tmp_path: Path) -> None:
    module, fit = Observed(), trainer(max_epochs=1)
    fit.fit(module, loader(64))
    saved = []
    for name in ("before.ckpt", "after.ckpt"):
        fit.save_checkpoint(tmp_path / name)
        saved.append(torch.load(tmp_path / name, weights_only=True))
        lr_find(fit, module, loader(64), num_steps=12, trial_steps=0)
    assert saved[0]["optimizer_states"][0]["state"]
    same(*saved)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_lr_find_that_ends_by_an_error_leaves_trainer_and_module(error: type[BaseException]) -> None:
    class Failing(Observed):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if self.fails and batch_idx == 5:
                raise error("no")
            return super().training_step(batch, batch_idx)

    runs = []
    for find in (False, True):
        torch.manual_seed(0)
        module, everything = Failing(), Everything()
        fit = trainer(everything, max_epochs=1)
        module.fails = True
        if find:
            with pytest.raises((error, SystemExit)):
                lr_find(fit, module, loader(64), num_steps=12, trial_steps=0)
        module.fails = False
        fit.fit(module, loader(64))
        runs.append(everything.seen)
    same(*runs)
