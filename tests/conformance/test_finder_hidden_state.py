"""Law 8 where nobody looks: what functions close over, hooks of callbacks, loggers that are kept, pairs of hooks."""

import random
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from nets import WIDTH, Net, loader, tensors, trainer
from test_finder_trace import SAMPLES, Observed, run
from test_range_test import same
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_ft_callbacks import GradualUnfreezing, LRFinder, lr_find

DRAWN = np.random.default_rng(0)


def noisy(draw: Callable[..., Any]) -> Callable[[list[Any]], tuple[Tensor, Tensor]]:
    def collate(rows: list[Any]) -> tuple[Tensor, Tensor]:
        inputs = torch.stack([row[0] for row in rows])
        return inputs + torch.as_tensor(draw(size=inputs.shape)).float(), torch.stack([row[1] for row in rows])

    return collate


def global_noise(rows: list[Any]) -> tuple[Tensor, Tensor]:
    inputs = torch.stack([row[0] for row in rows])
    return inputs + torch.as_tensor(DRAWN.normal(size=inputs.shape)).float(), torch.stack([row[1] for row in rows])


def with_global() -> DataLoader:
    DRAWN.bit_generator.state = np.random.default_rng(0).bit_generator.state
    return DataLoader(SAMPLES, 8, collate_fn=global_noise)


class Transformed(Dataset):
    """Has a transform that draws from a generator around it."""

    def __init__(self) -> None:
        own = random.Random(0)
        self.transform = lambda inputs: inputs * own.random()

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, target = SAMPLES[index]
        return self.transform(inputs), target


class Drawing(Sampler):
    """Draws each number when it is asked for, from a generator of its own."""

    def __init__(self) -> None:
        self.random = random.Random(0)

    def __len__(self) -> int:
        return 64

    def __iter__(self) -> Any:
        return (self.random.randrange(64) for _ in range(64))


DATA: dict[str, Callable[[], DataLoader]] = {
    "a collate_fn's closure": lambda: DataLoader(SAMPLES, 8, collate_fn=noisy(np.random.default_rng(0).normal)),
    "a generator of its module": with_global,
    "a transform's closure": lambda: DataLoader(Transformed(), 8),
    "a sampler that draws as it goes": lambda: DataLoader(SAMPLES, sampler=Drawing(), batch_size=8),
}


@pytest.mark.parametrize("each_phase", [False, True])
@pytest.mark.parametrize("name", DATA)
def test_no_trace_in_generators_that_data_draw_from(name: str, each_phase: bool) -> None:
    schedule = [{"train": ["head"], "steps": 3}, {"train": ["*"]}]
    runs = []
    for finder in (False, True):
        torch.manual_seed(0)
        found = [LRFinder(apply=False, num_steps=20, min_lr=1e-5, each_phase=each_phase)] if finder else []
        runs.append(run(Observed(), DATA[name](), GradualUnfreezing(schedule), *found))
    same(*runs)


class Counting(Callback):
    """Counts the runs of a layer by a hook on it."""

    def __init__(self) -> None:
        self.seen = 0

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:  # noqa: ARG002
        pl_module.layers[0].register_forward_hook(self.hook)

    def hook(self, *_: Any) -> None:
        self.seen += 1


class Averaging(Callback):
    """Averages weights by a hook on the optimizer."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        parameters = list(pl_module.parameters())
        self.seen = [parameter.detach().clone() for parameter in parameters]

        def average(*_: Any) -> None:
            for mean, parameter in zip(self.seen, parameters, strict=True):
                mean.lerp_(parameter.detach(), 0.1)

        trainer.optimizers[0].register_step_post_hook(average)


@pytest.mark.parametrize("kind", [Counting, Averaging])
def test_no_trace_in_callbacks_that_act_by_hooks_of_modules_and_optimizers(kind: Any) -> None:
    seen = []
    for finder in (False, True):
        torch.manual_seed(0)
        callback = kind()
        found = [LRFinder(apply=False, num_steps=20, min_lr=1e-5)] if finder else []
        trainer(callback, *found, max_epochs=2).fit(Observed(), loader(64))
        seen.append(callback.seen)
    same(*seen)


class Paired(Net):
    """Opens something when a batch starts that it closes when the batch ends, and teaches a teacher then."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.opened = False
        self.register_buffer("teacher", torch.zeros(2, WIDTH))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        assert not self.opened
        self.opened = True

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx) + (self.head.weight - self.teacher).square().mean()
        TOLD.append(loss.item())
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        assert outputs["loss"].item() == TOLD[-1]
        self.opened = False
        self.teacher.lerp_(self.head.weight.detach(), 0.5)


TOLD: list[float] = []


def test_the_module_is_told_of_each_batch_s_end_so_that_the_training_tested_is_the_fits() -> None:
    losses = []
    for finder in ([], [LRFinder(apply=False, min_lr=0.01 - 1e-9, max_lr=0.01, num_steps=12, trial_steps=0)]):
        torch.manual_seed(0)
        TOLD.clear()
        trainer(*finder, max_epochs=1).fit(Paired(), loader(96))
        losses.append(list(TOLD))
    fit, tested = losses
    assert tested[12:] == fit
    assert tested[:12] == pytest.approx(fit, rel=1e-3)


def test_a_logger_that_is_kept_gets_nothing_from_a_test(tmp_path: Path) -> None:
    class Board(Net):
        def on_fit_start(self) -> None:
            self.board = self.logger
            self.head.weight.register_hook(lambda gradient: self.board.log_metrics({"norm": gradient.norm().item()}))

    written = []
    for finder in ([], [LRFinder(apply=False, num_steps=20)]):
        torch.manual_seed(0)
        logger = CSVLogger(tmp_path, name=str(len(finder)), version="run")
        module = Board(dropout=0.0)
        trainer(*finder, max_epochs=1, logger=logger).fit(module, loader(64))
        written.append((tmp_path / str(len(finder)) / "run" / "metrics.csv").read_text())
        assert "log_metrics" not in vars(logger)
        assert tensors(module)
    assert written[0] == written[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="asks for the random numbers of a GPU")
def test_no_trace_in_the_random_numbers_of_a_gpu() -> None:
    states = []
    for finder in ([], [LRFinder(apply=False, num_steps=20)]):
        torch.manual_seed(0)
        trainer(*finder, max_epochs=1, accelerator="gpu").fit(Net(dropout=0.5), loader(64))
        states.append(torch.cuda.get_rng_state())
    assert torch.equal(*states)


def test_lr_find_between_two_fits_leaves_the_phase_that_the_first_came_to() -> None:
    found = []
    for between in (False, True):
        torch.manual_seed(0)
        module = Net()
        unfreezing = GradualUnfreezing([{"train": ["head"], "epochs": 1}, {"train": ["layers.2", "head"]}])
        fit = trainer(unfreezing, max_epochs=2)
        fit.fit(module, loader())
        if between:
            lr_find(fit, module, loader(), num_steps=12, trial_steps=0)
        phase = unfreezing.phase
        fit.fit_loop.max_epochs = 4
        fit.fit(module, loader())
        found.append((phase, unfreezing.phase, tensors(module)))
    assert found[0][:2] == found[1][:2] == (1, 1)
    assert all(torch.equal(found[0][2][name], tensor) for name, tensor in found[1][2].items())


class AsksLogger(Net):
    """Uses its logger as somebody's module would, who always has one."""

    def on_train_start(self) -> None:
        self.logger.log_hyperparams({"lr": 0.01})
        (Path(self.logger.save_dir) / "notes").parent.exists()
        self.logger.experiment.add_scalar("one", 1.0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        Path(self.trainer.log_dir)
        Path(self.logger.log_dir)
        return super().training_step(batch, batch_idx)


def test_a_module_that_asks_its_logger_where_it_writes_is_answered(tmp_path: Path) -> None:
    finder = LRFinder(num_steps=12, trial_steps=0)
    trainer(finder, logger=TensorBoardLogger(tmp_path), max_epochs=1).fit(AsksLogger(), loader())
    assert finder.curve is not None


class Named(OrderedDict):
    """A dictionary that is made in a way of its own."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__()
        self.name, self.size = name, size


class Replay(deque):
    """A buffer that is made in a way of its own."""

    def __init__(self, *, size: int) -> None:
        super().__init__(maxlen=size)


class Buffered(Net):
    """Keeps losses in containers of its own classes."""

    def __init__(self) -> None:
        super().__init__()
        self.named, self.replay = Named("losses", 3), Replay(size=50)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.named[len(self.replay)] = loss.item()
        self.replay.append(loss.item())
        return loss


def test_containers_of_somebodys_own_classes_are_as_before() -> None:
    found = []
    for callbacks in ([], [LRFinder(num_steps=12, trial_steps=0, apply=False)]):
        torch.manual_seed(0)
        module = Buffered()
        trainer(*callbacks, max_epochs=1).fit(module, loader())
        found.append((list(module.named.items()), list(module.replay)))
    assert found[0] == found[1]
    assert len(found[0][1]) == 4


@pytest.mark.parametrize("where", ["collate", "transfer"])
def test_counting_for_the_plan_draws_nobodys_numbers(where: str) -> None:
    class Draws(Net):
        def __init__(self) -> None:
            super().__init__()
            self.draw = torch.Generator().manual_seed(1)

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ARG002
            noise = torch.randn(batch[0].shape, generator=self.draw) if where == "transfer" else 0.0
            return [batch[0] + noise, batch[1]]

    found = []
    for callbacks in ([], [GradualUnfreezing("full")]):
        torch.manual_seed(0)
        module, seeded = Draws(), torch.Generator().manual_seed(2)

        def collate(rows: list[Any], seeded: torch.Generator = seeded) -> Any:
            inputs = torch.stack([row for row, _ in rows])
            noise = torch.randn(inputs.shape, generator=seeded) if where == "collate" else 0.0
            return [inputs + noise, torch.stack([label for _, label in rows])]

        trainer(*callbacks, max_epochs=1).fit(module, DataLoader(loader().dataset, 8, collate_fn=collate))
        found.append(tensors(module))
    assert all(torch.equal(found[0][name], tensor) for name, tensor in found[1].items())
