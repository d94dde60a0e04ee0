"""TrainingState: all that training changes in a fit, kept in memory and put back."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lightning_ft_callbacks.state.copy_room import CopyRoom, needed_by_training
from lightning_ft_callbacks.state.kept_values import Restore, kept_tensor
from lightning_ft_callbacks.state.plain_state import PlainState, is_own

# of the loops of Lightning that run a training step
PROGRESS = (
    ("fit_loop.epoch_loop", ("batch_progress", "scheduler_progress", "_batches_that_stepped", "_results")),
    ("fit_loop.epoch_loop.automatic_optimization", ("optim_progress", "_skip_backward")),
    ("fit_loop.epoch_loop.manual_optimization", ("optim_step_progress", "_output")),
)


class TrainingState:
    """What a training step may change: weights, statistics, optimizers, schedules, random numbers, counts, metrics.

    Weights and optimizer state are copied on their device while it has room for them and for the training that follows,
    else on the CPU.

    Args:
        trainer: The trainer, in a fit.
        module: Its module.
        updates: Whether the optimizers may step, on batches that are fetched; otherwise what a forward pass cannot
            change is left out.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, *, updates: bool = True) -> None:
        part: Any = trainer
        data = getattr(trainer, "datamodule", None)
        self._restores: list[Callable[[], Any]] = []
        room = CopyRoom(needed_by_training(module, trainer.optimizers) if updates else {})
        if updates:
            loaders = trainer.fit_loop._combined_loader
            plain = PlainState(
                module,
                *trainer.optimizers,
                *(config.scheduler for config in trainer.lr_scheduler_configs),
                *(callback for callback in part.callbacks if _is_users_own(callback)),
                data,
                [] if loaders is None else [*loaders.flattened],
                getattr(part.strategy, "_ddp_comm_state", None),
                copy=room.copy,
            )
            self._restores += [_gradients(module), _scaler(trainer)]
        else:
            plain = PlainState(module, without=module.parameters(), copy=room.copy)
            self._restores.append(_plain_numbers(data))
        self._restores += [plain.restore, _hooks(module), _progress(trainer), random_numbers()]

    def restore(self) -> None:
        """Put everything back; it may be done again later."""
        for restore in self._restores:
            restore()


def random_numbers() -> Restore:
    """Return a function that sets the generators of Python, NumPy, torch and its devices back."""
    states = _collect_rng_states(include_cuda=True)
    return lambda: _set_rng_states(states)


def _gradients(module: nn.Module) -> Restore:
    """Set gradients aside, which a batch before may have left to be accumulated."""
    found = [(parameter, parameter.grad, parameter.requires_grad) for parameter in module.parameters()]
    for parameter, *_ in found:
        parameter.grad = None

    def restore() -> None:
        for parameter, gradient, requires_grad in found:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient

    return restore


def _hooks(module: nn.Module) -> Restore:
    """Keep which hooks there are: transformers makes some in the first step, and notes in an attribute that it has."""
    names = [f"_forward{kind}hooks{extra}" for kind in ("_", "_pre_") for extra in ("", "_with_kwargs")]
    found = [
        (hooks, hooks.copy())
        for part in module.modules()
        for name in names
        if (hooks := getattr(part, name)) is not None
    ]

    def restore() -> None:
        for hooks, before in found:
            if hooks.keys() != before.keys():
                hooks.clear()
                hooks.update(before)

    return restore


def _is_users_own(callback: Callback) -> bool:
    """Tell whether a callback may act outside of Lightning's hooks: by hooks of modules or optimizers, for one."""
    ours = __name__.partition(".")[0]
    kinds = type(callback).__mro__
    return all(is_own(kind) and not kind.__module__.startswith(ours) for kind in kinds[: kinds.index(Callback)])


def _plain_numbers(owner: Any) -> Restore:
    """Keep an object's own numbers, texts and flags, but nothing that is large or shared."""
    plain = (int, float, str, bool, type(None))
    found = {} if owner is None else {k: v for k, v in vars(owner).items() if isinstance(v, plain)}
    return lambda: owner is not None and vars(owner).update(found)


def _scaler(trainer: Trainer) -> Restore:
    scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None:
        return lambda: None
    # its scale is made with the first step
    values = {name: getattr(scaler, name) for name in ("_scale", "_growth_tracker")}
    tensors = [kept_tensor(value) for value in values.values() if value is not None]
    states = deepcopy(dict(scaler._per_optimizer_states))

    def restore() -> None:
        for restore_tensor in tensors:
            restore_tensor()
        vars(scaler).update(values)
        scaler._per_optimizer_states.clear()
        scaler._per_optimizer_states.update(deepcopy(states))

    return restore


def _progress(trainer: Any) -> Restore:
    found: list[tuple[Any, str, Any, Any]] = []
    for path, names in PROGRESS:
        owner = trainer
        for part in path.split("."):
            owner = getattr(owner, part)
        for name in names:
            value = getattr(owner, name)
            found.append((owner, name, value, deepcopy(vars(value)) if name.endswith("progress") else None))
    stop, connector = trainer.should_stop, PlainState(trainer._logger_connector, depth=0)

    def restore() -> None:
        for owner, name, value, inside in found:
            if inside is not None:
                vars(value).update(deepcopy(inside))
            setattr(owner, name, value)
        trainer.should_stop = stop
        connector.restore()

    return restore
