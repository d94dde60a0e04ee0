"""Which parameters weight decay leaves alone: biases, norms and embeddings."""

from typing import Any

from torch import nn


def decay_groups(module: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Split a module's parameters into those that decay and those that do not.

    Left alone are parameters of one dimension (biases, norms, layer scales), embeddings, and those that a timm model
    names in ``no_weight_decay`` (class tokens, position embeddings). Decaying them costs accuracy and gains nothing
    (He et al. 2019, arXiv:1812.01187, section 3.1). Frozen parameters are included, so that unfreezing needs no
    change here; an optimizer passes over parameters without a gradient.

    Args:
        module: The module.
        lr: Learning rate of both groups.
        weight_decay: Weight decay of the first.

    Returns:
        One or two groups for a torch optimizer, empty ones left out.
    """
    exempt: set[int] = set()
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            exempt.update(id(parameter) for parameter in part.parameters(recurse=False))
        if callable(names := getattr(part, "no_weight_decay", None)):
            listed: Any = names()
            exempt.update(id(parameter) for name, parameter in part.named_parameters() if name in listed)
    decayed, left_alone = [], []
    for parameter in module.parameters():
        (left_alone if parameter.ndim <= 1 or id(parameter) in exempt else decayed).append(parameter)
    groups = [
        {"params": decayed, "lr": lr, "weight_decay": weight_decay},
        {"params": left_alone, "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
