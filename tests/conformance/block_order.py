"""Which parameters of lower blocks work on what higher blocks give, seen in the graph of one forward pass."""

from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from lightning_ft_callbacks import BlockMap


def out_of_order(block_map: BlockMap, outputs: Any) -> list[str]:
    """Return the parameters whose operation reads what a higher block gives.

    Where that is trained alone, the backward pass goes through these too, though their block is frozen. Parameters
    that are used several times are left out: a tied output layer is in the lowest block, and has to be.

    Args:
        block_map: The blocks of the module.
        outputs: What it gave, with gradients.
    """
    position = {name: index for index, name in enumerate(block_map.names)}
    owner = {identity: position[name] for identity, name in block_map.owners().items()}
    names = {id(parameter): name for name, parameter in block_map.root.named_parameters()}
    highest: dict[Any, int] = {}  # of the blocks that a node depends on
    alone: dict[Any, int] = {}  # the one parameter that a node is a view of
    uses: dict[int, list[int]] = {}  # of a parameter: the highest blocks of what it works on
    for node in _in_order(outputs):
        variable = getattr(node, "variable", None)
        inputs = [before for before, _ in node.next_functions if before is not None]
        if variable is not None:
            highest[node], alone[node] = owner.get(id(variable), -1), id(variable)
            continue
        highest[node] = max((highest[before] for before in inputs), default=-1)
        if len(inputs) == 1 and inputs[0] in alone:
            alone[node] = alone[inputs[0]]
            continue
        for before in inputs:
            if before in alone:
                others = [highest[other] for other in inputs if other is not before]
                uses.setdefault(alone[before], []).append(max(others, default=-1))
    return [names[key] for key, (read, *more) in uses.items() if not more and key in owner and read > owner[key]]


def _in_order(outputs: Any) -> list[Any]:
    """Return the nodes of a graph, each after those that it reads."""
    roots = [leaf.grad_fn for leaf in tree_leaves(outputs) if isinstance(leaf, torch.Tensor) and leaf.grad_fn]
    ordered: list[Any] = []
    seen: set[Any] = set()
    waiting = [(root, False) for root in roots]
    while waiting:
        node, is_done = waiting.pop()
        if is_done:
            ordered.append(node)
        elif node not in seen:
            seen.add(node)
            waiting.append((node, True))
            waiting += [(before, False) for before, _ in node.next_functions if before is not None]
    return ordered
