"""What things hold is put back as it was, in the very objects."""

import argparse
import logging
import random
import threading
from array import array
from collections import Counter, UserDict, UserList, deque
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler
from torch.utils.data import DataLoader, Dataset, RandomSampler, Subset
from torchmetrics import MeanMetric

from lightning_ft_callbacks.state import plain_state
from lightning_ft_callbacks.state.plain_state import PlainState


class Holder(nn.Module):
    """Holds something."""

    def __init__(self, thing: Any) -> None:
        super().__init__()
        self.thing = thing


class Loss:
    """A loss that is called, and counts."""

    def __init__(self) -> None:
        self.calls = 0
        self.mean = torch.zeros(())

    def __call__(self) -> None:
        self.calls += 1
        self.mean = self.mean + 1

    def called(self) -> int:
        return self.calls


@dataclass(slots=True)
class Slots:
    count: int = 0


@dataclass(frozen=True, slots=True)
class Frozen:
    values: list[int]


class Numbers(Dataset):
    """Samples that are drawn from a generator of their own."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.rows = [{"row": row} for row in range(2000)]

    def __getitem__(self, index: int) -> float:
        return float(self.random.normal())

    def __len__(self) -> int:
        return 8


def step_of(optimizer: Any, parameter: nn.Parameter) -> None:
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()


class Wrapping(torch.optim.Optimizer):
    """As SAM and Lookahead: the base optimizer holds the state."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        super().__init__(base.param_groups, base.defaults)
        self.base = base
        self.param_groups = base.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.base.step(closure)


def wrapped() -> tuple[Any, Callable[[Any], None], Callable[[Any], Any]]:
    weight = nn.Parameter(torch.zeros(2))
    optimizer = Wrapping(AdamW([weight], lr=0.1))
    return optimizer, lambda o: step_of(o, weight), lambda o: (weight.tolist(), str(dict(o.base.state)))


def counting() -> Callable[[], tuple[int, float]]:
    """Return a function that counts its calls, and draws from a generator, around it."""
    count, drawn = 0, np.random.default_rng(0)

    def call() -> tuple[int, float]:
        nonlocal count
        count += 1
        return count, drawn.normal()

    return call


DRAWN = random.Random(0)


def draw(own: random.Random = random.Random(1)) -> tuple[float, float]:  # noqa: B008
    return DRAWN.random(), own.random()


class Drawing:
    """Names a generator of its module in a method."""

    def next(self) -> float:
        return DRAWN.random()


def next_of(generator: random.Random) -> Any:
    return deepcopy(generator).random()


def deep(levels: int) -> Any:
    return SimpleNamespace(below=deep(levels - 1)) if levels else SimpleNamespace(n=0)


def deepest(namespace: Any) -> Any:
    return deepest(namespace.below) if hasattr(namespace, "below") else namespace


class Warm(LRScheduler):
    """As GradualWarmupScheduler of pytorch-gradual-warmup-lr: drives another schedule afterwards."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.after = ExponentialLR(optimizer, 0.5)
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return list(self.after.get_last_lr())

    def step(self, epoch: Any = None) -> None:  # noqa: ARG002
        self.after.step()
        self.optimizer.param_groups[0]["lr"] = self.after.get_last_lr()[0]


def schedule() -> tuple[Any, Any]:
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    warm = Warm(optimizer)
    return optimizer, warm


CASES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "what a function closes over": (
        counting,
        lambda f: f(),
        lambda f: [
            c.cell_contents if isinstance(c.cell_contents, int) else str(c.cell_contents.bit_generator.state)
            for c in f.__closure__
        ],
    ),
    "generators that a function names and has by default": (
        lambda: draw,
        lambda f: f(),
        lambda f: (next_of(DRAWN), next_of(f.__defaults__[0])),
    ),
    "a generator that a method names": (Drawing, lambda d: d.next(), lambda _: next_of(DRAWN)),
    "objects deep within objects": (
        lambda: deep(12),
        lambda d: setattr(deepest(d), "n", 1),
        lambda d: deepest(d).n,
    ),
    "a dictionary of one's own": (lambda: UserDict(n=0), lambda d: d.update(n=1, m=2), dict),
    "a list of one's own": (lambda: UserList([0]), lambda d: d.append(1), list),
    "bytes that change": (lambda: bytearray(2), lambda b: b.extend(b"a"), bytes),
    "an array of Python's": (lambda: array("d", [0.0]), lambda a: a.append(1.0), list),
    "a schedule that drives another": (
        schedule,
        lambda pair: pair[1].step(),
        lambda pair: (pair[1].after.last_epoch, pair[0].param_groups[0]["lr"]),
    ),
    "a called object": (Loss, lambda loss: loss(), lambda loss: (loss.calls, loss.mean.item())),
    "a bound method": (lambda: Loss().called, lambda f: f.__self__(), lambda f: f()),
    "a partial": (lambda: partial(Loss().called), lambda f: f.func.__self__(), lambda f: f()),
    "slots": (Slots, lambda s: setattr(s, "count", 3), lambda s: s.count),
    "frozen slots": (lambda: Frozen([1]), lambda s: s.values.append(2), lambda s: list(s.values)),
    "a namespace": (lambda: SimpleNamespace(n=0), lambda s: setattr(s, "n", 1), lambda s: s.n),
    "arguments": (lambda: argparse.Namespace(n=0), lambda s: setattr(s, "n", 1), lambda s: s.n),
    "a counter": (lambda: Counter("aab"), lambda c: c.update("a"), dict),
    "a deque": (lambda: deque([1, 2], maxlen=2), lambda d: d.append(3), list),
    "a set": (lambda: {1}, lambda s: s.add(2), sorted),
    "a list of objects": (lambda: [Loss()], lambda items: items.pop()(), lambda items: [i.calls for i in items]),
    "a metric in a dict": (
        lambda: {"mean": MeanMetric()},
        lambda d: d["mean"].update(torch.tensor(2.0)),
        lambda d: (d["mean"].weight.item(), d["mean"].update_called),
    ),
    "a module in a list": (
        lambda: [nn.Linear(1, 1)],
        lambda items: nn.init.constant_(items[0].weight, 7.0),
        lambda items: items[0].weight.item(),
    ),
    "torch's generator": (
        lambda: torch.Generator().manual_seed(1),
        lambda g: torch.rand(1, generator=g),
        lambda g: g.get_state().tolist(),
    ),
    "NumPy's generator": (np.random.default_rng, lambda g: g.normal(), lambda g: str(g.bit_generator.state)),
    "NumPy's old generator": (np.random.RandomState, lambda g: g.normal(), lambda g: str(g.get_state())),
    "Python's generator": (random.Random, lambda g: g.random(), lambda g: g.getstate()),
    "an array": (lambda: np.zeros(2), lambda a: a.fill(1), lambda a: a.tolist()),
    "a tensor": (lambda: torch.zeros(2), lambda t: t.add_(1), lambda t: t.tolist()),
    "a tensor behind autograd's back": (lambda: torch.zeros(2), lambda t: t.data.add_(1), lambda t: t.tolist()),
    "an expanded tensor": (lambda: torch.zeros(1).expand(3), lambda t: t[:1].add_(1), lambda t: t.tolist()),
    "a dataset": (Numbers, lambda d: d[0], lambda d: str(d.random.bit_generator.state)),
    "a dataset in a subset in a loader": (
        lambda: DataLoader(Subset(Numbers(), [0])),
        lambda loader: loader.dataset[0],
        lambda loader: str(loader.dataset.dataset.random.bit_generator.state),
    ),
    "a sampler's generator": (
        lambda: RandomSampler(range(5), generator=torch.Generator().manual_seed(0)),
        list,
        lambda sampler: sampler.generator.get_state().tolist(),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_held_is_put_back(name: str) -> None:
    make, change, look = CASES[name]
    thing = make()
    holder = Holder(thing)
    before = look(thing)
    state = PlainState(holder)
    for _ in range(2):  # it may be done again
        change(thing)
        assert look(thing) != before
        holder.thing, holder.later = None, 1
        state.restore()
        assert holder.thing is thing
        assert not hasattr(holder, "later")
        assert look(thing) == before


def test_a_buffer_that_is_assigned_anew_is_the_one_of_before() -> None:
    module = nn.Module()
    module.register_buffer("mean", torch.zeros(2))
    before = module.mean
    state = PlainState(module)
    module.mean.add_(1)
    module.mean = 0.9 * module.mean + 1
    state.restore()
    assert module.mean is before
    assert module.mean.tolist() == [0, 0]
    assert "mean" in module.state_dict()


def test_the_optimizer_within_an_optimizer_is_put_back() -> None:
    optimizer, change, look = wrapped()
    change(optimizer)
    before, state = look(optimizer), PlainState(optimizer)
    change(optimizer)
    assert look(optimizer) != before
    state.restore()
    assert look(optimizer) == before


def test_what_is_without_is_left() -> None:
    module = nn.Linear(1, 1)
    state = PlainState(module, without=module.parameters())
    nn.init.constant_(module.weight, 7.0)
    state.restore()
    assert module.weight.item() == 7.0


def test_memory_that_is_read_only_is_not_written_to(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.array([1.0, np.nan], dtype=np.float32))
    mapped = np.load(tmp_path / "array.npy", mmap_mode="r")
    with pytest.warns(UserWarning, match="not writable"):
        holder = Holder([torch.from_numpy(mapped), mapped])
    PlainState(holder).restore()  # to write would end the process
    assert holder.thing[0][0].item() == 1.0


def test_cycles_end_and_locks_and_threads_are_left_alone() -> None:
    holder = Holder({"lock": threading.Lock(), "thread": threading.Thread(), "loop": None})
    holder.thing["loop"] = holder.thing
    holder.own = [holder]
    PlainState(holder).restore()
    assert holder.thing["loop"] is holder.thing


def test_what_others_share_is_not_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    attributes = plain_state._attributes
    monkeypatch.setattr(plain_state, "_attributes", lambda o: (looked.append(type(o).__name__), attributes(o))[1])
    one = Loss()
    PlainState(Holder([logging.getLogger("mine"), one, one]))
    assert looked == ["Holder", "Loss"]


def test_samples_are_not_copied() -> None:
    kept: list[Tensor] = []
    data = Numbers()
    data.large, data.small = torch.empty(plain_state.MOST_ELEMENTS + 1), torch.empty(2)
    PlainState(DataLoader(data), copy=lambda tensor: (kept.append(tensor), tensor.clone())[1])
    assert [len(tensor) for tensor in kept] == [2]


def test_an_optimizers_groups_are_the_same_objects_afterwards() -> None:
    weight = nn.Parameter(torch.zeros(2))
    optimizer = SGD([weight], lr=0.1, momentum=0.9)
    group = optimizer.param_groups[0]
    state = PlainState(optimizer)
    step_of(optimizer, weight)
    group["lr"], group["new"] = 7.0, 1
    state.restore()
    assert optimizer.param_groups[0] is group
    assert group["lr"] == 0.1
    assert "new" not in group
    assert not optimizer.state
