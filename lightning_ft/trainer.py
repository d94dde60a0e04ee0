"""FineTuningTrainer: Lightning's Trainer, with ``plan``."""

from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from lightning_ft_callbacks import GradualUnfreezing


class FineTuningTrainer(Trainer):
    """Lightning's Trainer with a further command, which takes what ``fit`` takes."""

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
        callbacks: list[Callback] = self.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        if not any(isinstance(callback, GradualUnfreezing) for callback in callbacks):
            callbacks.append(GradualUnfreezing("full"))
        callbacks.append(_StopBeforeTraining())
        try:
            self.fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path)
        except _Planned:
            return


class _Planned(Exception):  # noqa: N818 - it is no error, but the only way out of a fit before its first step
    """The plan is printed."""


class _StopBeforeTraining(Callback):
    """Ends a fit when the callbacks before it have started."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """End it."""
        raise _Planned
