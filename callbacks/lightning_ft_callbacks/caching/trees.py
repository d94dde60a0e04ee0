"""Leaves of what a step is given: of any mapping, as transformers' collators make them, and of what torch knows."""

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

from torch.utils._pytree import SUPPORTED_NODES, TreeSpec, tree_flatten, tree_leaves, tree_map


def leaves_of(tree: Any) -> list[Any]:
    """Return the leaves of a batch.

    Args:
        tree: Mappings, sequences and what torch knows, nested as one likes.
    """
    found: list[Any] = []
    for leaf in tree_leaves(tree, is_leaf=_is_opaque):
        found += [part for value in leaf.values() for part in leaves_of(value)] if _is_mapping(leaf) else [leaf]
    return found


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return a batch of the same structure with other leaves.

    Args:
        function: Returns the new leaf for an old one.
        tree: As in ``leaves_of``.
    """

    def change(leaf: Any) -> Any:
        if not _is_mapping(leaf):
            return function(leaf)
        made = copy(leaf)
        for name, value in leaf.items():
            made[name] = map_leaves(function, value)
        return made

    return tree_map(change, tree, is_leaf=_is_opaque)


def flatten(tree: Any) -> tuple[list[Any], TreeSpec]:
    """Return the leaves and the structure of arguments; a model's cache of keys and values is a leaf."""
    return tree_flatten(tree, is_leaf=_is_cache)


def _is_mapping(part: Any) -> bool:
    """Tell whether something is a mapping that torch does not know as one."""
    return isinstance(part, Mapping) and type(part) not in SUPPORTED_NODES


def _is_cache(part: Any) -> bool:
    return type(part).__name__.endswith("Cache")


def _is_opaque(part: Any) -> bool:
    return _is_mapping(part) or _is_cache(part)
