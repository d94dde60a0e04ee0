"""BlockCallback: what callbacks that treat blocks differently share, the blocks and the optimizers' rates."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from math import prod
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_ft_callbacks.base_rates import group_peaks
from lightning_ft_callbacks.blocks import BlockMap, BlockSpec
from lightning_ft_callbacks.optimizers import check_has_rates
from lightning_ft_callbacks.param_groups import BlockRates
from lightning_ft_callbacks.strategies import before_late_restore, check_strategy, leave_restoring


class BlockCallback(Callback):
    """A callback that trains blocks of a module at different rates.

    All of a trainer's share the blocks, and the optimizers' rates, which the first of them keeps.

    Args:
        blocks: The blocks, as ``BlockMap.of`` takes them; given to one of a trainer's callbacks they hold for all.

    Attributes:
        block_map: The module's blocks, during a fit.
        at_full_rate: Whether ``rate_factor`` leaves out what is passing, a warm-up ramp.
    """

    def __init__(self, blocks: BlockSpec | None = None) -> None:
        self.blocks = blocks
        self.block_map: BlockMap | None = None
        self._rates: list[BlockRates] = []
        self._shared_rates: list[BlockRates] = []  # the first callback's
        self._last_rates: list[Any] = []
        self._restored_rates: list[Any] | None = None
        self.at_full_rate = False

    def block_spec(self, module: LightningModule) -> BlockSpec | None:  # noqa: ARG002
        """Return the blocks that were given to this callback; None where it was given none."""
        return self.blocks

    def prepare(self, trainer: Trainer) -> None:
        """Work out what follows from the blocks and the optimizers, before anybody asks for factors."""

    def rate_factor(self, block: str, group: Mapping[str, Any]) -> float:  # noqa: ARG002
        """Return the factor on a block's learning rate in one of the user's groups, asked at each update."""
        return 1.0

    @property
    def sets_rates(self) -> bool:
        """Whether ``rate_factor`` makes rates of its own, instead of shares of the user's."""
        return False

    def decay_exempt(self, module: LightningModule) -> frozenset[int]:  # noqa: ARG002
        """Return the ``id`` of parameters that shall have no weight decay."""
        return frozenset()

    def metrics(self, step: int, rates: Mapping[str, float]) -> dict[str, float]:  # noqa: ARG002
        """Return what is to be logged beside the rates.

        Args:
            step: Optimizer steps done.
            rates: The blocks' rates in the last of them.
        """
        return {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Forget a checkpoint that was validated or tested: a fit is resumed from its own alone, read after this."""
        self._restored_rates = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the blocks, and begin to give them their rates.

        Raises:
            ValueError: If the blocks do not fit the module, two callbacks name different ones, or the strategy cannot
                treat blocks differently.
        """
        check_strategy(trainer, type(self).__name__)
        self._last_rates = []
        if _leader(trainer) is not self:
            return
        callbacks = _all(trainer)
        specs = [spec for callback in callbacks if (spec := callback.block_spec(pl_module)) is not None]
        if any(_written_out(spec) != _written_out(specs[0]) for spec in specs):
            raise ValueError("two callbacks were given different blocks; give them to one, and they hold for all")
        block_map = BlockMap.of(pl_module, specs[0] if specs else None)
        for callback in callbacks:
            callback.block_map = block_map
            callback.prepare(trainer)
        owners = block_map.owners()
        exempt = frozenset().union(*(callback.decay_exempt(pl_module) for callback in callbacks))

        def factor(block: str, group: Mapping[str, Any]) -> float:
            return prod(callback.rate_factor(block, group) for callback in callbacks) if block else 1.0

        self._rates = [BlockRates(optimizer, owners, factor, exempt) for optimizer in trainer.optimizers]
        restored = next((c._restored_rates for c in callbacks if c._restored_rates is not None), None)
        for rates, state in zip(self._rates, restored or [], strict=False):
            rates.load_state_dict(state)
        for rates in self._rates:
            rates.attach()
        for callback in callbacks:
            callback._shared_rates = self._rates

        def take(states: Mapping[str, Any]) -> None:
            for callback in callbacks:
                if callback.state_key in states:
                    callback.load_state_dict(deepcopy(states[callback.state_key]))

        before_late_restore(trainer, take)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Wait for no checkpoint any more."""
        leave_restoring(trainer)

    def peak_rates(self, trainer: Trainer) -> dict[str, float]:
        """Return each block's highest learning rate, at the peak of the schedule, of blocks that an optimizer holds."""
        assert self.block_map is not None
        owners = self.block_map.owners()
        peaks = group_peaks(trainer)
        rates: dict[str, float] = {}
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                if (peak := peaks.get(id(group["params"]))) is None:
                    continue
                for block in {owners[id(p)] for p in group["params"] if id(p) in owners}:
                    factor = prod(callback.rate_factor(block, group) for callback in _all(trainer))
                    rates[block] = max(rates.get(block, 0.0), peak * factor)
        return rates

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Log ``lr/<block>`` and the callbacks' own values."""
        loop = trainer.fit_loop
        accumulates = trainer.lightning_module.automatic_optimization and loop._should_accumulate()
        if (
            not trainer.loggers
            or _leader(trainer) is not self
            or not trainer._logger_connector.should_update_logs
            or accumulates
        ):
            return
        rates = self.block_rates()
        metrics = {f"lr/{name}": rate for name, rate in rates.items()}
        for callback in _all(trainer):
            metrics |= callback.metrics(trainer.global_step, rates)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=loop.epoch_loop._batches_that_stepped)

    def block_rates(self) -> dict[str, float]:
        """Return the learning rate that each trained block had in the last update.

        A block in groups of different rates has one entry a group, named as LearningRateMonitor names them:
        ``head/pg1``.
        """
        rates: dict[str, float] = {}
        several = len(self._shared_rates) > 1
        for number, view in enumerate(self._shared_rates):
            for name, by_group in view.rates().items():
                if len(set(by_group.values())) == 1 and rates.get(name, rate := next(iter(by_group.values()))) == rate:
                    rates[name] = rate
                    continue
                for group, rate in by_group.items():
                    rates[f"{name}/{f'opt{number}/' if several else ''}pg{group}"] = rate
        return rates

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Leave the optimizers as they were found."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Leave the optimizers as they were found."""
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """Return what optimizers keep for single blocks, after a fit what they kept at its end."""
        states = [rates.state_dict() for rates in self._rates] or self._last_rates
        return {"rates": states} if any(states) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what ``state_dict`` returned, before ``on_fit_start`` or, under FSDP2, after it."""
        self._restored_rates = state_dict.get("rates")
        for rates, state in zip(self._shared_rates, self._restored_rates or [], strict=False):
            rates.load_state_dict(state)

    def _detach(self) -> None:
        for rates in self._rates:
            rates.detach()
        if self._rates:
            self._last_rates = [rates.state_dict() for rates in self._rates]
        self._rates, self._shared_rates = [], []
        self._restored_rates = None


def _written_out(spec: BlockSpec) -> list[tuple[str, list[str]]]:
    """Return blocks as names and lists of paths, so that one way to write them equals another."""
    if not isinstance(spec, Mapping):
        return [(path, [path]) for path in spec]
    return [(name, [paths] if isinstance(paths, str) else list(paths)) for name, paths in spec.items()]


@contextmanager
def at_full_rates(trainer: Trainer) -> Iterator[None]:
    """Leave warm-up ramps of newly thawed blocks out, so that a trial sees the rates that they rise to."""
    callbacks = _all(trainer)
    for callback in callbacks:
        callback.at_full_rate = True
    try:
        yield
    finally:
        for callback in callbacks:
            callback.at_full_rate = False


def reference_rate(trainer: Trainer) -> float:
    """Return the rate of a block of scale 1 at the schedule's peak, in the group with the highest; else the highest.

    Where no block is of scale 1, because blocks have rates and not scales, it is the highest rate of all blocks.

    Raises:
        ValueError: If it is 0, so that no factor changes it, or an optimizer sets its rates itself.
    """
    check_has_rates(trainer.optimizers, "LRFinder")
    callbacks = _all(trainer)
    by_rate = any(callback.sets_rates for callback in callbacks)
    rates = (callbacks[0].peak_rates(trainer) if by_rate else group_peaks(trainer)).values()
    highest = max(rates, default=0.0)
    if not highest > 0:
        raise ValueError("the learning rate of all parameter groups is 0, and no factor changes that; give any other")
    return highest


def _all(trainer: Trainer) -> list[BlockCallback]:
    callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return [callback for callback in callbacks if isinstance(callback, BlockCallback)]


def _leader(trainer: Trainer) -> BlockCallback:
    return _all(trainer)[0]
