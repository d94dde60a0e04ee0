"""Postponed: a tensor that is computed when somebody reads it, and has a shape, a type and a device until then."""

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from lightning_ft_callbacks.caching.sample_shapes import CannotCacheError
from lightning_ft_callbacks.caching.trees import map_leaves

Postponements = list["ref[Postponed]"]
# what depends on values that are there, or draws random numbers at its turn
AT_ONCE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded}
RESHAPES = {torch.ops.aten.resize_, torch.ops.aten.resize_as_, torch.ops.aten.set_}
MAX_SHAPES = 4096
SHAPES: dict[Any, Any] = {}  # what operations give on the device ``meta``, by operation and arguments' shapes
# what looks at memory without an operation that could be postponed
READS_MEMORY = {
    Tensor.numpy,
    Tensor.tolist,
    Tensor.data_ptr,
    Tensor.untyped_storage,
    Tensor.storage,
    Tensor._typed_storage,
    Tensor.__dlpack__,
    Tensor.__array__,
    Tensor.__format__,
    Tensor.__repr__,
    Tensor.__deepcopy__,
    Tensor.__reduce_ex__,
}


class Promise:
    """Tensors that are computed once, when the first of them is read.

    Args:
        compute: Computes them.
        key: Made of all that was done to come here, the same for the same operations; None where nobody asks.
    """

    def __init__(self, compute: Callable[[], Sequence[Any]], key: Hashable = None) -> None:
        self._compute: Callable[[], Sequence[Any]] | None = compute
        self._kept: Sequence[Any] = ()
        self._versions: list[int | None] = []
        self.key = None if key is None else hash(key)

    @property
    def is_kept(self) -> bool:
        """Whether it has been computed."""
        return self._compute is None

    def keep(self) -> Sequence[Any]:
        """Return the tensors."""
        if self._compute is not None:
            self._kept = self._compute()
            self._compute = None
            self._versions = [version_of(leaf) for leaf in self._kept]
        return self._kept

    def version(self, number: int) -> int | None:
        """Return how often a tensor had been written to when it was computed; None before."""
        return self._versions[number] if self.is_kept else None


class Postponed(Tensor):
    """A tensor that a promise will give.

    Operations on it are postponed too. They are done, with all that they need, when something is read that depends on
    them: a number, a branch, a gradient. So whatever is done with it gives what it would have given at once.

    Args:
        like: A tensor of the same shape and type, on the device ``meta``.
        device: Its device.
        promise: What gives it.
        number: Which of the promise's tensors it is.
        notes: Where it notes itself, for those who must know what is still alive; None for nobody.
        aliases: All that share its memory, as far as that is known.
    """

    like: Tensor
    promise: Promise
    number: int
    notes: Postponements | None
    aliases: Postponements

    @staticmethod
    def __new__(
        cls: type["Postponed"],
        like: Tensor,
        device: torch.device,
        promise: Promise,
        number: int = 0,
        notes: Postponements | None = None,
        aliases: Postponements | None = None,
    ) -> "Postponed":
        """Make it."""
        self = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=device
        )
        self.like, self.promise, self.number, self.notes = like, promise, number, notes
        self.aliases = [] if aliases is None else aliases
        for list_of in (self.aliases, notes):
            if list_of is not None:
                list_of.append(ref(self))
        return self

    def again(self) -> "Postponed":
        """Return the same once more, so that what is written into one is not in the other."""
        return Postponed(self.like, self.device, self.promise, self.number, self.notes)

    def known(self) -> Tensor:
        """Return it as a tensor of torch's own.

        Raises:
            CannotCacheError: If it turns out to have another shape.
        """
        value = self.promise.keep()[self.number]
        if value.shape != self.shape:
            raise CannotCacheError(
                f"a postponed tensor of shape {tuple(self.shape)} has {tuple(value.shape)} after all"
            )
        return value

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Give functions that look at memory what they look for."""
        args, kwargs = args, kwargs or {}
        if func in READS_MEMORY:
            args, kwargs = map_leaves(_data, (args, kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Postpone an operation where that can be done."""
        operation = _Operation(func, args, kwargs or {})
        return operation.write() if func._schema.is_mutable else operation.read()


def known(tree: Any) -> Any:
    """Return a structure whose postponed tensors are computed; those with a gradient stay what gradients flow through.

    Args:
        tree: Any structure.
    """

    def compute(leaf: Any) -> Any:
        if not isinstance(leaf, Postponed):
            return leaf
        value = leaf.known()
        return leaf if leaf.requires_grad else value

    return map_leaves(compute, tree)


def alive(notes: Postponements) -> list[Postponed]:
    """Return the tensors among those noted that somebody still holds."""
    return [tensor for one in notes if (tensor := one()) is not None]


@dataclass(frozen=True, slots=True)
class _Past:
    """A tensor as it was when an operation was to be done with it."""

    source: Promise | Tensor
    number: int
    written: int | None

    @classmethod
    def of(cls, leaf: Any) -> Any:
        if isinstance(leaf, Postponed):
            kept = leaf.promise.keep()[leaf.number] if leaf.promise.is_kept else None
            return cls(leaf.promise, leaf.number, version_of(kept))
        return cls(leaf, 0, version_of(leaf)) if isinstance(leaf, Tensor) else leaf

    def value(self) -> Tensor:
        tensor, written = self.source, self.written
        if isinstance(tensor, Promise):
            promise, tensor = tensor, tensor.keep()[self.number]
            written = promise.version(self.number) if written is None else written
        if version_of(tensor) != written:
            raise CannotCacheError(
                "a tensor was changed in place before something was read that had been made of it; clone it first"
            )
        return tensor


class _Operation:
    """An operation with some arguments, at least one of them postponed."""

    def __init__(self, func: Any, args: Any, kwargs: Any) -> None:
        self._func = func
        self._leaves, self._spec = tree_flatten((args, kwargs))
        self._late = [leaf for leaf in self._leaves if isinstance(leaf, Postponed)]
        # what something trained takes part in is nothing to postpone
        self._learns = any(
            isinstance(leaf, Tensor) and leaf.requires_grad and not isinstance(leaf, Postponed) for leaf in self._leaves
        )
        self._notes = next((late.notes for late in self._late if late.notes is not None), None)

    def read(self) -> Any:
        """Do an operation that changes nothing, later if that can be."""
        if self._learns or AT_ONCE & {*self._func.tags} or all(late.promise.is_kept for late in self._late):
            return self._at_once()
        try:
            found = self._shapes()
        except Exception:  # it may have no rule for shapes, or be wrong: then its own error is the right one
            return self._at_once()
        first = self._late[0]
        device = next((torch.device(leaf) for leaf in self._leaves if isinstance(leaf, torch.device)), first.device)
        past = [_Past.of(leaf) for leaf in self._leaves]
        promise = Promise(lambda: tree_leaves(self._call(self._func, _values(past))), self._key)
        shares = any(part.alias_info is not None for part in self._func._schema.returns)
        aliases = first.aliases if shares else None
        leaves, spec = tree_flatten(found)
        later = [
            Postponed(leaf, device, promise, number, self._notes, aliases) if isinstance(leaf, Tensor) else leaf
            for number, leaf in enumerate(leaves)
        ]
        self._leaves, self._late = [], []  # the promise holds what it needs
        return tree_unflatten(later, spec)

    def write(self) -> Any:
        """Do an operation in place: on a tensor that nothing else shares by a promise of what it will then be."""
        if torch.Tag.inplace_view in self._func.tags or self._func.overloadpacket in RESHAPES:
            raise CannotCacheError(
                f"{self._func} changes the shape of a tensor in place, which was not computed yet; use one that gives "
                "another tensor"
            )
        target = self._leaves[0]
        arguments = self._func._schema.arguments
        written = [part for part in arguments if part.alias_info is not None and part.alias_info.is_write]
        first_alone = written == arguments[:1] and isinstance(tree_unflatten(self._leaves, self._spec)[0][0], Tensor)
        if not (first_alone and isinstance(target, Postponed) and len(alive(target.aliases)) == 1):
            for tensor in alive([*(self._notes or []), *(one for late in self._late for one in late.aliases)]):
                tensor.known()
            found = self._at_once()
            return next((late for late in self._late if late.known() is found), found)
        past = [_Past.of(leaf) for leaf in self._leaves]
        was_kept = target.promise.is_kept

        def compute() -> Sequence[Any]:
            first, *rest = _values(past)
            return [self._call(self._func, [first.clone(), *rest])]

        target.promise, target.number = Promise(compute, self._key), 0
        if was_kept or self._learns or AT_ONCE & {*self._func.tags}:
            target.promise.keep()
        self._leaves, self._late = [], []
        return target

    @property
    def _key(self) -> Hashable:
        """Made of the operation, its arguments' operations, and numbers that change values rather than shapes."""
        keys = [late.promise.key for late in self._late]
        if not any(keys):
            return None
        numbers = [leaf for leaf in self._leaves if isinstance(leaf, int | float | str | None)]
        changes_values = torch.Tag.pointwise in self._func.tags
        return self._func, *keys, *(numbers if changes_values else [])

    def _shapes(self) -> Any:
        """Return what the operation gives, on the device ``meta``; known from the last time, because that is slow."""
        question = self._func, self._spec, tuple(map(_shape_of, self._leaves))
        if question not in SHAPES:
            if len(SHAPES) > MAX_SHAPES:
                SHAPES.clear()
            SHAPES[question] = self._call(self._func, [_on_meta(leaf) for leaf in self._leaves])
        return SHAPES[question]

    def _at_once(self) -> Any:
        return self._call(self._func, [_data(leaf) for leaf in self._leaves])

    def _call(self, func: Callable[..., Any], leaves: Sequence[Any]) -> Any:
        args, kwargs = tree_unflatten(leaves, self._spec)
        return func(*args, **kwargs)


def surroundings(device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Return what brings back the precision that torch computes with here and now.

    Args:
        device: Where something will be computed.
    """
    kind = device.type
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return lambda: torch.autocast(kind, dtype=dtype, enabled=enabled)


def _data(leaf: Any) -> Any:
    return leaf.known() if isinstance(leaf, Postponed) else leaf


def _values(past: Sequence[Any]) -> list[Any]:
    return [leaf.value() if isinstance(leaf, _Past) else leaf for leaf in past]


def _shape_of(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return type(leaf), leaf
    like = leaf.like if isinstance(leaf, Postponed) else leaf
    return like.shape, like.stride(), like.dtype, leaf.device


def _on_meta(leaf: Any) -> Any:
    if isinstance(leaf, Postponed):
        return leaf.like
    if isinstance(leaf, torch.device):
        return torch.device("meta")
    return leaf.to("meta") if isinstance(leaf, Tensor) else leaf


def version_of(tensor: Any) -> int | None:
    """Return how often a tensor was written to; None where torch does not count that."""
    return tensor._version if isinstance(tensor, Tensor) and not tensor.is_inference() else None
