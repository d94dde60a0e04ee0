"""Traps of finders: what goes wrong when rates are tested; each takes a tool, and returns what became of it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from base_traps import SCHEDULES, ratio, schedule_base
from curve_traps import constant, full_curve, mid_training, noisy_drop, one_nan, two_optimizers
from finder_adapters import Finder
from finder_net import NUM_BATCHES
from outcome import Outcome
from trace_traps import no_validation, nothing_written, same_order, same_weights

FinderTrap = Callable[[Finder, Path], Outcome]


def each_way(trap: Callable[[Finder, str, Path], Outcome]) -> FinderTrap:
    """Return a trap that tries all documented ways to test before a fit, of which one that passes is enough."""

    def tried(tool: Finder, folder: Path) -> Outcome:
        outcomes = {}
        for way in tool.ways:
            try:
                outcomes[way] = trap(tool, way, folder)
            except Exception as error:
                outcomes[way] = Outcome.of_exception(error)
        if len(outcomes) == 1:
            return next(iter(outcomes.values()))
        passed = any(outcome.passed for outcome in outcomes.values())
        refused = all(outcome.refused for outcome in outcomes.values())
        return Outcome(passed, "; ".join(f"{way}: {outcome.seen}" for way, outcome in outcomes.items()), refused)

    return tried


FINDER_TRAPS: dict[str, FinderTrap] = {
    "groups of 1e-3 and 1e-5 have that ratio in the test": each_way(partial(ratio, tested=True)),
    "groups of 1e-3 and 1e-5 have that ratio after it": each_way(partial(ratio, tested=False)),
    **{f"the rate found is the base under {name}": each_way(partial(schedule_base, name)) for name in SCHEDULES},
    "a constant loss is recorded as it is": constant,
    "one loss that is NaN costs its point only": one_nan,
    "full curve with validations within the test": partial(
        full_curve, num_batches=NUM_BATCHES, max_epochs=1, val_check_interval=0.25
    ),
    "full curve with epochs shorter than the test": partial(full_curve, num_batches=10, max_epochs=20),
    "full curve with a fit shorter than the test": partial(full_curve, num_batches=10, max_epochs=2),
    "full curve in mid-training": partial(mid_training, validated=False),
    "full curve in mid-training, with validations": partial(mid_training, validated=True),
    "weights and optimizer state after the test are as without": each_way(same_weights),
    "data order and random numbers after the test are as without": each_way(same_order),
    "nothing is written to disk": nothing_written,
    "validation that is switched off stays off": no_validation,
    "two optimizers": two_optimizers,
    **{
        f"the median suggestion is near the drop of losses with noise of {noise}": partial(noisy_drop, noise=noise)
        for noise in (0.01, 0.05)
    },
}
