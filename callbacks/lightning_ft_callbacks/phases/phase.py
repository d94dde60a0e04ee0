"""Phase and Plateau: which blocks train, and until when."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from lightning_ft_callbacks.given_values import check_count, check_number


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
        if not isinstance(self.monitor, str):
            raise ValueError(f"expected Plateau's monitor to be a metric's name, but got {self.monitor!r}")
        if self.mode not in ("min", "max"):
            raise ValueError(f"expected Plateau's mode to be 'min' or 'max', but got {self.mode!r}")
        check_count("Plateau's patience", self.patience, at_least=1)
        check_number("Plateau's min_delta", self.min_delta, at_least=0)

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
            if values[name] is not None:
                check_count(f"a phase's {name}", values[name], at_least=1)

    @property
    def ends(self) -> str:
        """When it ends, in words."""
        if self.epochs is not None:
            return f"after {self.epochs} epoch{'s' if self.epochs > 1 else ''}"
        if self.steps is not None:
            return f"after {self.steps} step{'s' if self.steps > 1 else ''}"
        if self.plateau is not None:
            plural = "s" if self.plateau.patience > 1 else ""
            return f"when {self.plateau.monitor} is no better for {self.plateau.patience} validation{plural}"
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
