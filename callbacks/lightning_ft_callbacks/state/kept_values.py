"""Tensors, arrays and generators, kept in memory and put back into the very objects."""

import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor

Generator = torch.Generator | random.Random | np.random.Generator | np.random.RandomState
Restore = Callable[[], Any]


def kept_tensor(tensor: Tensor, copied: Callable[[Tensor], Tensor] = Tensor.clone) -> Restore:
    """Return a function that puts a tensor's values back into it, where they changed, and returns it.

    What nobody wrote to is not written to either: it may be mapped from a file that is read-only.

    Args:
        tensor: The tensor; it may be a view that repeats its elements.
        copied: Copies a tensor, on its device or elsewhere.
    """
    copy, version = copied(_stored(tensor)), _version(tensor)

    def restore() -> Tensor:
        stored = _stored(tensor)
        # some write through `.data` or NumPy, which the version does not tell
        if version is None or _version(tensor) != version or not _same(stored, copy):
            stored.copy_(copy)
        return tensor

    return restore


def kept_array(array: np.ndarray) -> Restore:
    """Return a function that puts an array's values back into it, and returns it.

    Args:
        array: The array; one that is read-only is left alone.
    """
    if not array.flags.writeable:
        return lambda: array
    copy = array.copy()

    def restore() -> np.ndarray:
        array[...] = copy
        return array

    return restore


def kept_entries(values: Any) -> Restore:
    """Return a function that puts numbers back into a bytearray or an array of Python's, and returns it.

    Args:
        values: The bytearray or array.
    """
    copy = values[:]

    def restore() -> Any:
        values[:] = copy
        return values

    return restore


def kept_generator(generator: Any) -> Restore:
    """Return a function that sets a generator back, and returns it.

    Args:
        generator: One of torch, NumPy or Python.
    """
    if isinstance(generator, np.random.Generator):
        before = deepcopy(generator.bit_generator.state)

        def restore() -> Any:
            generator.bit_generator.state = before
            return generator

        return restore
    read, write = ("getstate", "setstate") if isinstance(generator, random.Random) else ("get_state", "set_state")
    state = getattr(generator, read)()
    return lambda: (getattr(generator, write)(state), generator)[1]


def _stored(tensor: Tensor) -> Tensor:
    """Return a view of each element once: an expanded tensor has many that are one in memory."""
    view = tensor.detach()
    if view.layout is torch.strided and not view.is_nested:
        for axis, stride in enumerate(view.stride()):
            if stride == 0 and view.shape[axis] > 1:
                view = view.narrow(axis, 0, 1)
    return view


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _same(now: Tensor, copy: Tensor) -> bool:
    if type(now) is not Tensor or now.layout is not torch.strided or now.device != copy.device:
        return False
    return now.is_meta or torch.equal(now, copy) or bool(((now == copy) | ((now != now) & (copy != copy))).all())
