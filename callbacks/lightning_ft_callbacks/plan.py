"""FineTuningPlan: what each phase will train, at which learning rates, until when, and at what cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from torch import nn

from lightning_ft_callbacks.block_costs import BlockCosts
from lightning_ft_callbacks.blocks import BlockMap, BlockSpec
from lightning_ft_callbacks.caching.prefix_lines import lines_worth_keeping
from lightning_ft_callbacks.freeze_schedule import FreezeSchedule, ScheduleSpec
from lightning_ft_callbacks.phases.reachable import FitLength, phase_starts, starts_open

NAME_WIDTH, PADDING = 8, 3  # of blocks at least, and of each column, in a printed table
FLOAT_BYTES = 4
ADAM_STATES = 2


@dataclass(frozen=True, slots=True)
class PlannedPhase:
    """What a phase will train.

    Attributes:
        trained: The blocks' names, input first.
        num_parameters: Scalar parameters that are trained.
        share: Their share of all.
        lrs: Lowest and highest learning rate of these blocks at the schedule's peak; None where it is not known.
        ends: When it ends, in words.
        start: The epoch in which it begins at the earliest; None if the fit ends before.
        is_open: Whether it begins when a metric says so, because a phase before it ends by a plateau.
        time: Operations of a step over those of a step that trains all; None where not counted.
        memory: Weights, gradients, optimizer state, and activations of a batch where counted [byte].
        cached: With FrozenPrefixCache, the time when what is below the lowest trained block is kept, and what keeping
            that of all training samples takes [byte]; None without, or where nothing is below.
    """

    trained: tuple[str, ...]
    num_parameters: int
    share: float
    lrs: tuple[float, float] | None
    ends: str
    start: float | None
    time: float | None
    memory: int
    cached: tuple[float, int] | None = None
    is_open: bool = False


def _cached(
    costs: BlockCosts | None,
    names: Sequence[str],
    to_come: Sequence[tuple[tuple[str, ...], int | None]],
    num_samples: int | None,
) -> tuple[float, int] | None:
    """Return what a cache saves and takes in the first of some phases; None where it keeps nothing."""
    trained, _ = to_come[0]
    if costs is None or num_samples is None or not (num_bytes := costs.cached_bytes(names, trained)):
        return None
    if not lines_worth_keeping(names, to_come, names.index(trained[0])):
        return None
    return costs.relative_time(names, trained, cached=True), num_bytes * num_samples


@dataclass(frozen=True, slots=True)
class FineTuningPlan:
    """What a fine-tuning will do, before its first step; ``str`` is a table.

    Attributes:
        phases: The phases.
        num_parameters: The module's scalar parameters.
        never_trained: Blocks that no phase trains.
        names: All blocks, input first.
        stay_frozen: Blocks that a phase names, but that the user has frozen.
    """

    phases: tuple[PlannedPhase, ...]
    num_parameters: int
    never_trained: tuple[str, ...]
    names: tuple[str, ...]
    stay_frozen: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        module: nn.Module,
        schedule: ScheduleSpec = "gradual",
        *,
        blocks: BlockSpec | BlockMap | None = None,
        lrs: Mapping[str, float] | None = None,
        costs: BlockCosts | None = None,
        epochs: float = inf,
        steps_per_epoch: float = inf,
        epochs_per_validation: float = 1.0,
        optimizer_states: int = ADAM_STATES,
        thaw_frozen: bool = False,
        cached_samples: int | None = None,
    ) -> "FineTuningPlan":
        """Work out the plan of a schedule.

        Args:
            module: The module.
            schedule: As GradualUnfreezing takes it.
            blocks: As ``BlockMap.of`` takes them, or a BlockMap.
            lrs: Peak learning rates by block.
            costs: What a step costs in each block.
            epochs: Epochs of the fit.
            steps_per_epoch: Optimizer steps an epoch.
            epochs_per_validation: Epochs from one validation to the next, or to the next end of an epoch.
            optimizer_states: Values that the optimizer keeps for each trained one: 2 for Adam's kind.
            thaw_frozen: Whether parameters that do not require gradients are trained with their block.
            cached_samples: Training samples whose frozen blocks FrozenPrefixCache runs once; None without it.

        Raises:
            ValueError: If the schedule or the blocks do not fit the module.
        """
        block_map = blocks if isinstance(blocks, BlockMap) else BlockMap.of(module, blocks)
        plan = FreezeSchedule.of(schedule, block_map, thaw_frozen=thaw_frozen)
        total = sum(parameter.numel() for parameter in module.parameters())
        trainable = {
            name: sum(p.numel() for p in block_map.parameters(name) if p.requires_grad or thaw_frozen)
            for name in block_map.names
        }
        matched = plan.trained(block_map)
        to_come = [
            (tuple(name for name in names if trainable[name]) or names, phase.epochs)
            for names, phase in zip(matched, plan.phases, strict=True)
        ]
        phases = []
        starts = phase_starts(plan, FitLength(epochs, steps_per_epoch, epochs_per_validation))
        ends = [*(phase.ends for phase in plan.phases[:-1]), "with the fit"]
        for number, (trained, _) in enumerate(to_come):
            count = sum(trainable[name] for name in trained)
            rates = [lrs[name] for name in trained if name in lrs] if lrs else []
            memory = FLOAT_BYTES * (total + count * (1 + optimizer_states))
            phases.append(
                PlannedPhase(
                    trained,
                    count,
                    count / total,
                    (min(rates), max(rates)) if rates else None,
                    ends[number],
                    starts[number],
                    costs.relative_time(block_map.names, trained) if costs else None,
                    memory + (costs.kept_bytes(block_map.names, trained) if costs else 0),
                    _cached(costs, block_map.names, to_come[number:], cached_samples),
                    starts_open(plan.phases)[number],
                )
            )
        ever = {name for phase in phases for name in phase.trained}
        named = {name for names in matched for name in names}
        return cls(
            tuple(phases),
            total,
            tuple(name for name in block_map.names if name not in named),
            block_map.names,
            tuple(name for name in block_map.names if name in named - ever),
        )

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table: a row of titles, then one a phase."""
        rows: list[tuple[str, ...]] = [
            ("phase", "trains", "parameters", "lr at the peak", "begins", "ends", "time", "memory")
        ]
        if cached := any(phase.cached for phase in self.phases):
            rows[0] += ("cached",)
        for number, phase in enumerate(self.phases):
            low, high = phase.lrs or (None, None)
            rate = "" if low is None else f"{low:.2g}" if low == high else f"{low:.2g} to {high:.2g}"
            rows.append(
                (
                    str(number),
                    self.described(phase.trained),
                    f"{phase.num_parameters:,} ({phase.share:.1%})",
                    rate,
                    _begins(phase),
                    phase.ends,
                    "" if phase.time is None else f"{phase.time:.0%}",
                    f"{phase.memory / 1e6:,.0f} MB",
                )
            )
            if cached:
                time, num_bytes = phase.cached or (None, 0)
                rows[-1] += ("" if time is None else f"{time:.0%}, {num_bytes / 1e6:,.0f} MB",)
        return rows

    def notes(self) -> list[str]:
        """Return what the table does not say."""
        notes = []
        if self.never_trained:
            notes.append(f"never trained: {', '.join(self.never_trained)}")
        if self.stay_frozen:
            blocks = ", ".join(self.stay_frozen)
            notes.append(f"stay frozen, because they were frozen before: {blocks}; thaw_frozen=True thaws them")
        if all(phase.time is not None for phase in self.phases):
            notes.append("time: operations of a step over those of one that trains all; memory: with one batch")
        else:
            notes.append("time: not counted for this module; memory: without activations")
        if any(phase.is_open and phase.start is not None for phase in self.phases):
            notes.append("open: when a phase before ends, which its metric decides")
        if any(phase.cached for phase in self.phases):
            notes.append("cached: time once the outputs of the frozen blocks are kept, and about what they take")
        return notes

    def __str__(self) -> str:
        rows = self.rows()
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, *self.notes()])

    def show(self) -> None:
        """Print it, as rich's table where that is installed."""
        try:
            from rich.console import Console
            from rich.table import Table
        except ImportError:
            print(self)
            return
        console = Console()
        columns = _fitting([*zip(*self.rows(), strict=True)], console.width)
        table = Table()
        for (title, *_), width in zip(columns, _widths(columns, console.width), strict=True):
            table.add_column(title, overflow="fold", width=width)
        rows = list(zip(*columns, strict=True))[1:]
        for row in rows:
            table.add_row(*row)
        console.print(table)
        for note in self.notes():
            console.print(note)

    def described(self, trained: tuple[str, ...]) -> str:
        """Return blocks in few words: all, or the ends of a run of neighbours.

        Args:
            trained: The blocks' names, input first.
        """
        return in_few_words(trained, self.names)


def in_few_words(trained: tuple[str, ...], names: tuple[str, ...]) -> str:
    """Return blocks in few words: all, or the ends of a run of neighbours.

    Args:
        trained: Names of the blocks that are meant, input first.
        names: Names of all blocks, input first.
    """
    if trained == names:
        return "all"
    first = names.index(trained[0])
    if len(trained) > 2 and names[first : first + len(trained)] == trained:
        return f"{trained[0]} to {trained[-1]}"
    return ", ".join(trained)


def _begins(phase: PlannedPhase) -> str:
    if phase.start is None:
        return "never"
    return "open" if phase.is_open else f"epoch {phase.start:g}"


def _fitting(columns: list[tuple[str, ...]], room: int) -> list[tuple[str, ...]]:
    """Return the columns that a terminal has room for without a break within a word or number.

    In a narrow one the number of parameters is left out, and then the memory and what is counted last.
    """
    if _least_width(columns) > room:
        shares = [cell.partition("(")[2].rstrip(")") for cell in columns[2][1:]]
        columns = [*columns[:2], ("share", *shares), *columns[3:]]
    for title in ("memory", "cached", "time"):
        if _least_width(columns) > room:
            columns = [column for column in columns if column[0] != title]
    return columns


def _least_width(columns: Sequence[Sequence[str]]) -> int:
    return 1 + sum(width + PADDING for width in _least_widths(columns))


def _least_widths(columns: Sequence[Sequence[str]]) -> list[int]:
    """Return the widths in which no word is broken but the blocks' names."""
    widths = [max(len(word) for cell in cells for word in cell.split()) for cells in columns]
    widths[1] = min(widths[1], NAME_WIDTH)
    return widths


def _widths(columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """Return the widths of a table's columns; in a narrow terminal numbers stay whole, and blocks' names are folded."""
    wanted = [max(map(len, cells)) for cells in columns]
    widths = _least_widths(columns)
    for column in (1, *range(len(columns))):  # names have what room there is first
        spare = room - 1 - sum(width + PADDING for width in widths)
        widths[column] += max(0, min(spare, wanted[column] - widths[column]))
    return widths
