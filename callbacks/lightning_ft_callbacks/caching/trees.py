"""Leaves of what a step is given: of any mapping, as transformers' collators make them, of dataclasses and the rest."""

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import is_dataclass
from typing import Any

from torch.utils._pytree import SUPPORTED_NODES, TreeSpec, tree_flatten, tree_leaves, tree_map


def leaves_of(tree: Any) -> list[Any]:
    """Return the leaves of a batch.

    Args:
        tree: Mappings, dataclasses, sequences and what torch knows, nested as one likes.
    """
    found: list[Any] = []
    for leaf in tree_leaves(tree, is_leaf=_is_opaque):
        found += [part for value in _parts(leaf).values() for part in leaves_of(value)] if _is_whole(leaf) else [leaf]
    return found


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return a batch of the same structure with other leaves.

    Args:
        function: Returns the new leaf for an old one.
        tree: As in ``leaves_of``.
    """

    def change(leaf: Any) -> Any:
        if not _is_whole(leaf):
            return function(leaf)
        made = copy(leaf)
        parts = {name: map_leaves(function, value) for name, value in _parts(leaf).items()}
        if isinstance(made, Mapping):
            made.update(parts)  # type: ignore[attr-defined]
        else:
            made.__dict__.update(parts)
        return made

    return tree_map(change, tree, is_leaf=_is_opaque)


def flatten(tree: Any) -> tuple[list[Any], TreeSpec]:
    """Return the leaves and the structure of arguments; a model's cache of keys and values is a leaf."""
    return tree_flatten(tree, is_leaf=is_cache)


def _is_whole(part: Any) -> bool:
    """Tell whether something is a mapping or a dataclass that torch does not know as one."""
    is_data = is_dataclass(part) and not isinstance(part, type) and hasattr(part, "__dict__")
    return (isinstance(part, Mapping) or is_data) and type(part) not in SUPPORTED_NODES


def _parts(whole: Any) -> Mapping[Any, Any]:
    return whole if isinstance(whole, Mapping) else vars(whole)


def is_cache(part: Any) -> bool:
    """Tell whether something is a model's cache of keys and values."""
    return type(part).__name__.endswith("Cache")


def _is_opaque(part: Any) -> bool:
    return _is_whole(part) or is_cache(part)
