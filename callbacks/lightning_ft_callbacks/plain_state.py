"""PlainState: the plain attributes of an object, to be put back as they were."""

import random
from collections import deque
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# torch's own bookkeeping of modules: hooks and children are not state, parameters and buffers are kept elsewhere
MODULES_OWN = frozenset(vars(nn.Module())) - {"training"}
# written by people to hold state; objects of other classes are not looked into
LIBRARIES = ("torch", "lightning", "pytorch_lightning", "transformers", "timm", "tokenizers", "datasets", "builtins")
DEPTH = 4

Restore = Callable[[], Any]


class PlainState:
    """Numbers, texts, tensors, arrays, generators and containers of these that an object has as attributes.

    What an attribute refers to is put back in place, so that whoever holds it too sees it as it was. Attributes that
    came later are removed.

    Args:
        owner: The object.
        depth: How far objects within objects are looked into.
    """

    def __init__(self, owner: Any, depth: int = DEPTH) -> None:
        self._owner = owner
        skipped = MODULES_OWN if isinstance(owner, nn.Module) else frozenset()
        self._kept = {name: kept(value, depth) for name, value in vars(owner).items() if name not in skipped}
        self._known = set(vars(owner))

    def restore(self) -> Any:
        """Put everything back, and return the object."""
        now = vars(self._owner)
        for name in set(now) - self._known:
            del now[name]
        now.update({name: restore() for name, restore in self._kept.items()})
        return self._owner


def kept(value: Any, depth: int = DEPTH) -> Restore:
    """Return a function that puts a value back as it is now, and returns it.

    Args:
        value: Anything; what is no plain data is returned as it then is.
        depth: How far objects within objects are looked into.
    """
    if isinstance(value, Tensor):
        return _kept_tensor(value)
    if isinstance(value, np.ndarray):
        return _copied_back(value, value.copy())
    if isinstance(value, torch.Generator | random.Random | np.random.Generator | np.random.RandomState):
        return _kept_generator(value)
    if isinstance(value, tuple):
        if not any(_changes(item) for item in value):
            return lambda: value
        items = [kept(item, depth) for item in value]
        return lambda: ([restore() for restore in items], value)[1]  # its items are put back in place
    if isinstance(value, list | deque):
        return _kept_sequence(value, depth)
    if isinstance(value, dict):
        return _kept_dict(value, depth)
    if isinstance(value, set):
        return _kept_set(value)
    if depth > 0 and _holds_state(value):
        return PlainState(value, depth - 1).restore
    return lambda: value


def _changes(value: Any) -> bool:
    return not isinstance(value, int | float | complex | str | bytes | bool | None)


def _holds_state(value: Any) -> bool:
    kind = type(value)
    library = kind.__module__.partition(".")[0]
    return (
        hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value) and library not in LIBRARIES
    )


def _kept_tensor(tensor: Tensor) -> Restore:
    copy = _copy_of(tensor.detach())

    def restore() -> Tensor:
        tensor.detach().copy_(copy)
        return tensor

    return restore


def _copy_of(tensor: Tensor) -> Tensor:
    """Return a copy on the tensor's device, or on the CPU where that has not twice the room."""
    needed = 2 * tensor.numel() * tensor.element_size()
    short = tensor.is_cuda and torch.cuda.mem_get_info(tensor.device)[0] < needed
    return tensor.cpu() if short else tensor.clone()


def _copied_back(array: np.ndarray, copy: np.ndarray) -> Restore:
    def restore() -> np.ndarray:
        if array.flags.writeable:
            array[...] = copy
        return array

    return restore


def _kept_generator(generator: Any) -> Restore:
    if isinstance(generator, np.random.Generator):
        state = deepcopy(generator.bit_generator.state)

        def restore() -> Any:
            generator.bit_generator.state = state
            return generator

        return restore
    read, write = ("getstate", "setstate") if isinstance(generator, random.Random) else ("get_state", "set_state")
    state = getattr(generator, read)()
    return lambda: (getattr(generator, write)(state), generator)[1]


def _kept_sequence(sequence: Any, depth: int) -> Restore:
    items = [kept(item, depth) for item in sequence]

    def restore() -> Any:
        before = [restore() for restore in items]
        sequence.clear()
        sequence.extend(before)
        return sequence

    return restore


def _kept_dict(mapping: dict[Any, Any], depth: int) -> Restore:
    items = {key: kept(value, depth) for key, value in mapping.items()}

    def restore() -> dict[Any, Any]:
        before = {key: restore() for key, restore in items.items()}
        mapping.clear()
        mapping.update(before)
        return mapping

    return restore


def _kept_set(values: set[Any]) -> Restore:
    copy = set(values)

    def restore() -> set[Any]:
        values.clear()
        values.update(copy)
        return values

    return restore
