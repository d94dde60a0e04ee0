"""BlockCosts: what a training step costs in each block, counted on one batch."""

import gc
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import ref

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, UntypedStorage, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.flop_counter import FlopCounterMode

from lightning_ft_callbacks.blocks import BlockMap
from lightning_ft_callbacks.state.plain_state import PlainState

Held = TypeVar("Held")

# copying a larger module only to count what it does may not fit in its memory
MOST_BYTES = 4 * 2**30


@dataclass(frozen=True, slots=True)
class BlockCosts:
    """What the forward pass of one batch costs in each block.

    Attributes:
        operations: Multiplications and additions of the forward pass, by block.
        activation_bytes: What autograd keeps of it for the backward pass [byte], by block.
        other: Operations outside of all blocks.
        input_bytes: What each block's first call reads, a sample [byte], by block.
    """

    operations: dict[str, int]
    activation_bytes: dict[str, int]
    other: int
    input_bytes: dict[str, int] = field(default_factory=dict)

    def relative_time(self, names: Sequence[str], trained: Collection[str], *, cached: bool = False) -> float:
        """Return a step's operations over those of a step that trains everything.

        The forward pass runs through all blocks. The backward pass ends at the lowest trained one: above it each
        block computes the gradient of its input, and the trained ones that of their weights, as many operations each
        as forward.

        Args:
            names: All blocks, input first.
            trained: Those that are trained.
            cached: Whether what lies below the lowest trained one need not run.
        """
        total = self.other + sum(self.operations.values())
        passed = names[self._frontier(names, trained) :]
        cost = total + self.other
        cost += sum(self.operations[name] for name in passed)
        cost += sum(self.operations[name] for name in passed if name in trained)
        if cached:
            cost -= sum(self.operations[name] for name in names[: self._frontier(names, trained)])
        return cost / (total * 3 - self.other) if total else 1.0

    def kept_bytes(self, names: Sequence[str], trained: Collection[str]) -> int:
        """Return what autograd keeps for the backward pass down to the lowest trained block [byte]."""
        return sum(self.activation_bytes[name] for name in names[self._frontier(names, trained) :])

    def cached_bytes(self, names: Sequence[str], trained: Collection[str]) -> int:
        """Return what a cache keeps of a sample, which the lowest trained block reads [byte]."""
        frontier = self._frontier(names, trained)
        return self.input_bytes.get(names[frontier], 0) if 0 < frontier < len(names) else 0

    @staticmethod
    def _frontier(names: Sequence[str], trained: Collection[str]) -> int:
        return next((index for index, name in enumerate(names) if name in trained), len(names))


def count_costs(block_map: BlockMap, run: Callable[[], Any], num_samples: int = 1) -> BlockCosts:
    """Count what a forward pass costs in each block, keeping nothing of it for a backward pass.

    Args:
        block_map: The blocks of the module that runs.
        run: Runs it.
        num_samples: Samples of the batch that it runs on.
    """
    operations = dict.fromkeys(block_map.names, 0)
    kept = dict.fromkeys(block_map.names, 0)
    weights = {id(storage): storage for storage in (p.untyped_storage() for p in block_map.root.parameters())}
    seen: dict[int, ref[UntypedStorage]] = {}  # while they live, so that activations are let go of as they are counted
    entered: list[tuple[str, int]] = []
    counter = FlopCounterMode(display=False)

    read: dict[str, int] = {}

    def enter(name: str) -> Callable[..., None]:
        def note(_: Any, args: Any, kwargs: Any) -> None:
            if not entered and name not in read:
                tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
                floats = [leaf for leaf in tensors if leaf.is_floating_point() and len(leaf.shape) > 1]
                sizes = [leaf.numel() * leaf.element_size() for leaf in floats if len(leaf) == num_samples]
                read[name] = sum(sizes) // num_samples
            entered.append((name, counter.get_total_flops()))

        return note

    def leave(*_: Any) -> None:
        name, before = entered.pop()
        if not entered:
            operations[name] += counter.get_total_flops() - before

    def keep(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if entered and key not in weights and key not in seen:
            seen[key] = ref(storage, lambda _: seen.pop(key, None))
            kept[entered[0][0]] += storage.nbytes()

    handles = []
    for module, name in _entrances(block_map):
        handles.append(module.register_forward_pre_hook(enter(name), with_kwargs=True))
        handles.append(module.register_forward_hook(leave))
    try:
        with torch.enable_grad(), counter, torch.autograd.graph.saved_tensors_hooks(keep, _no_backward):
            run()
    finally:
        for handle in handles:
            handle.remove()
    total = counter.get_total_flops()
    return BlockCosts(operations, kept, total - sum(operations.values()), read)


def _entrances(block_map: BlockMap) -> list[tuple[nn.Module, str]]:
    """Return the modules whose calls are those of a block: the listed ones, and those around listed parameters.

    Around a parameter it is the outermost module whose parameters are all of the block. One without children counts
    for the lowest of several blocks that share it; a larger one is no single block's.
    """
    modules = dict(block_map.root.named_modules())
    owners = block_map.owners()
    found: dict[nn.Module, str] = {}
    for block in block_map:

        def is_whole(path: str, name: str = block.name) -> bool:
            return {owners[id(parameter)] for parameter in modules[path].parameters()} == {name}

        for path in block.paths:
            if path in modules:
                found[modules[path]] = block.name
                continue
            around = path.rpartition(".")[0]
            if not is_whole(around):
                if any(True for _ in modules[around].children()):
                    continue
            else:
                while around and is_whole(around.rpartition(".")[0]):
                    around = around.rpartition(".")[0]
            found.setdefault(modules[around], block.name)
    return list(found.items())


def _no_backward(_: None) -> Tensor:
    raise RuntimeError("a forward pass is being counted, of which nothing is kept for a backward pass")


def costs_of_fit(trainer: Trainer, module: LightningModule, block_map: BlockMap) -> BlockCosts | None:
    """Count what a training step of a fit costs, on a copy of the module and some samples, leaving no trace.

    Args:
        trainer: The trainer, in ``on_fit_start``.
        module: Its module.
        block_map: The module's blocks.

    Returns:
        The costs; None where they cannot be counted so: manual optimization, an iterable data set, a sharded or very
        large module, a training step that does not run on a copy.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in _held(module, Tensor))
    sharded = isinstance(trainer.strategy, ModelParallelStrategy)
    if not module.automatic_optimization or sharded or size > MOST_BYTES:
        return None
    try:
        with isolate_rng(), _without_loggers(trainer):
            trainer.fit_loop.setup_data()
            return _costs_on_a_copy(trainer, module, block_map)
    except Exception:  # a foreign step may need anything; the plan does without
        return None
    finally:
        gc.collect()  # or the copy, whose parts know one another, stays while training takes its memory


def _costs_on_a_copy(trainer: Trainer, module: LightningModule, block_map: BlockMap) -> BlockCosts:
    batch = _batch_of_fit(trainer, module)
    copy: Any = _copy(module, trainer)
    named = BlockMap(copy, block_map)
    return count_costs(named, lambda: copy.training_step(batch, 0), _num_samples(trainer.train_dataloader))


def _held(module: nn.Module, kind: type[Held]) -> list[Held]:
    """Return what a module and those in it hold of a kind, alone or in lists and dicts, once each."""
    leaves = tree_leaves([list(vars(part).values()) for part in module.modules()])
    return list({id(leaf): leaf for leaf in leaves if isinstance(leaf, kind)}.values())


def _batch_of_fit(trainer: Trainer, module: LightningModule) -> Any:
    """Return some samples as a step gets them; data, and hooks on the way, may draw numbers of their own.

    Raises:
        TypeError: If the loader is no DataLoader over samples with numbers.
    """
    parts = (trainer.train_dataloader, module, getattr(trainer, "datamodule", None))
    found = PlainState(parts, without=module.parameters())
    try:
        return trainer.strategy.batch_to_device(_some_batch(trainer.train_dataloader))
    finally:
        found.restore()


def _some_batch(loader: Any) -> Any:
    """Return the first samples of a data set as a batch, without the loader's workers and sampler.

    Raises:
        TypeError: If the loader is no DataLoader over samples with numbers.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        raise TypeError("no data set with numbers")
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    if size is None:
        return loader.dataset[0]
    dataset: Any = loader.dataset
    numbers = list(range(min(size, len(dataset))))
    samples = dataset.__getitems__(numbers) if hasattr(dataset, "__getitems__") else [dataset[n] for n in numbers]
    return loader.collate_fn(samples)


@contextmanager
def _without_loggers(trainer: Trainer) -> Iterator[None]:
    """Let a step write to loggers that drop it."""
    found = trainer.loggers
    trainer.loggers = [DummyLogger() for _ in found]
    try:
        yield
    finally:
        trainer.loggers = found


def _num_samples(loader: Any) -> int:
    """Return the samples of the batch that ``_some_batch`` takes."""
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 1
    return max(1, min(size, len(loader.dataset)))


def _copy(module: LightningModule, trainer: Trainer) -> Any:
    """Return a copy that logs nothing and is not compiled."""
    # the module itself leaves its trainer out, but a factory that it keeps may lead to it by another way
    shared: dict[int, Any] = {id(trainer): trainer}
    for array in _held(module, np.ndarray):  # data, as a replay buffer, may be larger than any network: not copied
        shared[id(array)] = view = array.view()
        view.flags.writeable = False  # a step that writes to it is not counted
    copy: Any = deepcopy(module, shared)
    for parameter in copy.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    for part in copy.modules():
        part._compiled_call_impl = None
        # a method that is bound to the instance, as torch.compile's are, would run the module and not its copy
        for name in [name for name, value in vars(part).items() if callable(value) and hasattr(type(part), name)]:
            del part.__dict__[name]
    copy._trainer = trainer
    for name in ("log", "log_dict"):
        copy.__dict__[name] = lambda *_, **__: None
    return copy
