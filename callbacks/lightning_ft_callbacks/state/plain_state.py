"""PlainState: what objects hold as attributes, to be put back as it was."""

import argparse
import sys
import types
from array import array
from collections import OrderedDict, UserDict, UserList, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_ft_callbacks.state.kept_values import (
    Generator,
    Restore,
    kept_array,
    kept_entries,
    kept_generator,
    kept_tensor,
)

# torch's own bookkeeping of modules: hooks and children are not state
MODULES_OWN = frozenset(vars(nn.Module())) - {"training", "_buffers", "_parameters"}
# whose objects are not looked into: they are shared, large, open to the outside, or hold no state of a training
LIBRARIES = sys.stdlib_module_names | {
    *("torch", "lightning", "pytorch_lightning", "transformers", "timm", "tokenizers", "datasets", "numpy"),
    *("pandas", "polars", "pyarrow", "PIL", "h5py", "zarr", "lmdb", "wandb", "mlflow", "tensorboard", "comet_ml"),
    *("rich", "tqdm"),
}
# what the prefix cache has learnt is no state of a training: a step for trial must not undo it
CACHE = f"{__name__.partition('.')[0]}.caching."
NAMESPACES = (types.SimpleNamespace, argparse.Namespace, UserDict, UserList)
DATA = (Dataset, Sampler, DataLoader)
DEPTH = 20  # of objects within objects, for the sake of Python's stack
# of data, containers with more entries and arrays with more elements are samples, and not state
MOST_ENTRIES, MOST_ELEMENTS = 1000, 1_000_000


class PlainState:
    """Numbers, texts, tensors, arrays, generators, and containers and objects of these, that things hold.

    All is put back in place, so that whoever holds it too sees it as it was. Attributes that came later are removed.
    Modules, optimizers and their schedules are found wherever they are held, also by functions that close over them; of
    data, what is large is taken to be samples, and left alone. Objects of libraries that hold no state of a training
    are not looked into. Of the variables of the modules of code only generators are kept that the code names.

    Args:
        things: Objects, or containers of them.
        without: Objects to leave as they then are.
        depth: How far objects within objects are looked into.
        copy: Copies a tensor, on its device or elsewhere.
    """

    def __init__(
        self,
        *things: Any,
        without: Iterable[Any] = (),
        depth: int = DEPTH,
        copy: Callable[[Tensor], Tensor] = Tensor.clone,
    ) -> None:
        self._copy = copy
        self._left = list(without)
        self._seen = {id(thing) for thing in self._left}
        self._restores = [self._kept_root(thing, depth) for thing in things]

    def restore(self) -> None:
        """Put everything back; it may be done again later."""
        for restore in self._restores:
            restore()

    def _kept_root(self, thing: Any, depth: int) -> Restore:
        if _is_object(thing):
            return self._kept_object(thing, depth, isinstance(thing, DATA))
        return self._kept(thing, depth, in_data=False)

    def _kept(self, value: Any, depth: int, in_data: bool) -> Restore:
        """Return a function that puts a value back as it is now, and returns it."""
        if not _changes(value) or id(value) in self._seen:
            return lambda: value
        if isinstance(value, Tensor | np.ndarray | bytearray | array):
            return self._kept_values(value, in_data)
        if isinstance(value, Generator):
            self._seen.add(id(value))
            return kept_generator(value)
        if isinstance(value, tuple | list | deque | dict | set):
            return self._kept_container(value, depth, in_data)
        if depth > 0 and isinstance(value, types.MethodType):
            return self._within(value, value.__self__, depth=depth, in_data=in_data)
        if depth > 0 and isinstance(value, partial):
            return self._within(value, value.func, value.args, value.keywords, depth=depth, in_data=in_data)
        if depth > 0 and isinstance(value, types.FunctionType) and is_own(value):
            return self._kept_function(value, depth - 1, in_data)
        if depth > 0 and _is_looked_into(value):
            return self._kept_object(value, depth - 1, in_data or isinstance(value, DATA))
        return lambda: value

    def _kept_values(self, value: Any, in_data: bool) -> Restore:
        self._seen.add(id(value))
        number = (
            value.numel() if isinstance(value, Tensor) else value.size if isinstance(value, np.ndarray) else len(value)
        )
        if in_data and number > MOST_ELEMENTS:
            return lambda: value
        if isinstance(value, Tensor):
            return kept_tensor(value, self._copy)
        return kept_array(value) if isinstance(value, np.ndarray) else kept_entries(value)

    def _kept_function(self, function: types.FunctionType, depth: int, in_data: bool) -> Restore:
        """Keep what a function closes over, the values of its defaults, and the generators that its code names."""
        self._seen.add(id(function))
        cells = [(cell, self._kept(cell.cell_contents, depth, in_data)) for cell in _filled(function.__closure__)]
        held = (vars(function), function.__defaults__ or (), function.__kwdefaults__ or {})
        rest = self._within(function, *held, *_generators_of(function), depth=depth, in_data=in_data)

        def restore() -> Any:
            for cell, restore_cell in cells:
                cell.cell_contents = restore_cell()
            return rest()

        return restore

    def _generators_of_class(self, kind: type) -> Restore:
        """Keep the generators that the methods of a class name."""
        own = [found for found in kind.__mro__ if is_own(found) and id(found) not in self._seen]
        self._seen.update(map(id, own))
        methods = [part for found in own for part in vars(found).values() if isinstance(part, types.FunctionType)]
        return self._within(
            kind, *(one for method in methods for one in _generators_of(method)), depth=0, in_data=False
        )

    def _within(self, value: Any, *parts: Any, depth: int, in_data: bool) -> Restore:
        """Keep what a value refers to for good."""
        restores = [self._kept(part, depth, in_data) for part in parts]
        return lambda: ([restore() for restore in restores], value)[1]

    def _kept_container(self, value: Any, depth: int, in_data: bool) -> Restore:
        entries = value.values() if isinstance(value, dict) else value
        plain = isinstance(value, set) or not any(_changes(entry) for entry in entries)
        if (plain and isinstance(value, tuple)) or (not plain and in_data and len(value) > MOST_ENTRIES):
            return lambda: value
        self._seen.add(id(value))
        if isinstance(value, tuple):
            return self._within(value, *value, depth=depth, in_data=in_data)
        restores = [] if plain else [self._kept(entry, depth, in_data) for entry in entries]
        # not value.copy(), which calls the constructor of a class that somebody made of it
        copy = dict(value) if isinstance(value, dict) else set(value) if isinstance(value, set) else list(value)

        def restore() -> Any:
            for restore_entry in restores:
                restore_entry()
            if not _same_entries(value, copy):
                _fill(value, copy)
            return value

        return restore

    def _kept_object(self, owner: Any, depth: int, in_data: bool) -> Restore:
        if isinstance(owner, nn.Module):
            parts = [self._kept_attributes(part, depth, in_data, MODULES_OWN) for part in owner.modules()]
            return lambda: ([restore() for restore in parts], owner)[1]
        return self._kept_attributes(owner, depth, in_data, frozenset())

    def _kept_attributes(self, owner: Any, depth: int, in_data: bool, skipped: frozenset[str]) -> Restore:
        if id(owner) in self._seen:
            return lambda: owner
        self._seen.add(id(owner))
        found = _attributes(owner)
        restores = {k: self._kept(value, depth, in_data) for k, value in found.items() if k not in skipped}
        restore_drawn = self._generators_of_class(type(owner))

        def restore() -> Any:
            restore_drawn()
            now = _attributes(owner)
            for name in now.keys() - found.keys():
                object.__delattr__(owner, name)
            for name, restore_value in restores.items():
                value = restore_value()
                if name not in now or now[name] is not value:
                    object.__setattr__(owner, name, value)
            return owner

        return restore


def is_own(code: Any) -> bool:
    """Tell whether a class or function is nobody's library's.

    Args:
        code: The class or function.
    """
    module = str(code.__module__)
    return module.partition(".")[0] not in LIBRARIES and not module.startswith(CACHE)


def _filled(cells: Iterable[types.CellType] | None) -> Iterator[types.CellType]:
    for cell in cells or ():
        try:
            cell.cell_contents  # noqa: B018 - a variable that has no value yet has none to keep
        except ValueError:
            continue
        yield cell


def _generators_of(function: types.FunctionType) -> Iterator[Any]:
    """Yield the generators that a function's code names, in its module or around it."""
    named = [function.__globals__.get(name) for name in function.__code__.co_names]
    closed = [cell.cell_contents for cell in _filled(function.__closure__)]
    return (value for value in (*named, *closed) if isinstance(value, Generator))


def _num_elements(value: Any) -> int:
    return value.numel() if isinstance(value, Tensor) else value.size if isinstance(value, np.ndarray) else len(value)


def _changes(value: Any) -> bool:
    return not isinstance(value, int | float | complex | str | bytes | bool | None)


def _fill(container: Any, entries: Any) -> None:
    """Put entries in the place of those that a container has, by no method that somebody may have made of its own."""
    if isinstance(container, OrderedDict):
        OrderedDict.clear(container)
        for key, value in entries.items():
            OrderedDict.__setitem__(container, key, value)
        return
    kind: Any = next(kind for kind in (dict, set, list, deque) if isinstance(container, kind))
    kind.clear(container)
    fill: Any = kind.extend if kind in (list, deque) else kind.update
    fill(container, entries)


def _same_entries(one: Any, other: Any) -> bool:
    if isinstance(one, set):
        return one == other
    if isinstance(one, dict):
        return list(one) == list(other) and all(one[key] is other[key] for key in other)
    return len(one) == len(other) and all(mine is theirs for mine, theirs in zip(one, other, strict=True))


def _is_object(value: Any) -> bool:
    return (hasattr(value, "__dict__") or hasattr(value, "__slots__")) and not isinstance(
        value, type | types.FunctionType | Tensor | np.ndarray | tuple | list | deque | dict | set
    )


def _is_looked_into(value: Any) -> bool:
    if not _is_object(value) or isinstance(value, Trainer | Callback | Logger):
        return False
    if isinstance(value, (nn.Module, Optimizer, LRScheduler, *NAMESPACES, *DATA)):
        return True
    return is_own(type(value))


def _attributes(owner: Any) -> dict[str, Any]:
    """Return what an object holds by name, in slots too."""
    slots = [vars(kind).get("__slots__", ()) for kind in type(owner).__mro__]
    names = [name for found in slots for name in ([found] if isinstance(found, str) else found)]
    found = {name: getattr(owner, name) for name in names if not name.startswith("__") and hasattr(owner, name)}
    return found | getattr(owner, "__dict__", {})
