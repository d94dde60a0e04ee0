"""The batch size with which most rows a second are predicted."""

import resource
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error

from lightning_ft.rng import rng_state, set_rng_state
from lightning_ft_callbacks.caching.storage import free_memory

LARGEST = {"cpu": 256}
LARGEST_ELSEWHERE = 4096
NUM_ROWS_LOOKED_AT = 4096
SECONDS = 0.2  # how long each size is tried, at least
GAIN = 1.05  # less than this is no reason for a larger batch
SHARE_OF_MEMORY = 0.5


def fastest_batch_size(trainer: Trainer, module: LightningModule, data: Any) -> int:
    """Try sizes, each twice the last, on the longest of the first rows; all ranks must ask, and get the same.

    It ends where two sizes in a row bring nothing, the memory is exhausted (on the CPU, where the next would need half
    of what is free), or the rows are. Lightning's BatchSizeFinder goes on until the memory is exhausted, which on the
    CPU ends the process.

    Args:
        trainer: The trainer, ready to predict.
        module: The module, with its weights on its device.
        data: Its data, set up to predict.

    Returns:
        The size.
    """
    samples, collate = data.predict_samples, data.collate()
    first = range(min(len(samples), NUM_ROWS_LOOKED_AT))
    lengths = data.lengths(samples)
    order = list(first) if lengths is None else sorted(first, key=lambda row: -lengths[row])
    most = min(len(order), LARGEST.get(module.device.type, LARGEST_ELSEWHERE))
    was_training, states = module.training, rng_state()
    module.eval()
    speeds: dict[int, float] = {}
    size, goes_on = 1, True
    while goes_on:
        before = _peak()
        try:
            with torch.inference_mode():
                batch = collate([samples[row] for row in order[:size]])
                speeds[size] = _speed(trainer, batch, size)
            goes_on = size < most and _still_gains(speeds) and not _too_much_next(module, _peak() - before)
        except RuntimeError as error:
            if not is_oom_error(error) or not speeds:
                raise
            goes_on = False
        garbage_collection_cuda()
        goes_on = trainer.strategy.broadcast(goes_on)
        size = min(2 * size, most)
    module.train(was_training)
    set_rng_state(states)
    best = trainer.strategy.broadcast(max(speeds, key=speeds.__getitem__))
    rank_zero_info(
        f"predictions: batch_size {best}, {speeds.get(best, 0):.0f} rows a second; tried "
        + ", ".join(f"{size}: {speed:.0f}" for size, speed in speeds.items())
    )
    return best


def _speed(trainer: Trainer, batch: Any, size: int) -> float:
    """Return the rows a second of some steps with a batch; the first step, which prepares, does not count."""
    batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
    trainer.strategy.predict_step(batch, 0)
    start, steps = time.perf_counter(), 0
    while steps == 0 or time.perf_counter() - start < SECONDS:
        trainer.strategy.predict_step(batch, 0)
        steps += 1
    return steps * size / (time.perf_counter() - start)


def _still_gains(speeds: dict[int, float]) -> bool:
    """Tell whether one of the last two sizes was faster than all before."""
    *before, second, last = [0.0, 0.0, *speeds.values()]
    return max(second, last) > GAIN * max(before, default=0.0)


def _too_much_next(module: LightningModule, grown: int) -> bool:
    """Tell whether the next size would take too much of the free memory, by what this one took [byte]."""
    if module.device.type != "cpu":
        return False  # there it is tried
    return 2 * grown > SHARE_OF_MEMORY * free_memory()


def _peak() -> int:
    """Return the most memory that this process had so far [byte]."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
