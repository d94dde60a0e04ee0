"""Which parameters weight decay leaves alone: biases, norms and embeddings."""

from typing import Any

from torch import nn

from lightning_ft_callbacks.weight_decay import decay_exempt


def decay_groups(module: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Split a module's parameters into those that decay and those that do not.

    Frozen parameters are included, so that unfreezing needs no
    change here; an optimizer passes over parameters without a gradient.

    Args:
        module: The module.
        lr: Learning rate of both groups.
        weight_decay: Weight decay of the first.

    Returns:
        One or two groups for a torch optimizer, empty ones left out.
    """
    exempt = decay_exempt(module)
    decayed, left_alone = [], []
    for parameter in module.parameters():
        (left_alone if id(parameter) in exempt else decayed).append(parameter)
    groups = [
        {"params": decayed, "lr": lr, "weight_decay": weight_decay},
        {"params": left_alone, "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
