"""The optimizer: its groups with weight decay and without, one rate, one kernel."""

from collections.abc import Callable, Iterable
from inspect import signature
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_ft_callbacks.weight_decay import decay_exempt


def make_optimizer(
    factory: Callable[[Iterable], Optimizer], module: nn.Module, lr: float, weight_decay: float
) -> Optimizer:
    """Return an optimizer over a module's parameters.

    Args:
        factory: The optimizer's class, or what returns one.
        module: The module.
        lr: Learning rate.
        weight_decay: Weight decay, except of biases, norms and embeddings.

    Raises:
        ValueError: If the optimizer's own lr or weight_decay was set too, which would have no effect.
    """
    optimizer = factory(decay_groups(module, lr, weight_decay))
    for key, value in (("lr", lr), ("weight_decay", weight_decay)):
        default = signature(type(optimizer).__init__).parameters.get(key)
        given = optimizer.defaults.get(key)
        if default is not None and given not in (default.default, value):
            raise ValueError(
                f"{type(optimizer).__name__}'s {key}={given} has no effect: "
                f"FineTuner's {key}={value} is used; set that one"
            )
    fuse(optimizer)
    return optimizer


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


def fuse(optimizer: Optimizer) -> None:
    """Let an optimizer update in one kernel where it can and its user has not chosen otherwise.

    It is set in the groups: set when the optimizer is made, it would forbid gradient clipping under fp16-mixed.
    """
    for group in optimizer.param_groups:
        chosen = group.get("fused", False) is not None or group.get("foreach") or group.get("differentiable")
        fits = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in group["params"])
        if not chosen and fits:
            group["fused"] = True
