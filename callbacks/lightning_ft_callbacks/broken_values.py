"""Finding values that are no numbers: flags that need not be waited for, and the block where they come from."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_ft_callbacks.blocks import BlockMap


class Flags:
    """Whether values are numbers, on their way from an accelerator.

    Args:
        values: Booleans, shape (value,).

    Attributes:
        wait: Whether they are on an accelerator, so that reading them at once would wait for it.
    """

    def __init__(self, values: Tensor) -> None:
        self.wait = values.device.type == "cuda"
        self._values = values
        self._event: Any = None
        if self.wait:
            self._values = torch.empty(values.shape, dtype=torch.bool, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    @property
    def values(self) -> Tensor:
        """The flags, on the CPU, when they have arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._values.cpu()

    def all(self) -> bool:
        """Tell whether all values are numbers."""
        return bool(self.values.all())


def finite(tensors: Sequence[Tensor]) -> Tensor:
    """Tell of each tensor whether all its values are numbers, shape (tensor,), without waiting for an accelerator.

    Args:
        tensors: Tensors with elements.
    """
    if tensors[0].device.type == "cpu":
        # a twentieth of the time of the largest element; where a sum of squares is a number, so are all its parts
        found = _finite_norms(tensors, 2)
        if found.all():
            return found
    return _finite_norms(tensors, inf)


def _finite_norms(tensors: Sequence[Tensor], order: float) -> Tensor:
    norms = torch._foreach_norm(list(tensors), order)  # pyright: ignore[reportPrivateImportUsage]
    return torch.stack([norm.float() for norm in norms]).isfinite()


class PassEnd(Exception):  # noqa: N818 - it is no error, but the only way out of manual optimization
    """The forward pass is over."""


@torch.no_grad()
def broken_output(
    trainer: Trainer, module: LightningModule, blocks: BlockMap, batch: Any, batch_idx: int
) -> str | None:
    """Run a training step again up to its backward pass; return the block of the first module that gives no number.

    In manual optimization ``PassEnd`` is to be raised from ``on_before_backward``.

    Args:
        trainer: The trainer.
        module: Its module.
        blocks: The module's blocks.
        batch: The batch.
        batch_idx: Its number in the epoch.

    Returns:
        The block's name; None where all outputs are numbers.
    """
    found: list[str] = []

    def note(name: str) -> Any:
        def hook(part: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001
            if not found and not all(values.isfinite().all() for _, values in tensors_in(output)):
                found.append(name)

        return hook

    def forward() -> None:
        arguments = trainer.fit_loop.epoch_loop._build_kwargs(OrderedDict(), batch, batch_idx)
        # hooks are not heard by what was compiled without them
        with trainer.precision_plugin.train_step_context(), torch.compiler.set_stance("force_eager"):
            module.training_step(*arguments.values())

    handles = [part.register_forward_hook(note(name)) for part, name in blocks.module_owners()]
    before, module._current_fx_name = module._current_fx_name, "training_step"
    try:
        forward()
    except PassEnd:
        pass
    finally:
        module._current_fx_name = before
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of numbers with fractions in lists, tuples, mappings and dataclasses, with their names."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from tensors_in(part, str(key))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part, name)
    elif hasattr(value, "__dataclass_fields__"):
        for field in value.__dataclass_fields__:
            yield from tensors_in(getattr(value, field, None), field)
