"""FiniteLoss: stop before an update by a loss or gradients that are no numbers, and say where they broke."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_ft_callbacks.blocks import BlockMap
from lightning_ft_callbacks.broken_values import Flags, PassEnd, broken_output, finite, tensors_in

NUM_ROWS, WIDTH = 3, 40  # samples that are shown, and characters of each
REMEDIES = "try a lower lr, a longer warm-up, gradient_clip_val=1.0, or bf16-mixed in the place of 16-mixed"


class FiniteLoss(Callback):
    """Stops any fit whose loss or gradients become NaN or infinite, before the optimizer uses them.

    It says the step and the batch, the block that broke first, and the last good checkpoint: no other is saved. The
    block is the first whose output is no number in the forward pass; or, where the loss still is one, the nearest to
    the loss whose gradients are none. A batch is run again to find it out, only then.

    A loss costs no waiting on an accelerator: it is looked at when the backward pass is under way; gradients are
    looked at behind the next step, and before a checkpoint is saved. Under a gradient scaler (``16-mixed``) gradients
    that overflow are ordinary, and left to it. All ranks stop together.

    A module that has ``readable(batch)``, which returns a text a sample, and a sampler that has ``rows(batch_idx)``,
    the numbers of a batch's samples, are asked for what to say of the batch.

    Args:
        gradients: Whether to look at gradients too.

    Raises:
        FloatingPointError: If a loss or gradients are not finite.
    """

    def __init__(self, *, gradients: bool = True) -> None:
        self.gradients = gradients
        self._batch: tuple[Any, int] = (None, 0)
        self._finds_out = False
        self._loss: Flags | None = None
        self._gradients: tuple[Flags, list[str], Moment] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Forget what an earlier fit left."""
        self._loss = self._gradients = None

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Remember the batch."""
        if self._loss is not None:  # of manual optimization without a step
            self._look(trainer)
        self._batch = batch, batch_idx

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:  # noqa: ARG002
        """Note whether the loss is a number."""
        if self._finds_out:
            raise PassEnd
        flag = loss.detach().isfinite().all().reshape(1)
        self._loss = Flags(flag if self._loss is None else flag & self._loss.values)
        if not self._loss.wait and trainer.world_size == 1:
            self._look(trainer)

    def on_before_optimizer_step(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        optimizer: Optimizer,
    ) -> None:
        """Stop before an update by a loss that is none; note whether gradients are numbers."""
        self._look(trainer)
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None or not hasattr(optimizer, "param_groups")
        if not self.gradients or scaled:
            return
        found: dict[str, Tensor] = {}
        for name, parameter in pl_module.named_parameters():
            gradient: Any = parameter.grad
            if gradient is not None and not gradient.is_sparse:
                part = gradient.to_local() if hasattr(gradient, "to_local") else gradient
                found |= {name: part} if part.numel() else {}
        if not found:
            return
        flags = Flags(finite(list(found.values())))
        self._gradients = flags, list(found), self._moment(trainer)
        if not flags.wait:
            self._look(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Let no checkpoint be saved of weights that gradients have broken."""
        if trainer.state.fn == "fit":
            self._look(trainer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Let go of the batch; the one that an accumulated step begins with may be looked at no more."""
        if trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            self._look(trainer)
        self._batch = None, self._batch[1]

    def _look(self, trainer: Trainer) -> None:
        """Look at what was noted, on all ranks, and raise if it is broken."""
        gradients, loss = self._gradients, self._loss
        self._gradients = self._loss = None
        broken_loss = loss is not None and not loss.all()
        broken = broken_loss or (gradients is not None and not gradients[0].all())
        if trainer.world_size > 1 and (loss is not None or gradients is not None):
            broken = trainer.strategy.reduce_boolean_decision(broken, all=False)
        if not broken:
            return
        module = trainer.lightning_module
        if gradients is not None and not gradients[0].all():
            flags, names, moment = gradients
            said = (
                f"gradients are NaN or infinite {_place(trainer, moment)}, though the loss is a number: "
                f"{_first(module, flags, names)}"
            )
        elif broken_loss:
            place = _place(trainer, self._moment(trainer))
            said = f"the loss is NaN or infinite {place}: {self._diagnosis(trainer, module)}"
        else:
            said = f"the loss of another rank is NaN or infinite at step {trainer.global_step}"
        raise FloatingPointError(f"{said}; {_last_good(trainer)}; {REMEDIES}")

    def _diagnosis(self, trainer: Trainer, module: LightningModule) -> str:
        """Say what broke first, by running the batch once more: weights, inputs, a block's output, or the loss."""
        batch, batch_idx = self._batch
        blocks = BlockMap.of(module)
        for name in blocks.names:
            if not all(parameter.isfinite().all() for parameter in blocks.parameters(name)):
                return f"weights of {name} are no numbers"
        for name, values in tensors_in(batch):
            if not values.isfinite().all():
                return f"the batch holds values that are no numbers{f' ({name})' if name else ''}"
        self._finds_out = True
        try:
            block = broken_output(trainer, module, blocks, batch, batch_idx)
        finally:
            self._finds_out = False
        if block is not None:
            return f"the first block whose output is no number is {block}"
        return "outputs of all blocks are numbers when the batch is run again, so it is the loss, or what was drawn"

    def _moment(self, trainer: Trainer) -> "Moment":
        return Moment(*self._batch, trainer.global_step, trainer.current_epoch)


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """When something was noted.

    Attributes:
        batch: The batch.
        batch_idx: Its number in the epoch.
        step: Optimizer steps done.
        epoch: The epoch.
    """

    batch: Any
    batch_idx: int
    step: int
    epoch: int


def _place(trainer: Trainer, moment: Moment) -> str:
    place = f"at step {moment.step} (epoch {moment.epoch}, batch {moment.batch_idx}"
    rows = getattr(getattr(trainer.train_dataloader, "sampler", None), "rows", None)
    if rows is not None:
        place += f", rows {', '.join(map(str, rows(moment.batch_idx)))} of the training data"
    readable = getattr(trainer.lightning_module, "readable", None)
    if readable is not None and moment.batch is not None and (texts := readable(moment.batch)):
        shown = ", ".join(repr(text[:WIDTH] + "..." * (len(text) > WIDTH)) for text in texts[:NUM_ROWS])
        place += f": {shown}{', ...' if len(texts) > NUM_ROWS else ''}"
    return f"{place})"


def _first(module: LightningModule, flags: Flags, names: Iterable[str]) -> str:
    """Say which block's gradients broke first in the backward pass, the nearest to the loss."""
    broken = {
        id(module.get_parameter(name)) for name, fine in zip(names, flags.values.tolist(), strict=True) if not fine
    }
    blocks = BlockMap.of(module)
    owners = blocks.owners()
    hit = {owners[parameter] for parameter in broken if parameter in owners}
    block = next((name for name in reversed(blocks.names) if name in hit), "none that is known")
    return f"the first block in the backward pass is {block}, of {len(hit)} of {len(blocks)}"


def _last_good(trainer: Trainer) -> str:
    """Name the newest checkpoint of the fit."""
    callbacks: list[Any] = trainer.checkpoint_callbacks
    folders = {Path(callback.dirpath) for callback in callbacks if getattr(callback, "dirpath", None)}
    files = [file for folder in folders for file in folder.glob("[!.]*.ckpt")]
    if not files:
        return "no checkpoint was saved before"
    return f"the last good checkpoint is {max(files, key=lambda file: file.stat().st_mtime_ns)}"
