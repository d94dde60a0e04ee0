"""Traps: what goes wrong when layers are frozen and thawed; each takes a tool, and returns what became of it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from adapters import Adapter
from net import NUM_BATCHES
from outcome import Outcome
from rate_traps import SCHEDULERS, asked_rate, follows_scheduler
from run_traps import resume, second_fit, two_ranks, validate_first, weight_averaging
from weight_traps import equal_values, frozen_norm, reentrant, tied_weights, two_optimizers

Trap = Callable[[Adapter, Path], Outcome]

TRAPS: dict[str, Trap] = {
    "two ranks after thawing end with equal weights": two_ranks,
    "resume in the middle of an epoch after thawing is exact": partial(resume, step=2 * NUM_BATCHES + 2),
    "resume at an epoch's end after thawing is exact": partial(resume, step=2 * NUM_BATCHES, at_epoch_end=True),
    **{f"thawing under {name}": partial(follows_scheduler, name) for name in SCHEDULERS},
    "0.01 asked for under a LinearLR warm-up is 0.01": asked_rate,
    "parameters of equal value are all trained": equal_values,
    "a tied weight is updated once": tied_weights,
    "a frozen batch norm is bitwise unchanged": partial(frozen_norm, used=False),
    "a frozen batch norm uses its own statistics": partial(frozen_norm, used=True),
    "a second fit goes on": second_fit,
    "validate before fit": validate_first,
    "two optimizers": two_optimizers,
    "weight averaging (SWA) that begins after thawing": partial(weight_averaging, thaw_epoch=1),
    "weight averaging (SWA) that begins before thawing": partial(weight_averaging, thaw_epoch=3),
    "reentrant checkpointing above a frozen backbone": reentrant,
}
