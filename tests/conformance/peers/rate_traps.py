"""Traps of the learning rate: schedulers that keep a list with an entry for each group of the optimizer."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import BACKBONE_LR, HEAD_LR, Adapter
from net import NUM_BATCHES, NUM_EPOCHS, Net, Noting, batches, trainer
from outcome import Outcome
from torch.optim import Optimizer, lr_scheduler

NUM_STEPS = NUM_EPOCHS * NUM_BATCHES


def warm_up(optimizer: Optimizer) -> Any:
    """Return transformers' schedule."""
    from transformers import get_linear_schedule_with_warmup

    return get_linear_schedule_with_warmup(optimizer, 3, NUM_STEPS + 1)


def sequential(optimizer: Optimizer) -> lr_scheduler.SequentialLR:
    """Return a warm-up, and a decay behind it."""
    parts = [lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 3), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    return lr_scheduler.SequentialLR(optimizer, parts, [3])


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": partial(lr_scheduler.LambdaLR, lr_lambda=lambda step: 1 / (1 + step)),
    "transformers' linear warm-up": warm_up,
    "MultiplicativeLR": partial(lr_scheduler.MultiplicativeLR, lr_lambda=lambda step: 0.9),  # noqa: ARG005
    "CyclicLR": partial(
        lr_scheduler.CyclicLR, base_lr=HEAD_LR / 10, max_lr=HEAD_LR, step_size_up=3, cycle_momentum=False
    ),
    "CosineAnnealingWarmRestarts": partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=5),
    "OneCycleLR": partial(lr_scheduler.OneCycleLR, max_lr=HEAD_LR, total_steps=NUM_STEPS + 1, cycle_momentum=False),
    "SequentialLR": sequential,
}


def follows_scheduler(name: str, tool: Adapter, folder: Path) -> Outcome:
    """The run ends, the head's rate is the scheduler's alone, and the backbone's is at most what was asked for."""
    module = Net(tool, scheduler=SCHEDULERS[name])
    trainer(tool, folder).fit(module, batches(), batches())
    used = _used(module)
    head = [rates[id(module.head.weight)][0] for rates in used]
    alone = _alone(SCHEDULERS[name])
    weight = id(next(module.backbone.parameters()))
    thawed = [step for step in range(NUM_BATCHES, NUM_STEPS) if weight in used[step]]
    if len(thawed) < NUM_STEPS - NUM_BATCHES:
        return Outcome(False, f"the backbone has a rate in {len(thawed)} of {NUM_STEPS - NUM_BATCHES} updates")
    if head != pytest.approx(alone):
        return Outcome(False, f"the head's rate ends at {head[-1]:.4g}, alone it would at {alone[-1]:.4g}")
    ratios = [used[step][weight][0] / head[step] for step in thawed]
    highest = max(used[step][weight][0] for step in thawed)
    return Outcome(highest <= BACKBONE_LR * 1.001, f"backbone's rate / head's: {_span(ratios)}")


def asked_rate(tool: Adapter, folder: Path) -> Outcome:
    """A backbone that was asked for 0.01 has it when the warm-up in which it was thawed is over."""
    module = Net(tool, scheduler=partial(lr_scheduler.LinearLR, total_iters=5), interval="epoch")
    trainer(tool, folder, thaw_epoch=2, num_epochs=8).fit(module, batches(), batches())
    (rate,) = _used(module)[-1][id(next(module.backbone.parameters()))]
    return Outcome(rate == pytest.approx(BACKBONE_LR), f"ends at {rate:.4g}")


def _used(module: Net) -> list[dict[int, list[float]]]:
    optimizer = module.optimizers(use_pl_optimizer=False)
    assert isinstance(optimizer, Noting)
    return optimizer.used


def _alone(scheduler: Callable[[Optimizer], Any]) -> list[float]:
    """Return the rates that a scheduler gives a single group."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=HEAD_LR)
    schedule = scheduler(optimizer)
    rates = []
    for _ in range(NUM_STEPS):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.step()
    return rates


def _span(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.3g}" if high == pytest.approx(low, rel=1e-3) else f"{low:.3g} to {high:.3g}"
