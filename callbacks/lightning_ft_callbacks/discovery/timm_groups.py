"""The blocks of a timm model: the groups in which timm decays learning rates."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from lightning_ft_callbacks.discovery.layout import Layout, laid_out

Group = tuple[float, ...]

# timm's mark of a group that joins the one before it
JOINS_PREVIOUS = 99999.0
UNMATCHED = (float("inf"),)


def timm_blocks(model: Any) -> Layout | None:
    """Return the groups, by stage or layer; None where the model has none of these.

    Source: timm.models.group_with_matcher, https://github.com/huggingface/pytorch-image-models
    """
    try:
        group_of = _grouping(model.group_matcher(coarse=True))
    except AssertionError:  # RDNet: coarse grouping is not implemented
        return None
    names = [name for name, _ in model.named_parameters()]
    found = {name: group_of(name) for name in names}
    first = min(found.values())
    layers = [index for index, name in enumerate(names) if found[name] not in (first, UNMATCHED)]
    groups: dict[Group, list[str]] = defaultdict(list)
    for index, name in enumerate(names):
        # what no pattern matches is the head's, unless it stands before the layers, which then read it
        is_read = found[name] == UNMATCHED and bool(layers) and index < layers[0]
        groups[first if is_read else found[name]].append(name)
    merged: list[list[str]] = []
    for key in sorted(groups):
        if key[-1] == JOINS_PREVIOUS and merged:
            merged[-1].extend(groups[key])
        else:
            merged.append(groups[key])
    return laid_out(model, (_covering(model, names) for names in merged))


def _grouping(matcher: Any) -> Callable[[str], Group]:
    """Return what tells a parameter's group by its name."""
    if callable(matcher):

        def called(name: str) -> Group:
            found: Any = matcher(name)
            return tuple(found) if isinstance(found, Iterable) else (found,)

        return called
    patterns: list[tuple[re.Pattern[str], int, Group]] = []
    for ordinal, spec in enumerate(matcher.values() if isinstance(matcher, Mapping) else ()):
        for pattern, suffix in [(spec, None)] if isinstance(spec, str) else spec or ():
            patterns.append((re.compile(pattern), ordinal, suffix or ()))

    def matched(name: str) -> Group:
        for pattern, ordinal, suffix in patterns:
            if match := pattern.match(name):
                return (ordinal, *(float(part) for part in match.groups() if part is not None), *suffix)
        return UNMATCHED

    return matched


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
