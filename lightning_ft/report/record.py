"""RunRecord: what only the training itself knows of a run, kept in its folder as ``record.json``."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning_ft_callbacks.whole_file import write_whole

RECORD = "record.json"


@dataclass(slots=True)
class PhaseRecord:
    """A phase as it was trained.

    Attributes:
        phase: Its number, from 0.
        first_step: The optimizer step that it began with, as ``metrics.csv`` counts them.
        trained: Names of the blocks that it trained, input first.
        num_trained: Scalar parameters that it trained.
        seconds: Time from its first batch to its end, validations included [s].
        peak_bytes: The most memory of the accelerator that it took; on a CPU the most that the process held between
            forward pass and update [byte]; None where it is not known.
    """

    phase: int
    first_step: int
    trained: list[str]
    num_trained: int
    seconds: float = 0.0
    peak_bytes: int | None = None


@dataclass(slots=True)
class RunRecord:
    """A run as it was trained.

    Attributes:
        phases: Its phases.
        blocks: Scalar parameters of each block, input first.
        rates: Optimizer steps and the highest rate of the groups then.
        versions: Versions of Python and of the libraries.
        device: What it ran on: ``"cpu"``, ``"NVIDIA H100"``.
        num_devices: Processes that trained together.
        precision: Lightning's name of the precision.
        num_rows: Samples of training and validation: ``{"train": 7000, "val": 800}``.
        data: Fingerprint of each data file's content.
        seed: The seed; None where none was set.
        finished: Whether the fit came to its end.
        num_planned: Phases of its schedule, those too that it did not come to; 0 where nothing has phases.
    """

    phases: list[PhaseRecord] = field(default_factory=list)
    blocks: dict[str, int] = field(default_factory=dict)
    rates: list[tuple[int, float]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    device: str = ""
    num_devices: int = 1
    precision: str = ""
    num_rows: dict[str, int] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    seed: int | None = None
    finished: bool = False
    num_planned: int = 0

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "RunRecord":
        """Return what ``asdict`` gave."""
        phases = [PhaseRecord(**phase) for phase in content["phases"]]
        rates = [(int(step), float(rate)) for step, rate in content["rates"]]
        return cls(**{**content, "phases": phases, "rates": rates})

    @classmethod
    def read(cls, folder: Path) -> "RunRecord | None":
        """Return the record of a run's folder; None where it has none.

        Raises:
            ValueError: If it is no record.
        """
        file = folder / RECORD
        if not file.is_file():
            return None
        try:
            return cls.from_dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{str(file)!r} is no record of a run: {type(error).__name__}: {error}") from error

    def write(self, folder: Path) -> None:
        """Write it into a run's folder, whole or not at all."""
        write_whole(folder / RECORD, json.dumps(asdict(self), indent=1))
