"""A fit for trial, up to where it would train, after which trainer, module and data are as before."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch import nn

from lightning_ft_callbacks.state.plain_state import MODULES_OWN, PlainState
from lightning_ft_callbacks.state.training_state import random_numbers

CHILDREN = ("_buffers", "_modules", "_parameters")  # the fit does not train, so what is in them stays
OF_STRATEGY = ("_lightning_module", "_model", "_optimizers", "_lightning_optimizers", "lr_scheduler_configs")


class _End(Exception):  # noqa: N818 - it is no error, but the only way out of a fit before its first step
    """All callbacks have started to train."""


class _Stop(Callback):
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        raise _End


def trial_fit(trainer: Trainer, module: LightningModule, data: Any, callback: Callback, heard: type[Callback]) -> None:
    """Fit until training starts, also where a fit of the trainer has ended before.

    Random numbers, generators, samplers and datasets, metrics, loops and callbacks are as before afterwards. So are the
    trainer's module and optimizers; and layers and attributes that hooks have made are gone, to be made again.

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
    strategy = trainer.strategy
    held = {name: vars(strategy)[name] for name in OF_STRATEGY if name in vars(strategy)}
    # numbers last, because what is kept before draws some
    own: Any = getattr(module, "_orig_mod", module)  # of torch.compile
    restores = [
        _made(own),
        _held(own),
        _held(data),
        PlainState(trainer._logger_connector, trainer.state, depth=0).restore,
    ]
    restores.append(random_numbers())
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
        vars(strategy).update(held)
        for restore in restores:
            restore()


def _fresh_loop(trainer: Trainer) -> _FitLoop:
    before = trainer.fit_loop
    loop = _FitLoop(trainer, min_epochs=before.min_epochs, max_epochs=before.max_epochs)
    steps = before.epoch_loop
    loop.epoch_loop = _TrainingEpochLoop(trainer, min_steps=steps.min_steps, max_steps=steps.max_steps)
    return loop


def _held(owner: Any) -> Callable[[], Any]:
    """Keep what data are, or what a module or data module holds; of the latter also which attributes it has."""
    if not isinstance(owner, LightningModule | LightningDataModule):
        return PlainState(owner).restore
    skipped = MODULES_OWN.union(CHILDREN) if isinstance(owner, LightningModule) else frozenset[str]()
    state = PlainState({name: value for name, value in vars(owner).items() if name not in skipped})
    if isinstance(owner, LightningModule):
        return state.restore
    attributes = _attributes(owner)
    return lambda: (state.restore(), attributes())


def _made(module: nn.Module) -> Callable[[], None]:
    """Keep which attributes, layers and parameters each part of a module has: hooks of a fit make and replace some.

    Sharding and parametrizations make it one of another class, too.
    """
    kinds = [(part, type(part)) for part in module.modules()]
    attributes = [_attributes(part) for part in module.modules()]
    children = [(found, found.copy()) for part in module.modules() for found in (getattr(part, n) for n in CHILDREN)]

    def restore() -> None:
        for part, kind in kinds:
            if type(part) is not kind:
                part.__class__ = kind
        for restore_part in attributes:
            restore_part()
        for found, before in children:
            found.clear()
            found.update(before)

    return restore


def _attributes(owner: Any) -> Callable[[], None]:
    """Keep which attributes an object has, whatever they are: a callback makes them anew in each fit."""
    found = dict(vars(owner))

    def restore() -> None:
        vars(owner).clear()
        vars(owner).update(found)

    return restore


def _listed(callbacks: Any) -> list[Callback]:
    return [callbacks] if isinstance(callbacks, Callback) else list(callbacks)
