"""FineTuningTrainer: Lightning's Trainer, with ``plan`` and ``lr_find``."""

from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from lightning_ft_callbacks import GradualUnfreezing, LRCurve, LRFinder


class FineTuningTrainer(Trainer):
    """Lightning's Trainer with further commands, which take what ``fit`` takes."""

    def plan(
        self,
        model: LightningModule,
        train_dataloaders: Any | None = None,
        val_dataloaders: Any | None = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        """Print what ``fit`` would train in each phase, and train nothing.

        Without GradualUnfreezing among the callbacks it is one phase, of all blocks.

        Args:
            model: The module.
            train_dataloaders: Its training data.
            val_dataloaders: Its validation data.
            datamodule: Both, in one.
            ckpt_path: A checkpoint to go on from.
        """
        if self._find(GradualUnfreezing) is None:
            self._add(GradualUnfreezing("full"))
        self._add(_StopAtFitStart())
        self._fit_until_stopped(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path)

    def lr_find(
        self,
        model: LightningModule,
        train_dataloaders: Any | None = None,
        val_dataloaders: Any | None = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
    ) -> LRCurve | None:
        """Test learning rates as LRFinder does at the start of ``fit``, and train nothing.

        Its options are those of the LRFinder among the callbacks, else the defaults; but it finds one rate for all
        phases.

        Args:
            model: The module.
            train_dataloaders: Its training data.
            val_dataloaders: Its validation data.
            datamodule: Both, in one.
            ckpt_path: A checkpoint to go on from.

        Returns:
            The curve; None where the checkpoint is of a run that has tested already.
        """
        finder = self._find(LRFinder) or self._add(LRFinder())
        finder.each_phase = False
        self._add(_StopAtTrainStart())
        self.num_sanity_val_steps = 0
        self._fit_until_stopped(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path)
        return finder.curve

    def _find(self, kind: type[Callback]) -> Any:
        callbacks: list[Callback] = self.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        return next((callback for callback in callbacks if isinstance(callback, kind)), None)

    def _add(self, callback: Callback) -> Any:
        self.callbacks.append(callback)  # pyright: ignore[reportAttributeAccessIssue]
        return callback

    def _fit_until_stopped(self, *arguments: Any) -> None:
        try:
            self.fit(*arguments)
        except _Stopped:
            return


class _Stopped(Exception):  # noqa: N818 - it is no error, but the only way out of a fit before its first step
    """What was asked for is done."""


class _StopAtFitStart(Callback):
    """Ends a fit when the callbacks before it have started."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """End it."""
        raise _Stopped


class _StopAtTrainStart(Callback):
    """Ends a fit when the callbacks before it are ready to train."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """End it."""
        raise _Stopped
