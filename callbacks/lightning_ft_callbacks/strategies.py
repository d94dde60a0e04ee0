"""What a trainer's strategy must be told when other parameters are trained, and which strategies cannot be told."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
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


def before_late_restore(trainer: Trainer, take: Callable[[Mapping[str, Any]], None]) -> None:
    """Have the callbacks' states of a checkpoint taken before a strategy that restores late restores weights.

    FSDP2 does so after ``on_fit_start``, and optimizer states only of parameters that then require a gradient: who
    freezes must know its phase by then.

    Args:
        trainer: The trainer, in ``on_fit_start``.
        take: Takes the states, by the callbacks' keys, if a checkpoint is restored.
    """
    strategy: Any = trainer.strategy
    if not strategy.restore_checkpoint_after_setup:
        return
    load = strategy.load_checkpoint

    def take_and_load(checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        leave_restoring(trainer)
        path = Path(strategy.broadcast(checkpoint_path))
        file = path / "meta.pt" if path.is_dir() else path
        saved = torch.load(file, map_location="cpu", mmap=not path.is_dir(), weights_only=weights_only)
        take(saved.get("callbacks", {}))
        return load(checkpoint_path, weights_only=weights_only)

    strategy.load_checkpoint = take_and_load


def leave_restoring(trainer: Trainer) -> None:
    """Leave the strategy as it was before ``before_late_restore``."""
    vars(trainer.strategy).pop("load_checkpoint", None)


def rebuild(trainer: Trainer) -> None:
    """Wrap the module again after a change of ``requires_grad``.

    DistributedDataParallel averages the gradients of those parameters that required one when it was made, and of no
    others: a parameter thawed later would drift apart between ranks, silently. The weights, which are the same on all
    ranks, are not sent again, which takes longer than all else; buffers are before each forward, as ever.
    """
    strategy: Any = trainer.strategy
    if not isinstance(strategy, DDPStrategy) or strategy.lightning_module is None:
        return
    state: Any = strategy._ddp_comm_state
    for kept in ("error_dict", "p_memory_dict", "q_memory_dict"):  # PowerSGD's, by buckets that are gone
        getattr(state, kept, {}).clear()
    if hasattr(state, "start_powerSGD_iter"):
        # a new wrapper makes its final buckets after its first step, and so long the gradients go as they are
        state.iter = max(0, min(state.iter, state.start_powerSGD_iter - 2))
    strategy.model = None
    given = strategy._ddp_kwargs
    strategy._ddp_kwargs = given | {"init_sync": False}
    try:
        strategy.model = strategy._setup_model(strategy.lightning_module)
    finally:
        strategy._ddp_kwargs = given
    strategy._register_ddp_hooks()


def allow_recompiles(num_phases: int) -> None:
    """Let compiled modules be compiled once more for each phase; dynamo gives up after its limit, and runs eagerly."""
    import torch._dynamo

    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 8 + num_phases)
