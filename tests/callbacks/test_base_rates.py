"""Rates are scaled wherever a schedule keeps them, and once."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import timm.scheduler as timm_schedulers
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import SWALR

from lightning_ft_callbacks.base_rates import scale_base

FACTOR = 10.0
Step = Callable[[Any, int], None]


def by_epoch(schedule: Any, epoch: int) -> None:
    schedule.step(epoch, metric=1.0)


def timm(kind: str, **options: Any) -> tuple[Callable[[Any], Any], Step]:
    options = {"warmup_t": 2, "warmup_lr_init": 1e-3} | options
    return lambda optimizer: getattr(timm_schedulers, kind)(optimizer, **options), by_epoch


SCHEDULES: dict[str, tuple[Callable[[Any], Any], Step]] = {
    "timm's cosine": timm("CosineLRScheduler", t_initial=6, lr_min=1e-3),
    "timm's steps": timm("StepLRScheduler", decay_t=2, decay_rate=0.5),
    "timm's polynomial": timm("PolyLRScheduler", t_initial=6, lr_min=1e-3),
    "timm's plateau": timm("PlateauLRScheduler", decay_rate=0.1, patience_t=0, lr_min=2e-3, threshold=100.0),
    "averages": (lambda o: SWALR(o, swa_lr=0.05, anneal_epochs=3), lambda schedule, _: schedule.step()),
}


def course(optimizer: torch.optim.Optimizer, schedule: Any, step: Step, at: int, factor: float) -> list[list[float]]:
    """Return the groups' rates, scaled at one of eight steps."""
    rates = []
    for epoch in range(8):
        if epoch == at:
            configs = [] if schedule is None else [SimpleNamespace(scheduler=schedule)]
            scale_base(
                SimpleNamespace(lightning_module=nn.Module(), optimizers=[optimizer], lr_scheduler_configs=configs),
                factor,
            )  # type: ignore[arg-type]
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        step(schedule, epoch + 1)
    return rates


def groups() -> list[dict[str, Any]]:
    return [{"params": [nn.Parameter(torch.ones(1))]} for _ in range(2)]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("at", [0, 3])
def test_the_rest_of_a_course_is_multiplied(name: str, at: int) -> None:
    make, step = SCHEDULES[name]
    plain, scaled = [], []
    for factor, rates in ((1.0, plain), (FACTOR, scaled)):
        optimizer = SGD(groups(), lr=0.01)
        rates += course(optimizer, make(optimizer), step, at, factor)
    assert len({rate for rate, _ in plain}) > 2
    assert scaled[:at] == plain[:at]
    assert scaled[at:] == [pytest.approx([FACTOR * rate for rate in rates]) for rates in plain[at:]]


@pytest.mark.parametrize("make", [None, lambda o: schedulers.StepLR(o, 2), lambda o: schedulers.OneCycleLR(o, 0.01, 9)])
def test_a_tensor_that_is_the_rate_of_several_groups_is_multiplied_once_and_stays(make: Any) -> None:
    plain, scaled = [], []
    for factor, rates in ((1.0, plain), (FACTOR, scaled)):
        optimizer = AdamW(groups(), lr=torch.tensor(0.01))
        schedule = None if make is None else make(optimizer)
        held = [group["lr"] for group in optimizer.param_groups]
        rates += course(optimizer, schedule, lambda s, _: s is None or s.step(), 0, factor)
        assert all(group["lr"] is tensor for group, tensor in zip(optimizer.param_groups, held, strict=True))
    assert scaled == [pytest.approx([FACTOR * rate for rate in rates]) for rates in plain]
