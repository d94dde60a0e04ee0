"""Law 8: a range test leaves no trace."""

import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from nets import WIDTH, Net, loader, trainer
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim import lr_scheduler as schedulers
from torch.utils.data import DataLoader, Dataset, RandomSampler, WeightedRandomSampler
from torchmetrics import MeanMetric

from lightning_ft_callbacks import DiscriminativeLR, GradualUnfreezing, LRFinder, lr_find

BATCHES = 8


class Meter:
    """A helper of a module, as people write them."""

    def __init__(self) -> None:
        self.count = 0
        self.values: list[float] = []


class Watchful(Net):
    """Keeps all kinds of state, and draws random numbers of all kinds."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            lambda parameters: AdamW(parameters, lr=0.01),
            lambda o: {"scheduler": schedulers.CosineAnnealingLR(o, 24), "interval": "step"},
            **options,
        )
        self.mean = MeanMetric()
        self.calls = 0
        self.history: list[Tensor] = []
        self.by_name: dict[str, list[float]] = {"drawn": []}
        self.meter = Meter()
        self.teacher = nn.Linear(WIDTH, 2)
        self.level = nn.Parameter(torch.tensor(3.0))  # makes a fall that no test misses
        self.own = torch.Generator().manual_seed(5)
        for parameter in self.teacher.parameters():
            parameter.requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        drawn = random.random() + np.random.rand() + torch.rand(1, generator=self.own).item()
        self.mean.update(loss.detach())
        self.log("train/mean", self.mean, on_step=True, on_epoch=True)
        self.calls += 1
        self.history.append(loss.detach())
        self.by_name["drawn"].append(drawn)
        self.meter.count += 1
        self.meter.values.append(drawn)
        with torch.no_grad():
            self.teacher.weight.lerp_(self.head.weight, 0.1)
        return loss * (1 + 0.01 * drawn) + self.level**2

    def observed(self) -> dict[str, Any]:
        """Return all that somebody could see."""
        return {
            "weights": {name: tensor.clone() for name, tensor in self.state_dict().items()},
            "calls": self.calls,
            "history": torch.stack(self.history) if self.history else torch.empty(0),
            "drawn": list(self.by_name["drawn"]),
            "meter": (self.meter.count, list(self.meter.values)),
            "modes": [part.training for part in self.modules()],
            "grads": [p.requires_grad for p in self.parameters()],
        }


class Manual(Watchful):
    """Two optimizers in manual optimization, which steps its schedule itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            loss = super().training_step(batch, batch_idx)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.lr_schedulers().step()

    def configure_optimizers(self) -> Any:
        below = SGD(self.layers.parameters(), lr=0.01, momentum=0.9)
        above = AdamW([*self.head.parameters(), self.level], lr=0.1)
        return [below, above], [schedulers.ExponentialLR(below, 0.9)]


def state_of(optimizer: Any) -> list[Any]:
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return deepcopy([*groups, *(dict(state) for state in optimizer.state.values())])


class Everything(Callback):
    """Notes all there is to see before each batch, and at the end."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.heard: list[str] = []

    def on_before_zero_grad(self, *_: Any) -> None:
        self.heard.append("zero_grad")

    def on_before_backward(self, *_: Any) -> None:
        self.heard.append("backward")

    def on_after_backward(self, *_: Any) -> None:
        self.heard.append("after backward")

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.heard.append("step")

    def note(self, trainer: Any, module: Any, batch: Any) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.seen.append(
            {
                "batch": batch,
                "heard": list(self.heard),
                "module": module.observed(),
                "optimizers": [state_of(o) for o in trainer.optimizers],
                "schedules": [deepcopy(c.scheduler.state_dict()) for c in trainer.lr_scheduler_configs],
                "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()),
                "progress": (trainer.global_step, trainer.current_epoch, str(trainer.fit_loop.state_dict())),
                "metrics": {k: v.item() for k, v in trainer.callback_metrics.items()},
                "scaler": None if scaler is None else scaler.state_dict(),
                "callbacks": {
                    type(c).__name__: deepcopy(c.state_dict())
                    for c in trainer.callbacks
                    if not isinstance(c, LRFinder | Everything)
                },
            }
        )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.note(trainer, pl_module, [tensor.clone() for tensor in batch])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.note(trainer, pl_module, None)


def same(one: Any, other: Any, place: str = "") -> None:
    """Assert that two things are equal, tensors bitwise."""
    assert type(one) is type(other), place
    if isinstance(one, Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            same(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for number, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            same(mine, theirs, f"{place}/{number}")
    else:
        assert one == other or (one != one and other != other), f"{place}: {one} {other}"


class Numbered(Dataset):
    """Samples with random noise of the worker's own."""

    def __len__(self) -> int:
        return 8 * BATCHES

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((WIDTH,), index / 64) + 0.1 * torch.randn(WIDTH), index % 2


def own_generator(**options: Any) -> DataLoader:
    return DataLoader(Numbered(), 8, shuffle=True, generator=torch.Generator().manual_seed(3), **options)


def own_samplers() -> DataLoader:
    sampler = WeightedRandomSampler(torch.rand(64).tolist(), 64, generator=torch.Generator().manual_seed(4))
    return DataLoader(Numbered(), 8, sampler=sampler)


class Batches:
    """Batches from no DataLoader."""

    def __iter__(self) -> Iterator[Any]:
        return iter(loader(64))


LOADERS: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: DataLoader(Numbered(), 8, shuffle=True),
    "its own generator": own_generator,
    "a weighted sampler": own_samplers,
    "a random sampler": lambda: DataLoader(Numbered(), 8, sampler=RandomSampler(Numbered(), replacement=True)),
    "two workers": lambda: own_generator(num_workers=2),
    "persistent workers": lambda: own_generator(num_workers=2, persistent_workers=True),
    "any iterable": Batches,
}
OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "accumulation": lambda: {"accumulate_grad_batches": 3},
    "clipping": lambda: {"gradient_clip_val": 0.1},
    "bf16": lambda: {"precision": "bf16-mixed"},
    "fp16": lambda: {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**20))]},
    "validation within": lambda: {"val_check_interval": 0.5},
    "max_steps": lambda: {"max_steps": 13, "max_epochs": -1},
    "limits": lambda: {"limit_train_batches": 3},
}


def observe(
    module: Net, data: Any, *callbacks: Callback, finder_first: bool = True, finder: bool = True, **options: Any
) -> tuple[list[Any], LRFinder]:
    """Train from one seed, and return all that was seen, and the finder, that did nothing to the rate."""
    torch.manual_seed(1)
    random.seed(2)
    np.random.seed(3)
    everything, find = Everything(), LRFinder(apply=False, num_steps=20, min_lr=1e-5)
    found = [find] if finder else []
    listed = [*found, *callbacks, everything] if finder_first else [everything, *callbacks, *found]
    trainer(*listed, **({"max_epochs": 2} | options)).fit(module, data, loader())
    return everything.seen, find


@pytest.mark.parametrize("name", LOADERS)
def test_no_trace_with_any_loader(name: str) -> None:
    runs = []
    for finder in (False, True):
        torch.manual_seed(0)
        seen, find = observe(Watchful(), LOADERS[name](), finder=finder)
        runs.append(seen)
    assert find.curve is not None
    assert len(find.curve.lrs) == 20
    assert len(find.curve.trials) > 1
    same(*runs)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("finder_first", [True, False])
def test_no_trace_with_the_trainers_options(name: str, finder_first: bool) -> None:
    runs = []
    for finder in (False, True):
        torch.manual_seed(0)
        module, data = Watchful(), LOADERS["shuffled"]()
        seen, _ = observe(module, data, finder=finder, finder_first=finder_first, **OPTIONS[name]())
        runs.append(seen)
    same(*runs)


def test_no_trace_in_manual_optimization_with_two_optimizers() -> None:
    runs = []
    for finder in (False, True):
        torch.manual_seed(0)
        seen, find = observe(Manual(), LOADERS["shuffled"](), finder=finder)
        runs.append(seen)
    assert find.curve is not None
    assert len(find.curve.lrs) == 20
    assert len(find.curve.trials) > 1
    same(*runs)


def test_no_trace_beside_other_callbacks(tmp_path: Path) -> None:
    runs = []
    for finder in (False, True):
        torch.manual_seed(0)
        callbacks = [
            EMAWeightAveraging(decay=0.9),
            GradualUnfreezing([{"train": ["head"], "epochs": 1}, {"train": ["*"]}], ramp_steps=2),
            DiscriminativeLR(0.5),
            ModelCheckpoint(tmp_path / str(finder), monitor="val/loss", save_top_k=2),
        ]
        seen, _ = observe(Watchful(), LOADERS["shuffled"](), *callbacks, finder=finder, enable_checkpointing=True)
        for entry in seen:
            entry["callbacks"].pop("ModelCheckpoint", None)  # which names its own folder
        runs.append(seen)
    same(*runs)


def test_no_trace_in_the_logs_but_its_own_files(tmp_path: Path) -> None:
    logs = []
    for finder in (False, True):
        torch.manual_seed(0)
        folder = tmp_path / str(finder)
        observe(Watchful(), LOADERS["shuffled"](), finder=finder, logger=CSVLogger(folder))
        logs.append({path.name: path for path in folder.rglob("*") if path.is_file()})
    assert logs[0]["metrics.csv"].read_text() == logs[1]["metrics.csv"].read_text()
    assert logs[1].keys() - logs[0].keys() == {"lr_finder.json", "lr_finder.png"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("at", [0, 1, 7])
def test_a_test_that_ends_early_leaves_no_trace(error: type[BaseException], at: int) -> None:
    module = Watchful()
    step = module.training_step

    def training_step(batch: Any, batch_idx: int) -> Tensor:
        loss = step(batch, batch_idx)
        if batch_idx == at:
            raise error("stop")
        return loss

    before: list[Any] = []
    after: list[Any] = []

    class Around(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            before.append((pl_module.observed(), state_of(trainer.optimizers[0]), torch.get_rng_state()))
            pl_module.training_step = training_step

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
            after.append((pl_module.observed(), state_of(trainer.optimizers[0]), torch.get_rng_state()))
            assert [type(c).__name__ for c in trainer.callbacks] == ["Around", "LRFinder"]

    fit = trainer(Around(), LRFinder(num_steps=20), max_epochs=1)
    with pytest.raises((error, SystemExit)):
        fit.fit(module, loader(64))
    same(before, after)


def test_lr_find_returns_the_curve_and_leaves_module_trainer_and_disk_alone(tmp_path: Path) -> None:
    module = Watchful()
    before = module.observed()
    ended: list[str] = []

    class Others(Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
            ended.append("called")

    fit = trainer(Others(), DiscriminativeLR(0.5), max_epochs=2, default_root_dir=tmp_path, logger=CSVLogger(tmp_path))
    curve = lr_find(fit, module, loader(64), num_steps=30)
    assert len(curve.lrs) == 30
    same(before, module.observed())
    assert not ended
    assert not list(tmp_path.iterdir())
    fit.fit(module, loader(64))
    assert ended == ["called"]
    assert fit.global_step == 16


def test_workers_of_the_test_are_gone_after_it() -> None:
    import multiprocessing

    count: list[int] = []

    class Count(Callback):
        def on_train_start(self, *_: Any) -> None:
            count.append(len(multiprocessing.active_children()))

    data = own_generator(num_workers=2, persistent_workers=True)
    trainer(Count(), LRFinder(num_steps=20), Count(), max_epochs=1).fit(Watchful(), data)
    assert count[0] == count[1]
