"""GracefulStop: SIGTERM and Ctrl-C end a run behind a whole step, with a checkpoint to go on from."""

import signal
import threading
from types import FrameType
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class GracefulStop(Callback):
    """Ends a fit, once asked by a signal, where LastCheckpoint can save all of it: behind an optimizer step.

    The batches of a step that accumulates gradients, and a validation that has begun, are finished before. A second
    Ctrl-C ends at once, as does a second SIGTERM. Of a SLURM job that Lightning requeues itself, SIGTERM is left to it.

    Attributes:
        asked: The signal that asked; None so far.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Hear the signals from now on; what came before, while data was loaded, is heard too."""
        if trainer.received_sigterm and self.asked is None:
            self.asked = signal.SIGTERM
            self._let_go_on(trainer, stop=False)
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        environment = trainer._accelerator_connector.cluster_environment
        requeues = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
        for number in SIGNALS[1:] if requeues else SIGNALS:
            self._before[number] = signal.signal(number, self._hear)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Let Lightning stop behind this batch, on all ranks, if it ends a step."""
        loop = trainer.fit_loop.epoch_loop
        if not loop._should_accumulate() and not loop._num_ready_batches_reached():
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Let it stop behind a validation in mid-epoch."""
        loop = trainer.fit_loop.epoch_loop
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not loop._num_ready_batches_reached():
            self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Let it stop behind this epoch, unless that was the last."""
        if trainer.max_epochs in (None, -1) or trainer.current_epoch + 1 < trainer.max_epochs:
            self._stop_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Hear no signals any more."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Hear no signals any more; those that came too late for a step may still end the process."""
        self._release()
        if isinstance(exception, SIGTERMException) and self.asked is None:
            self.asked = signal.SIGTERM

    def _stop_if_asked(self, trainer: Trainer) -> None:
        asked = self.asked is not None
        if trainer.world_size > 1:  # Lightning waits for all ranks before each batch, too
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            self.asked = self.asked or signal.SIGTERM
            self._let_go_on(trainer, stop=True)

    def _let_go_on(self, trainer: Trainer, *, stop: bool) -> None:
        trainer._signal_connector.received_sigterm = stop

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked is None:
            self.asked = signal.Signals(number)
            return
        if number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        raise SIGTERMException

    def _release(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}
