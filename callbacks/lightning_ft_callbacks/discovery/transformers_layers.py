"""The blocks of a transformers model: its embeddings, its layers, its task head."""

import re
from typing import Any

from torch import nn

from lightning_ft_callbacks.discovery.layout import Layout, has_parameters, is_list, is_no_layer, laid_out, name_of

# paths, and what they are: read by layers ("input"), a layer, or reading them ("output")
Part = tuple[list[str], str]

# names of what the layers read, and of what reads them, wherever they are registered
READ_BY_LAYERS = re.compile(r"emb|position|rel_pos|relative")
READS_LAYERS = re.compile(r"final|project_out|ln_f|post|after|pooler|logit")


def transformers_blocks(model: Any) -> Layout | None:
    """Return the embeddings, the layers, and the task head of a transformers model; None if it has no list of layers.

    What comes before the layers is one block, in each part of a model that has several: an encoder and a decoder, a
    tower for texts and one for images. What comes behind them (a final norm, a pooler) joins the last of them.
    """
    base = _base(model)
    prefix = "" if base is model else f"{model.base_model_prefix}."
    if not _holds_layers(base):
        return None
    groups: list[list[str]] = []
    before = ""
    for paths, role in _parts(base, prefix):
        if groups and (role == "output" or role == before == "input"):
            groups[-1] += paths
        else:
            groups.append([*paths])
        before = role
    layout = laid_out(model, groups)
    if base is not model:
        beside = [name for name, child in model.named_children() if child is not base and has_parameters(child)]
        beside += [name for name, _ in model.named_parameters(recurse=False)]
        if beside:
            layout[name_of(beside, "tail")] = tuple(beside)
    return layout


def _base(model: Any) -> Any:
    """Return what a task head is put on; the model itself where its embeddings are beside that too."""
    base = model.base_model
    beside = (name for name, child in model.named_children() if child is not base and has_parameters(child))
    return model if any(READ_BY_LAYERS.search(name) for name in beside) else base


def _parts(module: nn.Module, prefix: str) -> list[Part]:
    """Return a module's parts in the order in which data pass them.

    Modules that hold a list of layers are opened, and nothing else. The order is that of registration, but for what
    is named as read by the layers, or as reading them.
    """
    parts: list[tuple[str, Any]] = [*module.named_parameters(recurse=False)]
    parts += [(name, child) for name, child in module.named_children() if has_parameters(child)]
    opened = [index for index, (name, part) in enumerate(parts) if _is_opened(name, part)]
    lists = [parts[index] for index in opened if isinstance(parts[index][1], nn.ModuleList)]
    first: list[Part] = []
    middle: list[Part] = []
    last: list[Part] = []
    is_read = False
    for index, (name, part) in enumerate(parts):
        path = f"{prefix}{name}"
        reads = bool(READS_LAYERS.search(name))
        named_as_read = bool(READ_BY_LAYERS.search(name)) and not reads
        if index in opened and isinstance(part, nn.ModuleList):
            beside = [other for other in lists if len(other[1]) == len(part)]
            middle += _layers(beside, prefix) if beside[0][0] == name else []
        elif index in opened:
            middle += _parts(part, f"{path}.")
        elif index < opened[0]:
            (last if reads else first).append(([path], "output" if reads else "input"))
        elif index < opened[-1]:
            middle.append(([path], "input" if named_as_read else "output"))
        else:
            (first if is_read or named_as_read else last).append(
                ([path], "input" if is_read or named_as_read else "output")
            )
            # what follows embeddings is theirs: a norm, a projection
            is_read = is_read or (named_as_read and not is_no_layer(part))
    return [*first, *middle, *last]


def _layers(lists: list[tuple[str, nn.ModuleList]], prefix: str) -> list[Part]:
    """Return the layers of a list; of several of one length, whose modules take turns, those of one number together."""
    own = [f"{prefix}{name}.{path}" for name, layers in lists for path, _ in layers.named_parameters(recurse=False)]
    numbered = [
        [f"{prefix}{name}.{index}" for name, layers in lists if has_parameters(layers[index])]
        for index in range(len(lists[0][1]))
    ]
    return ([(own, "input")] if own else []) + [(paths, "layer") for paths in numbered if paths]


def _is_opened(name: str, part: Any) -> bool:
    """Tell whether a part is a list of layers, or holds one; what is named as read by the layers stays whole."""
    if isinstance(part, nn.ModuleList) and is_list(part):
        return len(part) > 1 or not READ_BY_LAYERS.search(name)
    return isinstance(part, nn.Module) and not READ_BY_LAYERS.search(name) and _holds_layers(part)


def _holds_layers(module: nn.Module) -> bool:
    return any(_is_opened(name, child) for name, child in module.named_children() if has_parameters(child))
