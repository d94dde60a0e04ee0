"""Finding the blocks of a module that nobody has listed: timm, transformers, anything else."""

import inspect
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any

from torch import nn

# names and paths of blocks, input first
Layout = dict[str, tuple[str, ...]]

# timm's mark of a group that joins the one before it
JOINS_PREVIOUS = 99999.0


def discover(module: nn.Module) -> Layout:
    """Return the blocks of a module, input first: names, and the paths of modules and parameters.

    Args:
        module: The module, whose paths they are.
    """
    if isinstance(inside := module._modules.get("_orig_mod"), nn.Module):  # torch.compile's wrapper
        return {name: tuple(f"_orig_mod.{path}" for path in paths) for name, paths in discover(inside).items()}
    if inspect.ismethod(own := getattr(module, "blocks", None)):
        listed: Any = own()
        pairs = listed.items() if isinstance(listed, Mapping) else ((path, path) for path in listed)
        return {name: (paths,) if isinstance(paths, str) else tuple(paths) for name, paths in pairs}
    if _is_timm(module):
        return _timm_blocks(module)
    if _is_transformers(module):
        return _transformers_blocks(module)
    if any(_is_known(part) for part in module.modules()):
        return _around_known(module)
    return _children(module)


def _is_timm(module: nn.Module) -> bool:
    return inspect.ismethod(getattr(module, "group_matcher", None))


def _is_transformers(module: nn.Module) -> bool:
    return any(base.__name__ == "PreTrainedModel" for base in type(module).__mro__)


def _is_known(module: nn.Module) -> bool:
    return inspect.ismethod(getattr(module, "blocks", None)) or _is_timm(module) or _is_transformers(module)


def _around_known(module: nn.Module) -> Layout:
    """Return the blocks of the pretrained models inside, and everything beside them, which is new, as the last one."""
    layout: Layout = {}
    beside = [name for name, _ in module.named_parameters(recurse=False)]
    for name, child in module.named_children():
        if any(_is_known(part) for part in child.modules()):
            inner = discover(child)
            layout |= {f"{name}.{block}": tuple(f"{name}.{path}" for path in paths) for block, paths in inner.items()}
        elif next(child.parameters(), None) is not None:
            beside.append(name)
    if beside:
        layout[_name(beside, "tail")] = tuple(beside)
    return layout


def _children(module: nn.Module) -> Layout:
    """Return the children of a module that nobody knows, lists and Sequentials opened."""
    children = [(name, child) for name, child in module.named_children() if _has_parameters(child)]
    direct = [name for name, _ in module.named_parameters(recurse=False)]
    if len(children) == 1 and not direct and any(map(_has_parameters, children[0][1].children())):
        # a wrapper's level: its only child is looked into
        name, child = children[0]
        inner = _children(child)
        return {f"{name}.{block}": tuple(f"{name}.{path}" for path in paths) for block, paths in inner.items()}
    layout: Layout = {_name(direct, "stem"): tuple(direct)} if direct else {}
    for name, child in children:
        if _is_stack(child):
            inner = _children(child) if not isinstance(child, _LISTS) else _items(child)
            layout |= {f"{name}.{block}": tuple(f"{name}.{path}" for path in paths) for block, paths in inner.items()}
        else:
            layout[name] = (name,)
    return layout


_LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


def _is_stack(module: nn.Module) -> bool:
    """Tell whether a module is a list of layers, or holds one among its children."""
    return isinstance(module, _LISTS) or any(
        isinstance(child, _LISTS) and sum(map(_has_parameters, child.children())) > 1 for child in module.children()
    )


def _items(layers: nn.Module) -> Layout:
    return {name: (name,) for name, child in layers.named_children() if _has_parameters(child)}


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _timm_blocks(model: Any) -> Layout:
    """Return the groups in which timm would decay learning rates, by stage or layer.

    Source: timm.models.group_with_matcher, https://github.com/huggingface/pytorch-image-models
    """
    matcher: Any = model.group_matcher(coarse=True)
    patterns: list[tuple[re.Pattern[str], int, tuple[float, ...]]] = []
    for ordinal, spec in enumerate(matcher.values() if isinstance(matcher, Mapping) else ()):
        for pattern, suffix in [(spec, None)] if isinstance(spec, str) else spec or ():
            patterns.append((re.compile(pattern), ordinal, suffix or ()))

    def group(name: str) -> tuple[float, ...]:
        if callable(matcher):
            found: Any = matcher(name)
            return tuple(found) if isinstance(found, Iterable) else (found,)
        for pattern, ordinal, suffix in patterns:
            if match := pattern.match(name):
                return (ordinal, *(float(part) for part in match.groups() if part is not None), *suffix)
        return (float("inf"),)

    groups: dict[tuple[float, ...], list[str]] = defaultdict(list)
    for name, _ in model.named_parameters():
        groups[group(name)].append(name)
    merged: list[list[str]] = []
    for key in sorted(groups):
        joins = key[-1] == JOINS_PREVIOUS or _only_norms(model, groups[key])
        if joins and merged:
            merged[-1].extend(groups[key])
        else:
            merged.append(groups[key])
    layout: Layout = {}
    for position, names in enumerate(merged):
        paths = _covering(model, names)
        layout[_name(paths, "stem" if position == 0 else "tail")] = tuple(paths)
    return layout


def _transformers_blocks(model: Any) -> Layout:
    """Return the embeddings, the layers, and the task head of a transformers model.

    What lies between or behind the layers (a final norm, a pooler) joins the layer before it; embeddings that are
    registered behind the layers, but are read by all of them, join the others.
    """
    base = model.base_model
    prefix = "" if base is model else f"{model.base_model_prefix}."
    stem: list[str] = []
    layers: list[list[str]] = []
    for path, part, is_layer in _parts(base, prefix):
        if is_layer:
            layers.append([path])
        elif not layers or isinstance(part, nn.Embedding):
            stem.append(path)
        else:
            layers[-1].append(path)
    beside = (
        []
        if base is model
        else [name for name, child in model.named_children() if child is not base and _has_parameters(child)]
    )
    beside += [] if base is model else [name for name, _ in model.named_parameters(recurse=False)]
    layout: Layout = {_name(stem, "stem"): tuple(stem)} if stem else {}
    layout |= {paths[0]: tuple(paths) for paths in layers}
    if beside:
        layout[_name(beside, "tail")] = tuple(beside)
    return layout


def _parts(module: nn.Module, prefix: str) -> list[tuple[str, Any, bool]]:
    """Return a model's parts in the order of registration: path, module or parameter, whether it is a layer of a list.

    Modules that hold a list of layers are opened, and nothing else.
    """
    parts: list[tuple[str, Any, bool]] = [
        (f"{prefix}{name}", parameter, False) for name, parameter in module.named_parameters(recurse=False)
    ]
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if not _has_parameters(child):
            continue
        if isinstance(child, nn.ModuleList):
            parts += [(f"{path}.{index}", layer, True) for index, layer in enumerate(child) if _has_parameters(layer)]
        elif any(isinstance(part, nn.ModuleList) and _has_parameters(part) for part in child.modules()):
            parts += _parts(child, f"{path}.")
        else:
            parts.append((path, child, False))
    return parts


def _covering(module: nn.Module, names: list[str]) -> list[str]:
    """Return the fewest paths that cover a set of parameters and no other, in the order of registration."""
    wanted = set(names)
    paths = [name for name, _ in module.named_parameters(recurse=False) if name in wanted]
    for name, child in module.named_children():
        inside = [inner for inner, _ in child.named_parameters()]
        chosen = [inner for inner in inside if f"{name}.{inner}" in wanted]
        if chosen and len(chosen) == len(inside):
            paths.append(name)
        elif chosen:
            paths += [f"{name}.{path}" for path in _covering(child, chosen)]
    return paths


def _only_norms(model: nn.Module, names: list[str]) -> bool:
    """Tell whether all parameters are those of normalisations."""
    return all("norm" in type(model.get_submodule(name.rpartition(".")[0])).__name__.lower() for name in names)


def _name(paths: list[str], position: str) -> str:
    """Return the name of a block: its only path; that of its one layer; else the common parent and its position."""
    if len(paths) == 1:
        return paths[0]
    layers = [path for path in paths if path.rpartition(".")[2].isdigit()]
    if len(layers) == 1:
        return layers[0]
    levels = zip(*(path.split(".")[:-1] for path in paths), strict=False)
    common = ".".join(names[0] for names in takewhile(lambda names: len(set(names)) == 1, levels))
    return f"{common}.{position}" if common else position
