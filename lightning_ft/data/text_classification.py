"""TextClassificationData: texts, or pairs of texts, with a label."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_ft.data.base import Part
from lightning_ft.data.labels import Task, is_missing
from lightning_ft.data.tables import check_columns, filtered, read_table
from lightning_ft.data.texts import TextData, tokenised_name
from lightning_ft.extras import require

if TYPE_CHECKING:
    from datasets import Dataset


class TextClassificationData(TextData):
    """Texts with a class, several classes, or a number.

    A file is CSV, TSV, JSONL or Parquet, a folder that the ``datasets`` library saved, ``package://name/path``, or the
    name of a data set on the hub. Texts are tokenised once and kept in the cache of ``datasets``; batches hold texts
    of similar length and are padded to their longest. Batches are ``input_ids`` and ``attention_mask``, shape
    (batch, token), and ``labels``, shape (batch,).

    Args:
        train_file: Rows to train on.
        val_file: Rows to validate on; None to hold some of the training file out.
        test_file: Rows to test on; None to hold some of the training file out.
        predict_file: Rows to predict; they need no label.
        tokenizer: A tokenizer, or the name or folder of one; None for that of the model.
        where: Rows to use, from column to value or list of values: ``{source: rotten_tomatoes}``.
        text_column: Column of the texts.
        text_pair_column: Column of the second text of a pair, as in entailment; None for single texts.
        label_column: Column of the labels.
        label_separator: What stands between the classes of a cell that holds several, as ``" "`` or ``","``; None for
            lists, and for ``|`` with ``task="multilabel"``.
        labels: Class names in the order of the prediction; None: those of the training data, sorted.
        task: ``"multiclass"``, ``"multilabel"`` (lists, or names between ``|``) or ``"regression"``; None: as the
            labels look, lists for multilabel, numbers that are not whole for regression.
        max_length: Tokens after which a text is cut; None for what the model takes.
        val_size: Rows held out for validation: a share below 1, or a number of rows.
        test_size: The same for the test.
        split_seed: Seed of the choice of held-out rows.
        batch_size: Texts a step on one device.
        bucket: Whether batches hold texts of similar length; saves about a third of the time on reviews.
        num_workers: Processes that load batches.

    Raises:
        ModuleNotFoundError: If datasets or transformers are not installed.
        FileNotFoundError: If a file is not there.
        ValueError: If a table is empty, lacks a column, has one class only, or a label that training never saw.
    """

    def __init__(
        self,
        train_file: str | None = None,
        val_file: str | None = None,
        test_file: str | None = None,
        *,
        predict_file: str | None = None,
        tokenizer: Any = None,
        where: dict[str, Any] | None = None,
        text_column: str = "text",
        text_pair_column: str | None = None,
        label_column: str = "label",
        label_separator: str | None = None,
        labels: list[str] | None = None,
        task: Task | None = None,
        max_length: int | None = None,
        val_size: float = 0.1,
        test_size: float = 0.1,
        split_seed: int = 0,
        batch_size: int = 32,
        bucket: bool = True,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            {"train": train_file, "val": val_file, "test": test_file, "predict": predict_file},
            label_column=label_column,
            labels=labels,
            task=task,
            val_size=val_size,
            test_size=test_size,
            split_seed=split_seed,
            batch_size=batch_size,
            num_workers=num_workers,
            tokenizer=tokenizer,
            max_length=max_length,
        )
        self.where = where or {}
        self.label_separator = label_separator
        self.text_column = text_column
        self.text_pair_column = text_pair_column
        self.bucket = bucket

    def read(self, part: Part) -> "Dataset":
        """Return the rows of a part's file that ``where`` asks for; those without a text are dropped with a notice.

        Rows to predict are all kept, so that predictions stand beside their rows.
        """
        file = self.files[part]
        if file is None:
            raise ValueError(f"{type(self).__name__} needs {part}_file")
        place = self.place(part)
        table = read_table(file, f"{part}_file", type(self).__name__)
        columns = {"text_column": self.text_column, "text_pair_column": self.text_pair_column}
        if part == "predict":
            check_columns(table, columns, place)
            return table
        check_columns(table, columns | {"label_column": self.label_column}, place)
        table = filtered(table, self.where, place)
        if self.label_separator is not None:
            table = _split(table, self.label_column, self.label_separator)
        texts = [table[column] for column in columns.values() if column is not None]
        rows = [row for row, cells in enumerate(zip(*texts, strict=True)) if all(map(_is_text, cells))]
        if len(rows) < len(table):
            rank_zero_info(f"{place}: {len(table) - len(rows)} of {len(table)} rows have no text; dropped")
            table = table.select(rows)
        return table

    def samples(self, part: Part, table: "Dataset", targets: Sequence[Any] | None) -> "Dataset":
        """Return the tokenised rows: input_ids, attention_mask, perhaps token_type_ids, and labels."""
        tokenizer, text, pair = self._tokenizer(), self.text_column, self.text_pair_column
        limit = self._limit(tokenizer)
        table = table.select_columns([text] if pair is None else [text, pair])

        def tokenize(rows: Mapping[str, Sequence[Any]]) -> Mapping[str, Any]:
            texts = [["" if is_missing(cell) else str(cell) for cell in rows[key]] for key in (text, pair) if key]
            encoded = tokenizer(*texts, truncation=limit is not None, max_length=limit)
            return {
                **encoded,
                "length": [len(ids) for ids in encoded["input_ids"]],
                "cut": [bool(encoding.overflowing) for encoding in encoded.encodings or []] or [False] * len(texts[0]),
            }

        tokens = table.map(
            tokenize,
            batched=True,
            remove_columns=table.column_names,
            desc="Tokenising",
            new_fingerprint=tokenised_name(table, tokenizer, limit=limit),
        )
        if num_cut := sum(tokens["cut"]):
            rank_zero_info(f"{self.place(part)}: {num_cut} of {len(tokens)} texts are longer than {limit} tokens; cut")
        tokens = tokens.remove_columns("cut")
        return tokens if targets is None else tokens.add_column("labels", list(targets))

    def lengths(self, samples: "Dataset") -> Sequence[int] | None:
        """Return the tokens of each text, shape (text,); None where batches are not to be bucketed."""
        return samples["length"][:] if self.bucket else None

    def collate(self) -> "TextCollator":
        """Return the function that pads a batch to its longest text."""
        return TextCollator(self._tokenizer())


class TextCollator:
    """Pads texts to the longest of their batch, with transformers' collator.

    Args:
        tokenizer: The tokenizer whose padding it is.
    """

    def __init__(self, tokenizer: Any) -> None:
        transformers = require("transformers", extra="text", needed_by="TextClassificationData")
        self.pad = transformers.DataCollatorWithPadding(tokenizer)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return tensors of shape (batch, token), and the labels, shape (batch,) or (batch, class)."""
        inputs = [{key: value for key, value in row.items() if key not in ("length", "labels")} for row in rows]
        batch = dict(self.pad(inputs))
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return batch


def _is_text(cell: Any) -> bool:
    return not is_missing(cell) and bool(str(cell).strip())


def _split(table: "Dataset", column: str, separator: str) -> "Dataset":
    """Return a table whose cells of several classes are lists; missing ones stay missing."""
    cells = [
        None if is_missing(cell) else [name.strip() for name in str(cell).split(separator) if name.strip()]
        for cell in table[column]
    ]
    return table.remove_columns(column).add_column(column, cells)
