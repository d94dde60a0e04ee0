"""Format: what an exported folder holds, and how it is loaded."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_ft.export.rows import Batch
from lightning_ft.run.finished_run import FinishedRun

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")


class Format(ABC):
    """A way to write a run's model that others load without the run.

    Args:
        run: The run, its adapters merged into the weights unless the format keeps them.

    Attributes:
        name: Its name on the command line.
        merges: Whether adapters are merged into the weights.
        exact: The largest difference from the run's model in 32 bits, as ``check.difference`` counts it.
        dtypes: The numbers that it can be written in.
        notes: What its reader should know, a sentence each; for the model card.
    """

    name: ClassVar[str]
    merges: ClassVar[bool] = True
    exact: ClassVar[float] = 1e-5
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32,)

    def __init__(self, run: FinishedRun) -> None:
        self.run = run
        self.notes: list[str] = []

    @abstractmethod
    def refusal(self) -> str | None:
        """Return why this run's model cannot be written in this format; None where nothing is known against it."""

    @abstractmethod
    def write(self, folder: Path, batches: Sequence[Batch], wanted: Sequence[Tensor], dtype: torch.dtype) -> None:
        """Write the model into an empty folder.

        Args:
            folder: The folder.
            batches: Real batches.
            wanted: What the run's model makes of them.
            dtype: The numbers that weights are written as.

        Raises:
            NotEqualError: If the format has no place for this model.
        """

    @abstractmethod
    def reader(self, folder: Path) -> Callable[[Batch], Tensor]:
        """Load what was written as a user will, and return the function from a batch to the outputs."""

    @abstractmethod
    def usage(self, folder: str) -> str:
        """Return Python lines that load a folder and use it; the model card shows them.

        Args:
            folder: The folder's name.
        """

    def requirements(self) -> str:
        """Return what is to be installed to load it, as pip takes it."""
        return "torch"


def inputs_of(run: FinishedRun, batch: Batch) -> dict[str, Tensor]:
    """Return what of a batch a run's model reads, the mask always, in the order of ``INPUTS``."""
    accepted = getattr(run.model.backbone, "_accepted", INPUTS)
    return {name: batch[name] for name in INPUTS if name in batch and (name in accepted or name == "attention_mask")}


def label_names(run: FinishedRun) -> list[str] | None:
    """Return the names of the classes in their order, ``LABEL_0`` and so on where they have none; None without."""
    number = run.model.head.num_classes
    if number is None:
        return None
    return list(run.model.label_names or (f"LABEL_{index}" for index in range(number)))


def max_length(run: FinishedRun) -> int | None:
    """Return the tokens that the run's data gave the model of a text, at most; None where there is no limit."""
    limits = [getattr(run.model.backbone, "max_length", None), getattr(run.data, "max_length", None)]
    return min((limit for limit in limits if limit is not None), default=None)


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
