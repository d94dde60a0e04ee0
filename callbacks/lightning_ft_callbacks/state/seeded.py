"""Random numbers that follow from a key, for a while."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed the generators of Python, NumPy and torch's CPU within the block, and put them back after it.

    Args:
        key: Whole numbers from 0 up that the seeds are made of.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence(key).generate_state(3, np.uint64).tolist()
    random.seed(words[0])
    np.random.seed([words[1] >> 32, words[1] & 0xFFFFFFFF])
    # not torch.manual_seed, which would seed the accelerators too
    torch.default_generator.manual_seed(words[2])
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
