"""What a trainer's strategy must be told when other parameters are trained, and which strategies cannot be told."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
from torch.distributed.optim import ZeroRedundancyOptimizer


def check_strategy(trainer: Trainer, what: str) -> None:
    """Refuse a strategy under which blocks cannot be treated differently.

    Args:
        trainer: The trainer.
        what: Who asks, for the message.

    Raises:
        ValueError: If the strategy keeps parameters or groups where they cannot be reached.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DeepSpeedStrategy):
        raise ValueError(
            f"{what} does not work under DeepSpeed, whose engine copies the optimizer's groups and parameters at its "
            "start; use strategy='ddp', or ModelParallelStrategy (FSDP2)"
        )
    if isinstance(strategy, FSDPStrategy):
        raise ValueError(
            f"{what} does not work under FSDPStrategy, which flattens parameters of several blocks into one; use "
            "ModelParallelStrategy(data_parallel_size=..., tensor_parallel_size=1) (FSDP2)"
        )
    for optimizer in trainer.optimizers:
        if isinstance(optimizer, ZeroRedundancyOptimizer):
            raise ValueError(f"{what} does not work with ZeroRedundancyOptimizer, which shards groups when it is made")


def rebuild(trainer: Trainer) -> None:
    """Wrap the module again after a change of ``requires_grad``.

    DistributedDataParallel averages the gradients of those parameters that required one when it was made, and of no
    others: a parameter thawed later would drift apart between ranks, silently.
    """
    strategy: Any = trainer.strategy
    if not isinstance(strategy, DDPStrategy) or strategy.lightning_module is None:
        return
    state = strategy._ddp_comm_state
    for kept in ("error_dict", "p_memory_dict", "q_memory_dict"):  # PowerSGD's, by buckets that are gone
        getattr(state, kept, {}).clear()
    strategy.model = None
    strategy.model = strategy._setup_model(strategy.lightning_module)
    strategy._register_ddp_hooks()


def allow_recompiles(num_phases: int) -> None:
    """Let compiled modules be compiled once more for each phase; dynamo gives up after its limit, and runs eagerly."""
    import torch._dynamo

    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 8 + num_phases)
