"""Strategies that cannot treat blocks differently are refused with one that can."""

from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
from nets import Net, loader, trainer
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import SGD

from lightning_ft_callbacks import GradualUnfreezing
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


def test_the_refusal_is_that_of_a_fit() -> None:
    class Hiding(Net):
        def configure_optimizers(self) -> Any:
            return ZeroRedundancyOptimizer(self.parameters(), optimizer_class=SGD, lr=0.1)

    fit = trainer(GradualUnfreezing(), max_epochs=1, strategy="ddp")
    with pytest.raises(ValueError, match="GradualUnfreezing does not work with ZeroRedundancyOptimizer"):
        fit.fit(Hiding(), loader())
