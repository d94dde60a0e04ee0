"""Phase and FreezeSchedule: which blocks train, and until when, as plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from lightning_ft_callbacks.blocks import BlockMap

PresetName = Literal["linear_probe", "lp_ft", "gradual", "chain_thaw", "full"]


@dataclass(frozen=True, slots=True)
class Plateau:
    """The end of a phase whose metric no longer gets better.

    Attributes:
        monitor: The metric, as it is logged.
        patience: Validations in a row that may bring nothing better; with the last of these the phase ends.
        mode: Whether lower (``"min"``) or higher (``"max"``) is better.
        min_delta: How much better counts, in the metric's units.

    Raises:
        ValueError: If a value is out of its range.
    """

    monitor: str
    patience: int = 3
    mode: Literal["min", "max"] = "min"
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        kinds: dict[str, type | tuple[type, ...]] = {"monitor": str, "patience": int, "min_delta": (int, float)}
        for name, kind in kinds.items():
            if not isinstance(value := getattr(self, name), kind) or isinstance(value, bool):
                raise ValueError(f"Plateau's {name} cannot be {value!r}")
        if self.mode not in ("min", "max"):
            raise ValueError(f"expected Plateau's mode to be 'min' or 'max', but got {self.mode!r}")
        if self.patience < 1:
            raise ValueError(f"expected Plateau's patience to be at least 1, but got {self.patience}")
        if self.min_delta < 0:
            raise ValueError(f"expected Plateau's min_delta to be at least 0, but got {self.min_delta}")

    def improves(self, value: float, best: float | None) -> bool:
        """Tell whether a value is better than the best so far; NaN never is."""
        if best is None:
            return value == value
        return value < best - self.min_delta if self.mode == "min" else value > best + self.min_delta


@dataclass(frozen=True, slots=True)
class Phase:
    """A time in which the same blocks are trained.

    Attributes:
        train: Patterns (``fnmatch``) of the blocks' names.
        epochs: Epochs after which it ends.
        steps: Optimizer steps after which it ends.
        plateau: The metric whose stand-still ends it. Without any of the three it lasts until the fit ends.

    Raises:
        ValueError: If nothing is trained, or the phase is to end in two ways, or at once.
    """

    train: tuple[str, ...]
    epochs: int | None = None
    steps: int | None = None
    plateau: Plateau | None = None

    def __init__(
        self,
        train: Sequence[str],
        epochs: int | None = None,
        steps: int | None = None,
        plateau: Plateau | None = None,
    ) -> None:
        if isinstance(train, str):
            raise ValueError(f"expected train to be a list of patterns, but got {train!r}; write [{train!r}]")
        if not isinstance(train, Sequence) or not all(isinstance(pattern, str) for pattern in train):
            raise ValueError(f"expected train to be a list of patterns, but got {train!r}")
        if plateau is not None and not isinstance(plateau, Plateau):
            raise ValueError(f"expected plateau to have a monitor, but got {plateau!r}")
        values = {"train": tuple(train), "epochs": epochs, "steps": steps, "plateau": plateau}
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if not self.train:
            raise ValueError("a phase trains nothing: its train is empty")
        ends = [name for name in ("epochs", "steps", "plateau") if values[name] is not None]
        if len(ends) > 1:
            raise ValueError(f"a phase ends by one of epochs, steps, plateau, but {' and '.join(ends)} were given")
        for name in ("epochs", "steps"):
            count = values[name]
            if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
                raise ValueError(f"expected a phase's {name} to be a whole number of at least 1, but got {count!r}")

    @property
    def ends(self) -> str:
        """When it ends, in words."""
        if self.epochs is not None:
            return f"after {self.epochs} epoch{'s' if self.epochs > 1 else ''}"
        if self.steps is not None:
            return f"after {self.steps} step{'s' if self.steps > 1 else ''}"
        if self.plateau is not None:
            return f"when {self.plateau.monitor} is no better for {self.plateau.patience} validations"
        return "with the fit"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, as a schedule's YAML has it."""
        data: dict[str, Any] = {"train": list(self.train)}
        for name in ("epochs", "steps"):
            if (value := getattr(self, name)) is not None:
                data[name] = value
        if self.plateau is not None:
            data["plateau"] = {field.name: getattr(self.plateau, field.name) for field in fields(Plateau)}
        return data


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
        cls, schedule: "str | Sequence[Phase | Mapping[str, Any]] | FreezeSchedule", block_map: BlockMap
    ) -> "FreezeSchedule":
        """Return the schedule that a user means.

        Args:
            schedule: A preset's name, the path of a YAML file, a list of phases, or a schedule.
            block_map: The blocks, for presets.

        Raises:
            ValueError: If it is no preset and no file, with the nearest name.
        """
        if isinstance(schedule, FreezeSchedule):
            return schedule
        if not isinstance(schedule, str | Path):
            return cls.from_dict({"phases": list(schedule)}, "schedule")
        if schedule in get_args(PresetName):
            return cls.from_preset(schedule, block_map)
        path = Path(schedule)
        if path.suffix in (".yaml", ".yml") or path.exists():
            return cls.from_yaml(path)
        near = get_close_matches(str(schedule), get_args(PresetName), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(get_args(PresetName))}, or a YAML file"
        raise ValueError(f"no schedule {str(schedule)!r}; {hint}")

    @classmethod
    def from_preset(cls, preset: str, block_map: BlockMap) -> "FreezeSchedule":
        """Return a preset's phases for a module's blocks.

        - ``linear_probe``: the last block alone.
        - ``lp_ft``: the last block for an epoch, then all (Kumar et al. 2022, arXiv:2202.10054).
        - ``gradual``: one block more each epoch, from the last down (Howard and Ruder 2018, arXiv:1801.06146).
        - ``chain_thaw``: the last block, then each alone from the first up, an epoch each, then all (Felbo et al.
          2017, arXiv:1708.00524).
        - ``full``: all.

        Args:
            preset: Its name.
            block_map: The blocks.
        """
        names = [_literal(name) for name in block_map.names]
        head, every = names[-1], ["*"]
        if preset == "linear_probe":
            phases = [Phase([head])]
        elif preset == "lp_ft":
            phases = [Phase([head], epochs=1), Phase(every)]
        elif preset == "gradual":
            lowest = range(len(names) - 1, 0, -1)
            phases = [*(Phase(names[index:], epochs=1) for index in lowest), Phase(every)]
        elif preset == "chain_thaw":
            phases = [*(Phase([name], epochs=1) for name in [head, *names[:-1]]), Phase(every)]
        else:
            phases = [Phase(every)]
        return cls(phases, preset)

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
            data = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = "" if mark is None else f", line {mark.line + 1}"
            raise ValueError(f"{path}{line}: {getattr(error, 'problem', None) or error}") from error
        if isinstance(data, list):
            data = {"phases": data}
        if not isinstance(data, Mapping):
            raise ValueError(f"{path}: expected a mapping with the key 'phases', but got {data!r}")
        if data and all(isinstance(key, int) for key in data):
            from lightning_ft_callbacks.finetuning_scheduler import schedule_of

            return schedule_of(data, str(path))
        return cls.from_dict(data, str(path))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], place: str = "schedule") -> "FreezeSchedule":
        """Return the schedule that plain data describe.

        Args:
            data: ``{"phases": [...]}``, each a Phase or its keys.
            place: Where they come from, for errors.

        Raises:
            ValueError: If a key is unknown, with the nearest one, or a value wrong.
        """
        _check_keys(data, ("phases",), place)
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
                    _check_keys(plateau, [field.name for field in fields(Plateau)], f"{where}, plateau")
                    values["plateau"] = Plateau(**plateau)
                phases.append(Phase(**values))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{where}: {error}") from error
        try:
            return cls(phases)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, as its YAML has it."""
        return {"phases": [phase.to_dict() for phase in self.phases]}

    def to_yaml(self) -> str:
        """Return it as YAML that ``from_yaml`` reads."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def trained(self, block_map: BlockMap) -> tuple[tuple[str, ...], ...]:
        """Return the names of the blocks that each phase trains, input first.

        Raises:
            ValueError: If a pattern matches no block, with the nearest name.
        """
        return tuple(block_map.match(phase.train) for phase in self.phases)


# a preset's name, a YAML file's path, phases, or the schedule itself
ScheduleSpec = str | Sequence[Phase | Mapping[str, Any]] | FreezeSchedule


def _check_keys(data: Mapping[str, Any], known: Sequence[str], place: str) -> None:
    for key in data:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"{place}: unknown key {key!r}; {hint}")


def _literal(name: str) -> str:
    """Return a pattern that matches a name and no other."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)
