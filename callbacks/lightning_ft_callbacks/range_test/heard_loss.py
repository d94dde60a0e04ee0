"""HeardLoss: the losses that are propagated back, and the end of a step whose loss is no number."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class NotFinite(Exception):  # noqa: N818 - it is no error, but the only way out of an optimizer before its update
    """The loss of the step is NaN or infinite."""


class HeardLoss(Callback):
    """Hears the losses that are propagated back, which manual optimization need not return.

    Before the optimizer updates anything by a loss that is NaN or infinite, it raises NotFinite: on all ranks, if it
    is so on one. Manual optimization is left alone, which could not go on, and so is a loss scaler, which skips such
    updates itself.

    Attributes:
        losses: Those of the step so far, as the optimizer gets them, each of shape ().
    """

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._copied: Any = None

    def begin(self) -> None:
        """Begin a step."""
        self.losses, self._copies, self._copied = [], [], None

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:  # noqa: ARG002
        """Note one; an accelerator copies it while it goes on."""
        self.losses.append(loss.detach().float())
        self._copies.append(self.losses[-1].to("cpu", non_blocking=True))
        if loss.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:  # noqa: ARG002
        """End a step without an update, if a loss of it is no number.

        Raises:
            NotFinite: If so.
        """
        if not pl_module.automatic_optimization or getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        if self._copied is not None:
            self._copied.synchronize()
        finite = all(bool(copy.isfinite().all()) for copy in self._copies)
        if not trainer.strategy.reduce_boolean_decision(finite, all=True):
            raise NotFinite
