"""TrialSteps: optimizer steps of a fit outside of its loop, heard by no callback and no logger."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from lightning_ft_callbacks.range_test.heard_loss import HeardLoss, NotFinite
from lightning_ft_callbacks.range_test.muted_loggers import QuietLogger, muted
from lightning_ft_callbacks.range_test.trial_batches import TrialBatches


class TrialSteps:
    """Trains as the fit does, by its precision, clipping, accumulation and strategy.

    In automatic optimization a step whose loss is NaN or infinite updates nothing.

    Args:
        trainer: The trainer, in a fit.
        module: Its module.

    Raises:
        ValueError: If there is no training data, or the module fetches its batches itself.
    """

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
            raise ValueError(
                f"{type(module).__name__}.training_step takes dataloader_iter, so nobody but it knows its batches; "
                "learning rates can be tested where it takes a batch"
            )
        self._trainer = trainer
        self._module = module
        self._batches = TrialBatches(trainer, module)
        self._accumulate = accumulated_batches(trainer)
        self._heard = HeardLoss()
        self._num_steps = 0

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Within it steps can be taken; callbacks, loggers and the profiler are away."""
        trainer: Any = self._trainer
        found = trainer.callbacks, trainer._loggers, trainer.profiler, trainer.accumulate_grad_batches
        trainer.callbacks = [self._heard]
        trainer.accumulate_grad_batches = self._accumulate
        trainer._loggers = [QuietLogger(logger) for logger in trainer._loggers]
        trainer.profiler = PassThroughProfiler()
        trainer.fit_loop.epoch_loop._results = _ResultCollection(training=True)
        try:
            with muted(found[1]):
                yield
        finally:
            trainer.callbacks, trainer._loggers, trainer.profiler, trainer.accumulate_grad_batches = found
            self._batches.close()

    def begin(self) -> None:
        """Let the module prepare itself as at the start of a fit and of an epoch, where it has not done so."""
        for hook in ("on_train_start", "on_train_epoch_start"):
            call._call_lightning_module_hook(self._trainer, hook)

    def step(self) -> Tensor | None:
        """Take one optimizer step, and return its loss, averaged over accumulated batches and over ranks, shape ().

        Returns:
            The loss; None where the module passed the batches over.

        Raises:
            ValueError: If the module tells no loss.
        """
        loop: Any = self._trainer.fit_loop.epoch_loop
        self._heard.begin()
        parts = int(min(self._accumulate, self._trainer.num_training_batches))
        losses = [self._loss_of_batch(loop, part) for part in range(parts)]
        told = [loss for loss in losses if loss is not None]
        self._num_steps += 1
        return self._trainer.strategy.reduce(torch.stack(told).mean(), reduce_op="mean") if told else None

    def _loss_of_batch(self, loop: Any, part: int) -> Tensor | None:
        batch = self._batches.next()
        loop._results.batch, loop._results.batch_size = batch, None
        loop.batch_progress.current.ready, loop.batch_progress.is_last_batch = part + 1, False
        number = self._num_steps * self._trainer.accumulate_grad_batches + part
        call._call_lightning_module_hook(self._trainer, "on_train_batch_start", batch, number)
        arguments = loop._build_kwargs(OrderedDict(), batch, number)
        before = len(self._heard.losses)
        try:
            if self._module.automatic_optimization:
                output = loop.automatic_optimization.run(self._trainer.optimizers[0], number, arguments)
            else:
                output = loop.manual_optimization.run(arguments)
        except NotFinite:
            output = {"loss": self._heard.losses[-1]}
        call._call_lightning_module_hook(self._trainer, "on_train_batch_end", output, batch, number)
        loop._results.batch = None
        return self._loss_of(output, self._heard.losses[before:])

    def _loss_of(self, output: dict[str, Any], heard: list[Tensor]) -> Tensor | None:
        loss = output.get("loss")
        if self._module.automatic_optimization:
            # Lightning has divided it for the sum over batches
            return None if loss is None else loss.detach().float() * self._trainer.accumulate_grad_batches
        if loss is None and heard:
            scaler: Any = getattr(self._trainer.precision_plugin, "scaler", None)
            loss = torch.stack(heard).sum() / (1.0 if scaler is None else scaler.get_scale())
        if not isinstance(loss, Tensor):
            raise ValueError(
                f"{type(self._module).__name__}.training_step returns no loss and calls no manual_backward, so there "
                "is nothing to judge learning rates by"
            )
        return loss.detach().float()


def accumulated_batches(trainer: Trainer) -> int:
    """Return of how many batches a step has the gradients in this epoch, also before a scheduler of that has begun it.

    Args:
        trainer: The trainer.
    """
    found = trainer.accumulate_grad_batches
    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(callback, GradientAccumulationScheduler):
            found = callback.get_accumulate_grad_batches(trainer.current_epoch)
    return found
