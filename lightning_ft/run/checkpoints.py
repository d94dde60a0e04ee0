"""The checkpoints that a run keeps: the best one by its validation, and the last."""

import os
import shutil
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from lightning_ft_callbacks.whole_file import whole_file

LAST = "last.ckpt"


class BestCheckpoint(ModelCheckpoint):
    """Keeps ``best.ckpt``, the checkpoint with the best validation.

    A class of its own, so that it stands beside any ModelCheckpoint of the user.

    Args:
        monitor: The metric that decides.
        mode: Whether low or high values are better; None: low for losses and errors, high for anything else.
    """

    def __init__(self, monitor: str = "val/loss", mode: Literal["min", "max"] | None = None) -> None:
        low = monitor.rpartition("/")[2] in ("loss", "mae", "perplexity")
        super().__init__(
            filename="best", monitor=monitor, mode=mode or ("min" if low else "max"), enable_version_counter=False
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, with paths that begin at the folder of the checkpoints."""
        return _moved(super().state_dict(), str(self.dirpath), ".")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best score of the run that is resumed, also where its folder was moved or is spelt another way.

        Lightning would forget it, and a worse checkpoint would take the best one's place.
        """
        super().load_state_dict(_moved(state_dict, str(state_dict["dirpath"]), str(self.dirpath)))


def _moved(state: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """Return a ModelCheckpoint's state with another folder."""

    def moved(path: str) -> str:
        return new + path.removeprefix(old) if path.startswith(old) else path

    paths = {key: moved(state[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
    models = {moved(path): score for path, score in state["best_k_models"].items()}
    return {**state, **paths, "best_k_models": models, "dirpath": new}


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``, from which ``--ckpt_path last`` resumes: at the end of each epoch, and as often as asked.

    Where Lightning is about to stop for SIGTERM it is saved too. It is never saved between a batch and the validation
    behind it; resumed from there, Lightning leaves that validation out.

    Args:
        every_n_train_steps: Optimizer steps between two checkpoints within an epoch; None for none.
    """

    def __init__(self, every_n_train_steps: int | None = None) -> None:
        super().__init__()
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise ValueError(f"expected every_n_train_steps to be a positive integer, but got {every_n_train_steps}")
        self.every_n_train_steps = every_n_train_steps
        self.dirpath: str | None = None
        self._saved_at = 0
        self._waits_for_validation = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Agree on the folder over all ranks: the one given, else ``checkpoints`` in the logger's."""
        if trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        logged = trainer.log_dir or trainer.default_root_dir  # asks all ranks, so all ranks must ask
        own = self.dirpath or os.path.join(logged, "checkpoints")  # noqa: PTH118 - may be an address
        self.dirpath = trainer.strategy.broadcast(own)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Take a newer checkpoint that the run is resumed from for the last one: a kill came before that was saved."""
        resumed, last = trainer.ckpt_path, None if self.dirpath is None else Path(self.dirpath) / LAST
        if (
            resumed is None
            or last is None
            or not trainer.is_global_zero
            or Path(resumed).parent.resolve() != last.parent.resolve()
        ):
            return
        newer = not last.exists() or last.stat().st_mtime_ns < Path(resumed).stat().st_mtime_ns
        if newer and Path(resumed).name != LAST:
            with whole_file(last) as partial:
                shutil.copyfile(resumed, partial)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,
    ) -> None:
        """Save where a checkpoint is due and the epoch goes on, right behind a step: gradients are not saved."""
        step = trainer.global_step
        due = self.every_n_train_steps is not None and step % self.every_n_train_steps == 0
        if (
            not (due or trainer.received_sigterm)
            or step == self._saved_at
            or batch_idx + 1 == trainer.num_training_batches
        ):
            return
        every = trainer.val_check_batch
        seen = trainer.fit_loop.total_batch_idx if trainer.check_val_every_n_epoch is None else batch_idx
        self._waits_for_validation = bool(every and every != float("inf") and (seen + 1) % every == 0)
        if not self._waits_for_validation:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Save what was due before a validation in mid-epoch, or became so in it."""
        if self._waits_for_validation or (trainer.received_sigterm and trainer.global_step != self._saved_at):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Save at the end of the epoch, behind its validation."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if self.dirpath is not None:
            self._saved_at = trainer.global_step
            self._waits_for_validation = False
            trainer.save_checkpoint(f"{self.dirpath}/{LAST}", weights_only=False)
