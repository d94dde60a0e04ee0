"""FreezeSchedule: the phases of a fine-tuning, as plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from lightning_ft_callbacks.blocks import BlockMap
from lightning_ft_callbacks.phases.finetuning_scheduler import phases_and_blocks
from lightning_ft_callbacks.phases.phase import Phase, Plateau
from lightning_ft_callbacks.phases.presets import PRESETS, preset_phases
from lightning_ft_callbacks.phases.unique_keys import UniqueKeyLoader


@dataclass(frozen=True, slots=True)
class FreezeSchedule:
    """The phases of a fine-tuning, in order.

    Attributes:
        phases: The phases; only the last may be without an end.
        preset: The preset's name that they come from; None for an own schedule.
        blocks: Blocks that the schedule brings along, names to paths, input first; None for the module's own.

    Raises:
        ValueError: If there is no phase, or one before the last can never end.
    """

    phases: tuple[Phase, ...]
    preset: str | None = None
    blocks: Mapping[str, tuple[str, ...]] | None = None

    def __init__(
        self,
        phases: Sequence[Phase],
        preset: str | None = None,
        blocks: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        object.__setattr__(self, "phases", tuple(phases))
        object.__setattr__(self, "preset", preset)
        own = None if blocks is None else {name: tuple(paths) for name, paths in blocks.items()}
        object.__setattr__(self, "blocks", own)
        if not self.phases:
            raise ValueError("a schedule has no phases")
        for number, phase in enumerate(self.phases[:-1]):
            if phase.epochs is None and phase.steps is None and phase.plateau is None:
                raise ValueError(
                    f"phase {number} (train: {', '.join(phase.train)}) can never end, but phases follow it; give it "
                    "epochs, steps or plateau"
                )

    @classmethod
    def of(
        cls,
        schedule: "str | Path | Sequence[Phase | Mapping[str, Any]] | Mapping[str, Any] | FreezeSchedule",
        block_map: BlockMap,
        *,
        thaw_frozen: bool = False,
    ) -> "FreezeSchedule":
        """Return the schedule that a user means.

        Args:
            schedule: A preset's name, the path of a YAML file, a list of phases, what a file holds, or a schedule.
            block_map: The blocks, for presets.
            thaw_frozen: Whether parameters that do not require gradients are trained too, for presets.

        Raises:
            ValueError: If it is none of these, with the nearest name.
        """
        if isinstance(schedule, FreezeSchedule):
            return schedule
        if isinstance(schedule, Mapping):
            return cls.from_dict(schedule)
        if isinstance(schedule, Sequence) and not isinstance(schedule, str):
            return cls.from_dict({"phases": list(schedule)})
        if not isinstance(schedule, str | Path):
            hint = "; write [Phase(...)]" if isinstance(schedule, Phase) else ""
            kinds = "a preset's name, a YAML file or a list of phases"
            raise ValueError(f"expected schedule to be {kinds}, but got {schedule!r}{hint}")
        if schedule in PRESETS:
            return cls(preset_phases(str(schedule), block_map, thaw_frozen=thaw_frozen), str(schedule))
        if names_a_file(schedule):
            return cls.from_yaml(schedule)
        near = get_close_matches(str(schedule), PRESETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(PRESETS)}, or a YAML file"
        raise ValueError(f"no schedule {str(schedule)!r}; {hint}")

    @classmethod
    def from_yaml(cls, path: str | Path) -> "FreezeSchedule":
        """Read a schedule from a file: ``phases: [{train: [head], epochs: 1}, {train: ["*"]}]``.

        A file of finetuning-scheduler, whose keys are phase numbers, is read too.

        Args:
            path: The file.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it is no YAML, with the line, or holds something else than phases.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no schedule file {str(path)!r}")
        try:
            data = yaml.load(path.read_text(), UniqueKeyLoader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = "" if mark is None else f", line {mark.line + 1}"
            raise ValueError(f"{path}{line}: {getattr(error, 'problem', None) or error}") from error
        if isinstance(data, list):
            data = {"phases": data}
        if not isinstance(data, Mapping):
            raise ValueError(f"{path}: expected a mapping with the key 'phases', but got {data!r}")
        if data and all(isinstance(key, int) for key in data):
            phases, blocks = phases_and_blocks(data, str(path))
            return cls(phases, preset=None, blocks=blocks)
        return cls.from_dict(data, str(path))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], place: str = "schedule") -> "FreezeSchedule":
        """Return the schedule that plain data describe.

        Args:
            data: ``{"phases": [...]}``, each a Phase or its keys; and, where the schedule brings them along,
                ``blocks``, from names to lists of parameter names or regular expressions of these, input first.
            place: Where they come from, for errors.

        Raises:
            ValueError: If a key is unknown, with the nearest one, or a value wrong.
        """
        _check_keys(data, ("phases", "blocks"), place)
        phases = []
        listed = data.get("phases") or ()
        if not isinstance(listed, Sequence) or isinstance(listed, str):
            raise ValueError(f"{place}: expected phases to be a list, but got {listed!r}")
        for number, phase in enumerate(listed):
            if isinstance(phase, Phase):
                phases.append(phase)
                continue
            where = f"{place}, phase {number}"
            if not isinstance(phase, Mapping):
                raise ValueError(f"{where}: expected the keys train and epochs, steps or plateau, but got {phase!r}")
            _check_keys(phase, [field.name for field in fields(Phase)], where)
            if "train" not in phase:
                raise ValueError(f"{where}: the key 'train' is missing")
            values = dict(phase)
            try:
                if isinstance(plateau := values.get("plateau"), Mapping):
                    _check_keys(plateau, [field.name for field in fields(Plateau)], "plateau")
                    values["plateau"] = Plateau(**plateau)
                phases.append(Phase(**values))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{where}: {error}") from error
        try:
            return cls(phases, blocks=_listed_blocks(data.get("blocks")))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, as its YAML has it."""
        blocks = {} if self.blocks is None else {"blocks": {name: list(paths) for name, paths in self.blocks.items()}}
        return {"phases": [phase.to_dict() for phase in self.phases]} | blocks

    def to_yaml(self) -> str:
        """Return it as YAML that ``from_yaml`` reads."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def trained(self, block_map: BlockMap) -> tuple[tuple[str, ...], ...]:
        """Return the names of the blocks that each phase trains, input first.

        Raises:
            ValueError: If a pattern matches no block, with the nearest name.
        """
        return tuple(block_map.match(phase.train) for phase in self.phases)


# the schedule, phases, a preset's name, a YAML file's path, or what one holds; str behind phases: it can stand for any
# value
ScheduleSpec = FreezeSchedule | Sequence[Phase | Mapping[str, Any]] | str | Path | Mapping[str, Any]


def names_a_file(schedule: Any) -> bool:
    """Tell whether a schedule is given as the path of a file, which need not be there if it ends as YAML does."""
    if not isinstance(schedule, str | Path) or schedule in PRESETS:
        return False
    return Path(schedule).suffix in (".yaml", ".yml") or Path(schedule).exists()


def _listed_blocks(blocks: Any) -> dict[str, list[str]] | None:
    if blocks is None:
        return None
    if not isinstance(blocks, Mapping):
        raise ValueError(f"expected blocks to be a mapping from names to lists of parameters, but got {blocks!r}")
    for name, paths in blocks.items():
        if not isinstance(paths, Sequence) or isinstance(paths, str) or not all(isinstance(p, str) for p in paths):
            raise ValueError(f"expected block {name!r} to be a list of parameter names, but got {paths!r}")
    return {str(name): list(paths) for name, paths in blocks.items()}


def _check_keys(data: Mapping[str, Any], known: Sequence[str], place: str) -> None:
    for key in data:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"{place}: unknown key {key!r}; {hint}")
