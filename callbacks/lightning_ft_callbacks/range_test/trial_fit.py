"""A fit for trial, up to where it would train, after which trainer, module and data are as before."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from lightning_ft_callbacks.state.plain_state import MODULES_OWN, PlainState
from lightning_ft_callbacks.state.training_state import random_numbers

TENSORS = {"_buffers", "_parameters"}  # the fit does not train, so these stay


class _End(Exception):  # noqa: N818 - it is no error, but the only way out of a fit before its first step
    """All callbacks have started to train."""


class _Stop(Callback):
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        raise _End


def trial_fit(trainer: Trainer, module: LightningModule, data: Any, callback: Callback, heard: type[Callback]) -> None:
    """Fit until training starts, also where a fit of the trainer has ended before.

    Random numbers, generators, samplers and datasets, metrics, loops and callbacks are as before afterwards.

    Args:
        trainer: The trainer.
        module: The module.
        data: What ``fit`` takes; None for the module's own.
        callback: Is heard last.
        heard: Of the trainer's callbacks and the module's those of this kind are heard too, and no others.

    Raises:
        ValueError: If the fit would run in processes that are started for it, from which nothing comes back.
    """
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise ValueError(
            f"{type(trainer.strategy).__name__} starts processes from which no curve comes back; find the rate on one "
            "device, Trainer(devices=1), or under strategy='ddp'"
        )
    part: Any = trainer
    names = ("callbacks", "_loggers", "num_sanity_val_steps", "fit_loop", "should_stop")
    found = {name: getattr(part, name) for name in names}
    # numbers last, because what is kept before draws some
    restores = [_held(module), _held(data), PlainState(trainer._logger_connector, trainer.state, depth=0).restore]
    restores.append(random_numbers())
    own: Any = getattr(module, "_orig_mod", module)  # of torch.compile
    configured = own.configure_callbacks

    def configure_callbacks() -> list[Callback]:
        part.callbacks[:0] = [c for c in _listed(configured()) if isinstance(c, heard)]
        return []

    callbacks = [c for c in part.callbacks if isinstance(c, heard)]
    restores += map(_attributes, callbacks)
    part.callbacks = [*callbacks, callback, _Stop()]
    part._loggers = [DummyLogger() for _ in part._loggers]  # without a folder, so that nothing is written
    part.num_sanity_val_steps, part.fit_loop = 0, _fresh_loop(trainer)
    vars(own)["configure_callbacks"] = configure_callbacks
    try:
        trainer.fit(module, data)
    except _End:
        pass
    finally:
        del vars(own)["configure_callbacks"]
        for name, value in found.items():
            setattr(part, name, value)
        for restore in restores:
            restore()


def _fresh_loop(trainer: Trainer) -> _FitLoop:
    before = trainer.fit_loop
    loop = _FitLoop(trainer, min_epochs=before.min_epochs, max_epochs=before.max_epochs)
    steps = before.epoch_loop
    loop.epoch_loop = _TrainingEpochLoop(trainer, min_steps=steps.min_steps, max_steps=steps.max_steps)
    return loop


def _held(owner: Any) -> Callable[[], Any]:
    """Keep what data are, or what a module or data module has as attributes: its hooks make more, which stays."""
    if not isinstance(owner, LightningModule | LightningDataModule):
        return PlainState(owner).restore
    skipped = MODULES_OWN | TENSORS if isinstance(owner, LightningModule) else frozenset()
    attributes = {name: value for name, value in vars(owner).items() if name not in skipped}
    state = PlainState(attributes)

    def restore() -> None:
        state.restore()
        if isinstance(owner, LightningDataModule):
            vars(owner).update(attributes)

    return restore


def _attributes(callback: Callback) -> Callable[[], None]:
    """Keep what a callback has as attributes, whatever they are: it makes them anew in each fit."""
    found = dict(vars(callback))

    def restore() -> None:
        vars(callback).clear()
        vars(callback).update(found)

    return restore


def _listed(callbacks: Any) -> list[Callback]:
    return [callbacks] if isinstance(callbacks, Callback) else list(callbacks)
