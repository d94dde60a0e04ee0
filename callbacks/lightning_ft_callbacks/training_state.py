"""TrainingState: all that training changes in a fit, kept in memory and put back."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from lightning_ft_callbacks.plain_state import PlainState, Restore, kept

# of the loops of Lightning that run a training step
PROGRESS = (
    ("fit_loop.epoch_loop", ("batch_progress", "scheduler_progress", "_batches_that_stepped", "_results")),
    ("fit_loop.epoch_loop.automatic_optimization", ("optim_progress", "_skip_backward")),
    ("fit_loop.epoch_loop.manual_optimization", ("optim_step_progress", "_output")),
)


class TrainingState:
    """What a training step may change: weights, statistics, optimizers, schedules, random numbers, counts, metrics.

    Weights and optimizer state are copied on their device, or on the CPU where that has not twice the room.

    Args:
        trainer: The trainer, in a fit.
        module: Its module.
        updates: Whether the optimizers may step; otherwise what a forward pass cannot change is left out.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, *, updates: bool = True) -> None:
        self._restores: list[Callable[[], Any]] = [
            kept([*module.buffers()]),
            *(PlainState(part).restore for part in module.modules()),
            _plain_numbers(getattr(trainer, "datamodule", None)),
            _progress(trainer),
            _random_numbers(),
        ]
        if updates:
            self._restores[:0] = [
                _gradients(module),
                kept([*module.parameters()]),
                *(_optimizer(optimizer) for optimizer in trainer.optimizers),
                *(_schedule(config.scheduler) for config in trainer.lr_scheduler_configs),
                _scaler(trainer),
                kept(getattr(trainer.strategy, "_ddp_comm_state", None)),
            ]

    def restore(self) -> None:
        """Put everything back; it may be done again later."""
        for restore in self._restores:
            restore()


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


def _optimizer(optimizer: Optimizer) -> Restore:
    state = kept(optimizer.state)
    groups = [
        {key: (lambda value=value: value) if key == "params" else kept(value) for key, value in group.items()}
        for group in optimizer.param_groups
    ]
    numbers = _plain_numbers(optimizer)

    def restore() -> None:
        state()
        numbers()
        for group, before in zip(optimizer.param_groups, groups, strict=True):
            found = {key: value() for key, value in before.items()}
            group.clear()
            group.update(found)

    return restore


def _schedule(schedule: Any) -> Restore:
    state = deepcopy(schedule.state_dict())
    return lambda: schedule.load_state_dict(deepcopy(state))


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
    values = {name: kept(getattr(scaler, name)) for name in ("_scale", "_growth_tracker")}
    states = deepcopy(dict(scaler._per_optimizer_states))

    def restore() -> None:
        for name, value in values.items():
            setattr(scaler, name, value())
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


def _random_numbers() -> Restore:
    states = _collect_rng_states(include_cuda=True)
    return lambda: _set_rng_states(states)
