"""WeightAverages: what Lightning's averaging callbacks keep of blocks that were never trained stays as it is."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim.swa_utils import AveragedModel


def tell_averaged(trainer: Trainer) -> None:
    """Say where validation looks at averages, so that the weights that are kept as the best are not those it saw."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    averaging = [type(callback).__name__ for callback in callbacks if isinstance(callback, WeightAveraging)]
    averaging += [
        type(optimizer).__name__
        for optimizer in trainer.optimizers
        if any("train_mode" in group for group in optimizer.param_groups)  # as schedulefree's have
    ]
    if averaging:
        rank_zero_warn(
            f"restore_best puts back weights as they are trained, but validation sees the averages of {averaging[0]}; "
            "leave one of them out"
        )


class WeightAverages:
    """Keeps the averages of a trainer's WeightAveraging callbacks bitwise right for what is not trained.

    An exponential average ``0.999 * average + 0.001 * value`` of a value that stands still is rounded at each update,
    and drifts away from it; at the end of the fit Lightning puts it into the module.

    Args:
        trainer: The trainer, once its callbacks are set up.
        standing: Whether the tensor of a name, a parameter's or a buffer's, stands still.
    """

    def __init__(self, trainer: Trainer, standing: Callable[[str], bool]) -> None:
        self._standing = standing
        callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        found = [callback._average_model for callback in callbacks if isinstance(callback, WeightAveraging)]
        self._averages: list[Any] = [average for average in found if average is not None]
        for average in self._averages:
            average.update_parameters = self._right_after(average)

    def release(self) -> None:
        """Leave the averages as they were found."""
        for average in self._averages:
            average.__dict__.pop("update_parameters", None)
        self._averages = []

    def _right_after(self, average: AveragedModel) -> Callable[[nn.Module], None]:
        update = average.update_parameters

        @torch.no_grad()
        def update_parameters(model: nn.Module) -> None:
            update(model)
            averages = dict(_tensors(average.module))
            for name, tensor in _tensors(model):
                if self._standing(name) and name in averages:
                    averages[name].copy_(tensor)

        return update_parameters


def _tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]
