"""Clock: the time of a contender's training steps, while contenders take turns step by step."""

import gc
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Condition
from time import perf_counter, process_time

import numpy as np
from openmp import release_threads


class Turns:
    """Whose turn it is among contenders, each in a thread of its own, of which only one runs at a time.

    Args:
        names: The contenders, the first to run first.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._line = deque(names)
        self._changed = Condition()

    def wait(self, name: str) -> None:
        """Wait until it is a contender's turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._line[0] == name)

    def pass_on(self, name: str) -> None:
        """Let the others have a turn each."""
        with self._changed:
            self._line.rotate(-1)
            self._changed.notify_all()
        self.wait(name)

    def leave(self) -> None:
        """Take the contender whose turn it is out of the line."""
        with self._changed:
            self._line.popleft()
            self._changed.notify_all()


class Clock:
    """Times the steps of one contender; whatever happens between two steps counts for the latter.

    Args:
        name: The contender.
        turns: Whose turn it is.

    Attributes:
        seconds: Time of each step [s].
        cpu_seconds: Time that all processors together spent on each step [s], which other processes disturb less.
        num_samples: Samples collated so far.
        num_values: Tokens, padding included, or image values collated so far.
    """

    def __init__(self, name: str, turns: Turns) -> None:
        self.name = name
        self.turns = turns
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.num_samples = 0
        self.num_values = 0

    def begin(self) -> None:
        """Start the first step, its batch loaded."""
        self._pause()

    def end_step(self) -> None:
        """End a step, and start the next when all the others had theirs."""
        wall, cpu = perf_counter(), process_time()
        self.seconds.append(wall - self._start[0])
        self.cpu_seconds.append(cpu - self._start[1])
        self._pause()

    def count(self, num_samples: int, num_values: int) -> None:
        """Count a batch."""
        self.num_samples += num_samples
        self.num_values += num_values

    def _pause(self) -> None:
        release_threads()
        self.turns.pass_on(self.name)
        self._start = perf_counter(), process_time()


Contender = Callable[[Clock], None]


def run_round(contenders: Mapping[str, Contender], rotation: int) -> dict[str, Clock]:
    """Train all contenders side by side, a step of each in turn, so that a noisy machine is noisy for all alike.

    Args:
        contenders: From name to a function that sets a training up and runs it, telling the clock of its steps.
        rotation: Which contender goes first.

    Returns:
        The clock of each contender.
    """
    names = deque(contenders)
    names.rotate(-rotation)
    turns = Turns(names)
    clocks = {name: Clock(name, turns) for name in contenders}

    def run(name: str) -> None:
        turns.wait(name)
        try:
            contenders[name](clocks[name])
        finally:
            turns.leave()

    with ThreadPoolExecutor(len(names)) as pool:
        for future in [pool.submit(run, name) for name in names]:
            future.result()
    gc.collect()
    return clocks


def window_ratios(ours: Sequence[float], theirs: Sequence[float], window: int | None) -> list[float]:
    """Return how many times as fast as another a contender was, in each window of a round's steps.

    Args:
        ours: Time of each step of the one [s].
        theirs: That of the other, as many.
        window: Steps compared at a time; None for the whole round. Steps beyond the last whole window are left out.
    """
    steps = min(window or len(ours), len(ours))
    whole = len(ours) // steps * steps
    sums = [np.reshape(seconds[:whole], (-1, steps)).sum(1) for seconds in (ours, theirs)]
    return (sums[1] / sums[0]).tolist()
