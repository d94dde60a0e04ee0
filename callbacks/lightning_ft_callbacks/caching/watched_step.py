"""WatchedStep: a module's step on a batch, run as often as one likes, without a trace."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_ft_callbacks.caching.postponed import Postponed, known
from lightning_ft_callbacks.caching.prefix_passes import PrefixPass, attached, run
from lightning_ft_callbacks.caching.trees import map_leaves
from lightning_ft_callbacks.state.training_state import TrainingState


class WatchedStep:
    """Runs ``training_step`` or ``validation_step`` from the same state each time, and updates nothing.

    Args:
        trainer: The trainer, at the start of a batch.
        module: Its module.
        batch_idx: The batch's number.
        loader_idx: The validation loader's number, and how many there are; None for training.
    """

    def __init__(
        self, trainer: Trainer, module: LightningModule, batch_idx: int, loader_idx: tuple[int, int] | None = None
    ) -> None:
        self._trainer = trainer
        self._module = module
        self._batch_idx = batch_idx
        self._loader_idx = loader_idx
        self._state = TrainingState(trainer, module, updates=False)

    def __call__(self, batch: Any, passes: Sequence[PrefixPass] = ()) -> Any:
        """Run it, and return what it returned, what it logged, and the states of the module's metrics.

        Args:
            batch: The batch.
            passes: Passes to attach meanwhile.
        """
        self._state.restore()
        logged: list[Any] = []
        trainer: Any = self._trainer
        module = self._module
        loggers = trainer._loggers
        trainer._loggers = [DummyLogger() for _ in loggers]
        module.__dict__["log"] = lambda name, value, *_, **__: logged.append((name, _number(value)))
        module.__dict__["log_dict"] = lambda values, *_, **__: logged.extend((k, _number(v)) for k, v in values.items())
        try:
            with torch.no_grad(), attached(passes):
                output = run(partial(self._run, batch), passes)
            states = [_states(part) for part in module.modules()]
            return _copied(known((output, [value for _, value in logged], states)))
        finally:
            del module.__dict__["log"], module.__dict__["log_dict"]
            trainer._loggers = loggers
            self._state.restore()

    def _run(self, batch: Any) -> Any:
        trainer: Any = self._trainer
        batch = map_leaves(_fresh, batch)
        if self._loader_idx is None:
            loop = trainer.fit_loop.epoch_loop
            arguments = loop._build_kwargs(OrderedDict(), batch, self._batch_idx)
            with trainer.precision_plugin.train_step_context():
                return self._module.training_step(*arguments.values())
        loop = trainer.fit_loop.epoch_loop.val_loop
        number, several = self._loader_idx
        arguments = loop._build_kwargs(batch, self._batch_idx, number if several > 1 else None)
        arguments = loop._build_step_args_from_hook_kwargs(arguments, "validation_step")
        with trainer.precision_plugin.val_step_context():
            return self._module.validation_step(*arguments)


def _states(part: Any) -> Any:
    state = getattr(part, "metric_state", None)
    return state if isinstance(state, dict) else {}


def _fresh(part: Any) -> Any:
    """Return a part of a batch that a step may write into."""
    if isinstance(part, Postponed):
        return part.again()
    return part.clone() if isinstance(part, Tensor) else part


def _number(value: Any) -> Any:
    return torch.tensor(float(value)) if isinstance(value, int | float) else value


def _copied(tree: Any) -> Any:
    return tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else None, tree)
