"""Tables of the page: which traps are run with which tools, and what is said of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters import ADAPTERS
from finder_adapters import FINDERS
from finder_traps import FINDER_TRAPS
from outcome import Outcome
from traps import TRAPS

OURS = "lightning-ft"
FREEZING = """\
Freezing layers and thawing them later meets everything else that a training run is made of. Each row is a trap of that
kind, run with three tools that are asked for the same: to train the head, and from some epoch on the backbone too.
"""
FREEZING_SETUP = """\
Each tool is set up as its own documentation says, with 0.1 as the head's learning rate and 0.01 as the backbone's:
`BackboneFinetuning` with an optimizer of the parameters that are not frozen, and `backbone_initial_lr`;
`FinetuningScheduler` with an explicit schedule of two phases that end by epochs; `GradualUnfreezing` with two phases,
and `DiscriminativeLR`. Where a tool has options for frozen batch norms, all of them are tried, and the best outcome
counts. Under a scheduler it is enough that the run ends, that the head's rate is the scheduler's, and that the backbone
never has more than was asked for; the cell says how the two rates relate from the thawing on.
"""
FINDING = """\
A learning-rate finder trains for some steps at rising rates, undoes that, and goes on at the rate that the losses
suggest. Each row is a trap in that, run with Lightning's finder and ours.
"""
FINDING_SETUP = """\
Both test 100 rates from 1e-7 to 1 (for full curves to 0.1, where the loss does not explode) with a module that takes
its rate from its attribute `lr`, as Lightning's finder needs it. Where a row is about the fit after the test, the two
ways that Lightning documents are tried, and the better outcome counts: `LearningRateFinder` among the callbacks, which
is all that the other rows use, and `Tuner.lr_find` before `fit`. In mid-training it is the subclass that its
documentation gives as an example, and ours has `each_phase=True`, beside `GradualUnfreezing`. What is compared with a
fit without a test goes on at the module's own rate, by `update_attr=False` and `apply=False`. The noisy losses fall
from 1 to 0.4, half of it at a rate of 1e-3; the noise is their standard deviation, the median is over 9 seeds, and near
is within a factor of 10.
"""


@dataclass(frozen=True, slots=True)
class TrapTable:
    """Traps, and the tools that they are run with.

    Attributes:
        title: Its heading.
        intro: What stands before the table.
        setup: What stands behind it: how the tools are set up.
        traps: By name; each takes a tool and an empty folder.
        tools: By name, which no other table has.
    """

    title: str
    intro: str
    setup: str
    traps: Mapping[str, Callable[[Any, Path], Outcome]]
    tools: Mapping[str, Any]

    @property
    def ours(self) -> str:
        """The name of this project's tool."""
        return next(name for name, tool in self.tools.items() if tool.package == OURS)


TABLES = (
    TrapTable("Freezing and thawing", FREEZING, FREEZING_SETUP, TRAPS, ADAPTERS),
    TrapTable("Learning-rate finders", FINDING, FINDING_SETUP, FINDER_TRAPS, FINDERS),
)
