"""TrialSteps: optimizer steps of a fit outside of its loop, heard by no callback and no logger."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from lightning_ft_callbacks.trial_batches import TrialBatches


class TrialSteps:
    """Trains as the fit does, by its precision, clipping, accumulation and strategy.

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
        self._accumulate = min(trainer.accumulate_grad_batches, int(min(trainer.num_training_batches, 2**31)))
        self._heard = _HeardLoss()
        self._num_steps = 0

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Within it steps can be taken; callbacks, loggers and the profiler are away."""
        trainer: Any = self._trainer
        found = trainer.callbacks, trainer._loggers, trainer.profiler
        trainer.callbacks = [self._heard]
        trainer._loggers = [DummyLogger() for _ in trainer._loggers]
        trainer.profiler = PassThroughProfiler()
        trainer.fit_loop.epoch_loop._results = _ResultCollection(training=True)
        try:
            yield
        finally:
            trainer.callbacks, trainer._loggers, trainer.profiler = found
            self._batches.close()

    def step(self) -> Tensor:
        """Take one optimizer step, and return its loss, averaged over accumulated batches and over ranks, shape ().

        Raises:
            ValueError: If the module tells no loss.
        """
        loop: Any = self._trainer.fit_loop.epoch_loop
        losses = []
        for part in range(self._accumulate):
            batch = self._batches.next()
            loop._results.batch, loop._results.batch_size = batch, None
            loop.batch_progress.current.ready = part + 1
            number = self._num_steps * self._trainer.accumulate_grad_batches + part
            arguments = loop._build_kwargs(OrderedDict(), batch, number)
            self._heard.losses = []
            if self._module.automatic_optimization:
                output = loop.automatic_optimization.run(self._trainer.optimizers[0], number, arguments)
            else:
                output = loop.manual_optimization.run(arguments)
            losses.append(self._loss_of(output))
            loop._results.batch = None
        self._num_steps += 1
        loss = torch.stack(losses).mean()
        return self._trainer.strategy.reduce(loss, reduce_op="mean")

    def _loss_of(self, output: dict[str, Any]) -> Tensor:
        loss = output.get("loss")
        if loss is None and self._heard.losses:
            scaler: Any = getattr(self._trainer.precision_plugin, "scaler", None)
            loss = torch.stack(self._heard.losses).sum() / (1.0 if scaler is None else scaler.get_scale())
        if loss is None and self._module.automatic_optimization:
            return torch.tensor(torch.nan, device=self._module.device)  # a batch that the module passed over
        if not isinstance(loss, Tensor):
            raise ValueError(
                f"{type(self._module).__name__}.training_step returns no loss and calls no manual_backward, so there "
                "is nothing to judge learning rates by"
            )
        return loss.detach().float()


class _HeardLoss(Callback):
    """Hears the losses that are propagated back, which manual optimization need not return."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:  # noqa: ARG002
        """Note one."""
        self.losses.append(loss.detach().float())
