"""Finding the blocks of a module that nobody has listed: timm, transformers, anything else."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from lightning_ft_callbacks.discovery.layout import Layout, has_parameters, is_list, laid_out, name_of, within
from lightning_ft_callbacks.discovery.timm_groups import timm_blocks
from lightning_ft_callbacks.discovery.transformers_layers import transformers_blocks


def discover(module: nn.Module) -> Layout:
    """Return the blocks of a module, input first: names, and the paths of modules and parameters.

    Args:
        module: The module, whose paths they are.
    """
    if isinstance(inside := module._modules.get("_orig_mod"), nn.Module):  # torch.compile's wrapper
        return {name: tuple(f"_orig_mod.{path}" for path in paths) for name, paths in discover(inside).items()}
    if (own := _own_blocks(module)) is not None:
        return own
    found = None
    if _is_timm(module):
        found = timm_blocks(module)
    elif _is_transformers(module):
        found = transformers_blocks(module)
    elif any(_is_known(part) for part in module.modules()):
        found = _around_known(module)
    return found or laid_out(module, ([path] for path in _parts(module)))


def _own_blocks(module: nn.Module) -> Layout | None:
    """Return what a module's own method ``blocks()`` lists; None where it has none, or another one of that name."""
    own = getattr(module, "blocks", None)
    if not inspect.ismethod(own) or any(p.default is p.empty for p in inspect.signature(own).parameters.values()):
        return None
    listed: Any = own()
    if isinstance(listed, Mapping):
        return {name: (paths,) if isinstance(paths, str) else tuple(paths) for name, paths in listed.items()}
    if isinstance(listed, Sequence) and all(isinstance(path, str) for path in listed):
        return {path: (path,) for path in listed}
    return None


def _is_timm(module: nn.Module) -> bool:
    return inspect.ismethod(getattr(module, "group_matcher", None))


def _is_transformers(module: nn.Module) -> bool:
    return any(base.__name__ == "PreTrainedModel" for base in type(module).__mro__)


def _is_known(module: nn.Module) -> bool:
    return _is_timm(module) or _is_transformers(module) or _own_blocks(module) is not None


def _around_known(module: nn.Module) -> Layout:
    """Return the blocks of the pretrained models inside, and everything beside them, which is new, as the last one."""
    layout: Layout = {}
    beside = [name for name, _ in module.named_parameters(recurse=False)]
    for name, child in module.named_children():
        if any(_is_known(part) for part in child.modules()):
            layout |= within(name, discover(child))
        elif has_parameters(child):
            beside.append(name)
    if beside:
        layout[name_of(beside, "tail")] = tuple(beside)
    return layout


def _parts(module: nn.Module) -> list[str]:
    """Return the paths of the parts of a module that nobody knows: its children, lists and what holds them opened."""
    children = [(name, child) for name, child in module.named_children() if has_parameters(child)]
    paths = [name for name, _ in module.named_parameters(recurse=False)]
    if len(children) == 1 and not paths and any(map(has_parameters, children[0][1].children())):
        # a wrapper's level: its only child is looked into
        name, child = children[0]
        return [f"{name}.{path}" for path in _parts(child)]
    for name, child in children:
        if is_list(child):
            paths += [f"{name}.{path}" for path in _layers(child)]
        elif _holds_list(child):
            paths += [f"{name}.{path}" for path in _parts(child)]
        else:
            paths.append(name)
    return paths


def _layers(layers: nn.Module) -> list[str]:
    """Return the paths of a list's layers, and of those of lists in it; a Sequential in a list is a layer."""
    paths = [name for name, _ in layers.named_parameters(recurse=False)]
    for name, layer in layers.named_children():
        if is_list(layer) and not isinstance(layer, nn.Sequential):
            paths += [f"{name}.{path}" for path in _layers(layer)]
        elif has_parameters(layer):
            paths.append(name)
    return paths


def _holds_list(module: nn.Module) -> bool:
    return any(is_list(child) and sum(map(has_parameters, child.children())) > 1 for child in module.children())
