"""Layout: blocks as names and paths; how groups of paths become blocks, and what these are called."""

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

# names and paths of blocks, input first
Layout = dict[str, tuple[str, ...]]

_LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


def laid_out(model: nn.Module, groups: Iterable[Sequence[str]]) -> Layout:
    """Return the blocks that groups of paths are.

    Parameters of the model itself and norms are no layers: they join the group before, the first ones the one after.

    Args:
        model: The model.
        groups: Paths of modules and parameters, input first.
    """
    joined: list[list[str]] = []
    waiting: list[str] = []
    for group in groups:
        if not all(is_no_layer(_part(model, path)) for path in group):
            joined.append([*waiting, *group])
            waiting = []
        elif joined:
            joined[-1] += group
        else:
            waiting += group
    if waiting:
        joined.append(waiting)
    layout: Layout = {}
    for position, paths in enumerate(joined):
        others = [path for group in joined if group is not paths for path in group]
        end = {0: "stem", len(joined) - 1: "tail"}.get(position) if others else None
        layout[_name(model, paths, others, end)] = tuple(paths)
    return layout


def within(name: str, layout: Layout) -> Layout:
    """Return a child's blocks as those of its parent."""
    return {f"{name}.{block}": tuple(f"{name}.{path}" for path in paths) for block, paths in layout.items()}


def name_of(paths: Sequence[str], end: str) -> str:
    """Return the name of a block: its only path; that of its one layer; else the common parent and the end it is at."""
    if len(paths) == 1:
        return paths[0]
    layers = [path for path in paths if path.rpartition(".")[2].isdigit()]
    if len(layers) == 1:
        return layers[0]
    common = _common_parent(paths)
    return f"{common}.{end}" if common else end


def is_list(module: nn.Module) -> bool:
    """Tell whether a module is a list of modules, other than what ``torch.nn.utils.parametrize`` adds."""
    added = isinstance(module, ParametrizationList)
    return isinstance(module, _LISTS) and not added and not any(map(_is_added, module.children()))


def has_parameters(module: nn.Module) -> bool:
    """Tell whether a module has any."""
    return next(module.parameters(), None) is not None


def _is_added(module: nn.Module) -> bool:
    return isinstance(module, ParametrizationList)


def is_no_layer(part: Any) -> bool:
    """Tell whether a part is a parameter alone, or nothing but norms."""
    if not isinstance(part, nn.Module):
        return True
    own = [module for module in part.modules() if next(module.parameters(recurse=False), None) is not None]
    return all("norm" in type(module).__name__.lower() and not isinstance(module, nn.Embedding) for module in own)


def _name(model: nn.Module, paths: Sequence[str], others: Sequence[str], end: str | None) -> str:
    """Return the name of a block, given all others' paths.

    That is its largest layer's or, between the ends, the parent's that it has for itself, or its largest part's.
    """
    parts = [path for path in paths if not is_no_layer(_part(model, path))] or paths
    layers = [path for path in parts if path.rpartition(".")[2].isdigit()]
    if not layers and end:
        return name_of(paths, end)
    common = _common_parent(parts)
    if not layers and common and not any(path.startswith(f"{common}.") for path in others):
        return common
    return max(layers or parts, key=lambda path: _size(model, path))


def _common_parent(paths: Sequence[str]) -> str:
    levels = zip(*(path.split(".")[:-1] for path in paths), strict=False)
    return ".".join(names[0] for names in takewhile(lambda names: len(set(names)) == 1, levels))


def _size(model: nn.Module, path: str) -> int:
    part = _part(model, path)
    return sum(parameter.numel() for parameter in part.parameters()) if isinstance(part, nn.Module) else part.numel()


def _part(model: nn.Module, path: str) -> Any:
    parent, _, name = path.rpartition(".")
    return getattr(model.get_submodule(parent), name)
