"""How far each block of a backbone moved from the weights that it started with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lightning_ft.extras import import_class
from lightning_ft_callbacks import BlockMap


@dataclass(frozen=True, slots=True)
class Movement:
    """A block's way.

    Attributes:
        block: Its name.
        num_parameters: Its scalar parameters.
        distance: The norm of what its weights changed by, over their norm before.
    """

    block: str
    num_parameters: int
    distance: float


@torch.no_grad()
def movements(start: nn.Module, end: nn.Module) -> list[Movement]:
    """Compare two backbones block by block, input first.

    Args:
        start: The backbone as it started.
        end: The same as it ended.
    """
    after = dict(end.named_parameters())
    layout = BlockMap.of(start)
    found = []
    for name in layout.names:
        before = layout.named_parameters(name)
        pairs = [(old.double(), after[path].double().to(old.device)) for path, old in before if path in after]
        apart = sum((new - old).square().sum().item() for old, new in pairs) ** 0.5
        size = sum(old.square().sum().item() for old, _ in pairs) ** 0.5
        found.append(Movement(f"backbone.{name}", sum(old.numel() for old, _ in pairs), apart / size if size else 0.0))
    return found


def starting_backbone(config: Mapping[str, Any]) -> Any:
    """Build a run's backbone as it started, from where its pretrained weights are; adapters had no effect then.

    Args:
        config: The backbone's part of the run's configuration.

    Returns:
        The backbone, or a sentence that says why it cannot be had.
    """
    arguments = dict(config.get("init_args") or {})
    if not arguments.get("pretrained") and not arguments.get("checkpoint"):
        return "The backbone did not start from pretrained weights, so there is nothing that it moved away from."
    if "lora" in arguments:
        arguments["lora"] = None
    try:
        with torch.random.fork_rng(devices=[]):
            return import_class(config["class_path"])(**arguments)
    except (OSError, ValueError, ImportError, TypeError) as error:
        return f"The pretrained weights cannot be had any more ({type(error).__name__}), so nothing can be compared."
