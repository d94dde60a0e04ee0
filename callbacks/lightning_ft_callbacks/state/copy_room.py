"""CopyRoom: copies of tensors on their device, while it has room, else on the CPU."""

from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

STATES = 2  # of Adam, for each parameter


class CopyRoom:
    """Copies tensors on their devices until these are as full as they may become, and on the CPU from then on.

    Args:
        reserved: What shall stay free on each device [byte].
    """

    def __init__(self, reserved: Mapping[torch.device, int]) -> None:
        self._reserved = reserved

    def copy(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor."""
        device = tensor.device
        left = free_bytes(device) - tensor.nbytes - self._reserved.get(device, 0)
        return tensor.clone() if left >= 0 else tensor.to("cpu", copy=True)


def needed_by_training(module: nn.Module, optimizers: Iterable[Optimizer]) -> Counter[torch.device]:
    """Return what the next step will need beside what is there, on each device [byte].

    That is gradients, and what optimizers have yet to make for parameters; of an optimizer nobody knows what that will
    be, so it is taken to be as much as Adam's.

    Args:
        module: The module.
        optimizers: Its optimizers.
    """
    known = {id(parameter) for optimizer in optimizers for parameter in optimizer.state}
    needed: Counter[torch.device] = Counter()
    for parameter in module.parameters():
        if parameter.requires_grad:
            needed[parameter.device] += parameter.nbytes * (1 + (0 if id(parameter) in known else STATES))
    return needed


def free_bytes(device: torch.device) -> float:
    """Return what can still be had of a device's memory [byte]; infinite where it is not asked."""
    if device.type != "cuda":
        return float("inf")
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held
