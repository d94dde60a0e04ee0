"""PredictionWriter: the predicted rows beside the rows they are for."""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_ft.data.predict_batches import PredictBatches
from lightning_ft.predictions.failures import failures_told
from lightning_ft.predictions.formats import FORMATS, SUFFIXES, Document, Format, Row, column_names
from lightning_ft.predictions.job import input_state
from lightning_ft.predictions.parts import PartFolder
from lightning_ft.predictions.remaining import batches_to_predict
from lightning_ft.rng import rng_state, set_rng_state
from lightning_ft.tasks.masks import inside, write_mask
from lightning_ft_callbacks.whole_file import whole_file

ROWS_AT_ONCE = 1000
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")


class PredictionWriter(Callback):
    """Writes each row of the file to predict with its prediction and, of a classifier, the probability of each class.

    The columns of the input stand as they were, in their order, and what was predicted behind them. A mask is written
    as PNG into a folder beside the file, which has its name without the suffix; the row names the mask's file. As
    ``.json`` all rows are one document, of a form that the data knows: of boxes COCO's.

    What is predicted is kept in a hidden folder beside the file. A prediction that was killed goes on there, when the
    same weights predict the same file with the same options again; the outcome is that of one that never stopped. Of
    several processes each keeps what it predicts there, and the first puts it together.

    Args:
        file: A ``.csv``, ``.tsv``, ``.jsonl``, ``.parquet`` or ``.json`` file; None for ``predictions`` in the working
            folder with the suffix of the file to predict, or ``.csv`` where that is no table.
        column: The column of the prediction, which the input must not have.
        probabilities: Whether to write the probability of each class; None: where there are classes, and no top_k.
        top_k: The classes to write with their probabilities, the likeliest first, or the items to recommend; None for
            none, and for the head's own number of items.
        batch_size: Rows a step, ``"auto"`` for the number with which most rows a second are predicted; None for the
            data's.
        resume: Whether to go on with a prediction that was stopped; false begins anew.
        save_every: Seconds after which what is predicted is safe from a kill.

    Raises:
        ValueError: If the file's suffix is another, the data knows no document, the head has no probabilities or no
            order, or the input has a column of that name; before anything is predicted.
    """

    def __init__(
        self,
        file: str | None = None,
        *,
        column: str = "prediction",
        probabilities: bool | None = None,
        top_k: int | None = None,
        batch_size: int | Literal["auto"] | None = None,
        resume: bool = True,
        save_every: float = 10.0,
    ) -> None:
        if file is not None and Path(file).suffix not in SUFFIXES:
            raise ValueError(f"predictions are written as {', '.join(SUFFIXES)}, but the file is {file!r}")
        for name, number in (("top_k", top_k), ("batch_size", None if batch_size == "auto" else batch_size)):
            if number is not None and number < 1:
                raise ValueError(f"expected predictions.{name} to be a positive integer, but got {number}")
        if not column:
            raise ValueError("expected predictions.column to be a name, but it is empty")
        self.given_file = None if file is None else Path(file)
        self.column = column
        self.probabilities = probabilities
        self.top_k = top_k
        self.batch_size: int | Literal["auto"] | None = batch_size
        self.resume = resume
        self.save_every = save_every
        self.file = self.given_file or Path("predictions.csv")
        self.num_rows = 0
        self._parts = PartFolder(self.file)
        self._batches: PredictBatches | None = None
        self._input = ""
        self._saved_at = 0.0
        self._rng: dict[str, Any] | None = None
        self._limit: int | float = 1.0
        self._data: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check what is asked for, and take the choice of the batches from the data."""
        if stage != "predict":
            return
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        self.file = self.given_file or Path(f"predictions{_suffix_of(data.files['predict'])}")
        self._parts = PartFolder(self.file)
        if self.file.suffix == ".json" and not hasattr(data, "document"):
            raise ValueError(
                f"{type(data).__name__} has no form of its own for {str(self.file)!r}; write .csv, .jsonl or .parquet"
            )
        columns = data.predict_columns()
        if self.column in columns:
            raise ValueError(
                f"{data.place('predict')} has a column {self.column!r} already; name that of the predictions with "
                f"predictions.column, as in --predictions.column {_free(self.column, columns)}"
            )
        self._data, self._limit = data, trainer.limit_predict_batches
        head: Any = pl_module.head
        head.choose_output(self.probabilities, self.top_k)
        complaint = trainer.strategy.broadcast(self._claim() if trainer.is_global_zero else None)
        if complaint is not None:
            raise ValueError(complaint)
        data.choose_batches = lambda: self._choose(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Keep the random states, which each batch gets anew."""
        self._rng = rng_state()
        self._saved_at = time.monotonic()

    def on_predict_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """Let what is drawn for a batch follow from the seed and the batch alone."""
        assert self._batches is not None
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        torch.manual_seed(data.seed * 1_000_003 + self._batches.rows(batch_idx).start)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """Write the rows of a batch."""
        assert self._batches is not None
        _forget_indices(trainer)
        rows = self._batches.rows(batch_idx)
        if not rows:
            return
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        with self._told():
            if any(isinstance(output["prediction"], Tensor) for output in outputs):
                outputs = self._with_masks(outputs, data.mask_names(rows.start, rows.stop))
            outputs = [{self.column if n == "prediction" else n: found for n, found in row.items()} for row in outputs]
            if clash := sorted({*column_names(outputs[0])} & {*data.predict_columns()}):
                raise ValueError(
                    f"{data.place('predict')} has a column {clash[0]!r}, as what is predicted has; rename it, or leave "
                    "probabilities out with --predictions.probabilities false"
                )
            self._parts.add(rows, outputs)
            if time.monotonic() - self._saved_at >= self.save_every:
                self._parts.commit()
                self._saved_at = time.monotonic()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Put the parts together, and give the whole file its name."""
        with self._told():
            self._parts.commit()
        trainer.strategy.barrier("predictions")
        if not trainer.is_global_zero:
            return
        assert self._batches is not None
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        if input_state(data) != self._input:
            raise ValueError(
                f"{data.place('predict')} changed while it was predicted, so that rows and predictions may not belong "
                "together; predict it again"
            )
        self.num_rows = self._batches.num_rows
        with self._told(), whole_file(self.file, self._parts.whole) as partial:
            self._format(data).write(partial, lambda: self._chunks(data))
        self._parts.remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep what is predicted so far, for the same command to go on from."""
        if isinstance(exception, OSError):
            self._parts.abandon()
        with suppress(OSError):
            self._parts.commit()
        if self._parts.claimed:
            self._say_what_is_kept()
        self.teardown(trainer, pl_module, "predict")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put back what was changed."""
        if stage != "predict" or self._data is None:
            return
        self._data.choose_batches = None
        self._data = None
        head: Any = pl_module.head
        head.choose_output(None, None)
        trainer.limit_predict_batches = self._limit
        if self._rng is not None:
            set_rng_state(self._rng)
            self._rng = None
        self._parts.release()

    def _claim(self) -> str | None:
        """Claim the place of the file; return what hinders, for all ranks to say."""
        try:
            with self._told():
                self._parts.claim()
        except (OSError, ValueError) as error:
            return str(error.args[-1])
        return None

    def _choose(self, trainer: Trainer, module: LightningModule) -> PredictBatches:
        """Return the batches of this rank; all ranks must ask."""
        options = {"column": self.column, "probabilities": self.probabilities, "top_k": self.top_k}
        self._batches, self._input = batches_to_predict(
            trainer, module, self._parts, options, batch_size=self.batch_size, resume=self.resume
        )
        trainer.limit_predict_batches = 1.0  # these are the limited ones
        return self._batches

    def _with_masks(self, outputs: Sequence[Row], names: Sequence[str]) -> list[Row]:
        """Write masks to files; return what was predicted with the files' names instead."""
        found = []
        for output, name in zip(outputs, names, strict=True):
            mask = inside(self.file.with_suffix(""), name)
            write_mask(mask, output["prediction"].numpy())
            found.append({**output, "prediction": str(mask)})
        return found

    def _format(self, data: Any) -> Format:
        if self.file.suffix == ".json":
            return Document(data.document)
        return FORMATS[self.file.suffix](data.predict_columns(), data.predict_schema())

    def _chunks(self, data: Any) -> Iterator[tuple[list[Row], list[Row]]]:
        """Yield the rows of the input and what was predicted for them, some at a time."""
        outputs = self._parts.outputs(self.num_rows)
        for start in range(0, self.num_rows, ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, self.num_rows)
            yield data.predict_rows(start, stop), list(islice(outputs, stop - start))
        next(outputs, None)  # says so where there are fewer than there should be

    def _told(self) -> Any:
        return failures_told(self.file)

    def _say_what_is_kept(self) -> None:
        kept = sum(map(len, self._parts.rows()))
        if kept:
            rank_zero_info(
                f"predictions: {kept} rows are kept in {str(self._parts.folder)!r}; the same command goes on from there"
            )
        else:
            self._parts.remove()


def _suffix_of(source: str | None) -> str:
    """Return the suffix of a table's file, and .csv for anything else."""
    suffix = Path((source or "").removesuffix(".gz")).suffix.lower()
    return suffix if suffix in TABLES else ".csv"


def _free(name: str, columns: Sequence[str]) -> str:
    """Return a name like another that no column has."""
    return next(new for new in (f"{name}_{number}" for number in range(2, len(columns) + 3)) if new not in columns)


def _forget_indices(trainer: Trainer) -> None:
    """Forget the indices of past batches, which Lightning keeps for writers of its own, all of them."""
    for loader in trainer.predict_loop._combined_loader.flattened if trainer.predict_loop._combined_loader else ():
        getattr(getattr(loader, "batch_sampler", None), "seen_batch_indices", []).clear()
