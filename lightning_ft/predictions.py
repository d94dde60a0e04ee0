"""PredictionWriter: the predicted rows beside the rows they are for."""

import csv
import json
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_ft.masks import inside, write_mask


class PredictionWriter(Callback):
    """Writes each row of the file to predict with its prediction and, of a classifier, the probability of each class.

    As ``.json`` they are one document, of a form that the data knows: of boxes COCO's.

    The file appears when it is whole; until then it has ``.partial`` in its name. A mask is written as PNG into a
    folder beside the file, which has its name without the suffix; the row names the mask's file.

    Args:
        file: A ``.csv``, ``.jsonl`` or ``.json`` file; None for ``predictions.csv`` in the working folder.

    Raises:
        ValueError: If the file's suffix is another, the data knows no document, or several processes are to predict.
    """

    def __init__(self, file: str | None = None) -> None:
        self.file = Path(file or "predictions.csv")
        if self.file.suffix not in (".csv", ".jsonl", ".json"):
            raise ValueError(f"predictions are written as .csv, .jsonl or .json, but the file is {str(self.file)!r}")
        self.num_rows = 0
        self._stream: TextIO | None = None
        self._table: Any = None
        self._rows: list[dict[str, Any]] = []

    @property
    def partial(self) -> Path:
        """Where rows are written until all are there."""
        return self.file.with_name(f".{self.file.name}.partial")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Open the file."""
        if trainer.world_size > 1:
            raise ValueError("predictions are written in order by one process: set trainer.devices to 1")
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        if self.file.suffix == ".json" and not hasattr(data, "document"):
            raise ValueError(
                f"{type(data).__name__} has no form of its own for {str(self.file)!r}; write .csv or .jsonl"
            )
        self.num_rows = 0
        self._table = None
        self._rows = []
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self.partial.open("w", newline="", encoding="utf-8")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """Write the rows of a batch."""
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        rows = data.predict_rows(self.num_rows, self.num_rows + len(outputs))
        for number, (row, output) in enumerate(zip(rows, outputs, strict=True), self.num_rows):
            found = output["prediction"]
            if isinstance(found, Tensor):
                mask = inside(self.file.with_suffix(""), row.pop("name", f"{number}.png"))
                write_mask(mask, found.numpy())
                output["prediction"] = str(mask)
            self._write({**row, **output})
        self.num_rows += len(outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Give the whole file its name."""
        assert self._stream is not None
        if self.file.suffix == ".json":
            data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
            json.dump(data.document(self._rows), self._stream, ensure_ascii=False)
        self._stream.close()
        self.partial.replace(self.file)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Remove what was written of a prediction that failed."""
        if self._stream is not None and not self._stream.closed:
            self._stream.close()
            self.partial.unlink(missing_ok=True)

    def _write(self, row: dict[str, Any]) -> None:
        assert self._stream is not None
        if self.file.suffix == ".json":
            self._rows.append(row)
            return
        if self.file.suffix == ".jsonl":
            self._stream.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
            return
        for name, value in row.pop("probabilities", {}).items():
            row[f"probability_{name}"] = round(value, 6)
        found = row["prediction"]
        if isinstance(found, list):  # names between |, or what has parts as JSON
            plain = not any(isinstance(part, dict) for part in found)
            row["prediction"] = "|".join(map(str, found)) if plain else json.dumps(found, ensure_ascii=False)
        if self._table is None:
            self._table = csv.DictWriter(self._stream, fieldnames=list(row))
            self._table.writeheader()
        self._table.writerow(row)
