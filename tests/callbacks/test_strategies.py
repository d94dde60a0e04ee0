"""Strategies that cannot treat blocks differently are refused with one that can."""

from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from lightning_ft_callbacks.strategies import check_strategy


def made(kind: type) -> Any:
    """Return an object of a kind without what its constructor asks of the machine."""
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("strategy", "optimizers", "message"),
    [
        (DeepSpeedStrategy, [], r"Ours does not work under DeepSpeed, .*ModelParallelStrategy"),
        (FSDPStrategy, [], r"Ours does not work under FSDPStrategy, .*ModelParallelStrategy"),
        (DDPStrategy, [ZeroRedundancyOptimizer], r"Ours does not work with ZeroRedundancyOptimizer"),
    ],
)
def test_a_strategy_that_hides_parameters_or_groups_is_refused(
    strategy: type, optimizers: list[type], message: str
) -> None:
    trainer: Any = SimpleNamespace(strategy=made(strategy), optimizers=[made(kind) for kind in optimizers])
    with pytest.raises(ValueError, match=message):
        check_strategy(trainer, "Ours")


def test_ddp_is_not_refused() -> None:
    trainer: Any = SimpleNamespace(strategy=made(DDPStrategy), optimizers=[nn.Identity()])
    check_strategy(trainer, "Ours")
