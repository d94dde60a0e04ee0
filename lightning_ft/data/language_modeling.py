"""LanguageModelingData: texts to learn a language from, prompts with completions, and conversations."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_ft.data.base import Part
from lightning_ft.data.labels import Labels, is_missing
from lightning_ft.data.masking import MaskedRows
from lightning_ft.data.prompts import JudgedText, chat, chat_prompt, check_messages, completed, plain, prompt_of
from lightning_ft.data.tables import check_columns, filtered, read_table
from lightning_ft.data.texts import TextData, read_texts, tokenised_name
from lightning_ft.data.token_rows import TokenRow, pack, windows
from lightning_ft.extras import require
from lightning_ft.resources import existing, resolve
from lightning_ft.tasks.targets import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset


LONGEST = 1024  # tokens of a row, unless the recipe says more


class LanguageModelingData(TextData):
    """Texts for a language model: to go on with (``"causal"``), or to fill gaps in (``"masked"``).

    A file is a ``.txt`` file, whose texts stand between blank lines, or a table as TextClassificationData reads it,
    with a column of texts, of prompts and completions, or of conversations. Nothing is cut off: a text too long for the
    model becomes several windows. Batches are ``input_ids``, ``attention_mask`` and ``labels``, shape (row, token): the
    tokens themselves where the loss judges them, -100 elsewhere; and causal ones ``position_ids``, which begin with 0
    at each of the texts that are packed into a row. To predict, rows are prompts, padded on the left.

    Args:
        train_file: Texts to train on.
        val_file: Texts to validate on; None to hold some of the training file out.
        test_file: Texts to test on; None to hold some of the training file out.
        predict_file: Prompts to go on with, or texts with gaps (``[MASK]``) to fill.
        objective: ``"causal"`` or ``"masked"``.
        tokenizer: A tokenizer, or the name or folder of one; None for that of the model.
        where: Rows of a table to use, from column to value or list of values.
        text_column: Column of the texts.
        prompt_column: Column of prompts, which are read and not judged; with completion_column, instead of texts.
        completion_column: Column of completions.
        messages_column: Column of conversations, lists of turns with ``role`` and ``content``: written by the
            tokenizer's chat template, and judged is what the assistant says.
        max_length: Tokens of a row; None for what the model takes, 1,024 at most.
        overlap: Tokens that a window sees of the one before it, and does not judge again; None for 1; causal only.
        packing: Whether short texts share rows, each blind to the others; causal only.
        mask_share: Share of the tokens that are hidden; masked only.
        val_size: Texts held out for validation: a share below 1, or a number of texts.
        test_size: The same for the test.
        split_seed: Seed of the choice of held-out texts.
        batch_size: Rows a step on one device.
        bucket: Whether batches hold rows of similar length.
        num_workers: Processes that load batches.

    Raises:
        ModuleNotFoundError: If datasets or transformers are not installed.
        FileNotFoundError: If a file is not there.
        ValueError: If a column is missing, options contradict one another, or the tokenizer lacks what is needed.
    """

    labelled: ClassVar[bool] = False

    def __init__(
        self,
        train_file: str | None = None,
        val_file: str | None = None,
        test_file: str | None = None,
        *,
        predict_file: str | None = None,
        objective: Literal["causal", "masked"] = "causal",
        tokenizer: Any = None,
        where: Mapping[str, Any] | None = None,
        text_column: str = "text",
        prompt_column: str | None = None,
        completion_column: str | None = None,
        messages_column: str | None = None,
        max_length: int | None = None,
        overlap: int | None = None,
        packing: bool = True,
        mask_share: float = 0.15,
        val_size: float = 0.1,
        test_size: float = 0.1,
        split_seed: int = 0,
        batch_size: int = 8,
        bucket: bool = True,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            {"train": train_file, "val": val_file, "test": test_file, "predict": predict_file},
            val_size=val_size,
            test_size=test_size,
            split_seed=split_seed,
            batch_size=batch_size,
            num_workers=num_workers,
            tokenizer=tokenizer,
            max_length=max_length,
        )
        if objective not in ("causal", "masked"):
            raise ValueError(f"expected objective to be causal or masked, but got {objective!r}")
        if (prompt_column is None) != (completion_column is None):
            raise ValueError("prompt_column and completion_column go together: give both or neither")
        if messages_column is not None and prompt_column is not None:
            raise ValueError("messages_column and prompt_column: give one of them")
        if objective == "masked" and (messages_column or prompt_column):
            raise ValueError("a masked language model reads texts: give text_column")
        if overlap is not None and overlap < 1:
            raise ValueError(f"expected overlap to be at least 1 token, but got {overlap}")
        if overlap is not None and objective == "masked":
            raise ValueError("overlap has an effect on causal language models only")
        if not 0 < mask_share < 1:
            raise ValueError(f"expected mask_share to be between 0 and 1, but got {mask_share}")
        self.objective = objective
        self.where = where or {}
        self.text_column = text_column
        self.prompt_column = prompt_column
        self.completion_column = completion_column
        self.messages_column = messages_column
        self.overlap = overlap or 1
        self.packing = packing
        self.mask_share = mask_share
        self.bucket = bucket

    @cached_property
    def labels(self) -> Labels:
        """What is learnt; there are no names."""
        return Labels("causal" if self.objective == "causal" else "masked")

    def read(self, part: Part) -> "Dataset":
        """Return the texts of a part's file; those without a text are dropped with a notice."""
        file = self.files[part]
        if file is None:
            raise ValueError(f"{type(self).__name__} needs {part}_file")
        path, place = Path(resolve(file)).expanduser(), self.place(part)
        if path.suffix.lower() == ".txt":
            existing(file, f"{part}_file")
            table = read_texts(path, f"{part}_file", self.text_column, type(self).__name__)
        else:
            table = read_table(file, f"{part}_file", type(self).__name__)
        columns = self._columns(part)
        check_columns(table, columns, place)
        if part == "predict":
            self._check_conversations(table, place)
            return table
        table = filtered(table, self.where, place)
        # what is completed may be nothing
        needed = [table[column] for argument, column in columns.items() if argument != "completion_column"]
        rows = [row for row, cells in enumerate(zip(*needed, strict=True)) if not any(map(_is_empty, cells))]
        if len(rows) < len(table):
            rank_zero_info(f"{place}: {len(table) - len(rows)} of {len(table)} rows have no text; dropped")
            table = table.select(rows)
        self._check_conversations(table, place, trains=True)
        return table

    def samples(self, part: Part, table: "Dataset", targets: Sequence[Any] | None) -> Any:  # noqa: ARG002
        """Return the rows of tokens.

        Raises:
            ValueError: If the tokenizer has no end or no mask, or windows would not advance.
        """
        tokenizer = self._tokenizer()
        if part == "predict":
            return self._to_predict(tokenizer, table)
        limit = self.max_length or LONGEST
        limit = min(limit, self._limit(tokenizer) or limit)
        if self.objective == "masked":
            return self._masked(part, tokenizer, table, limit)
        if self.overlap >= limit:
            raise ValueError(f"overlap={self.overlap} leaves nothing new of windows of {limit} tokens")
        if tokenizer.eos_token is None:
            raise ValueError(f"{type(tokenizer).__name__} has no eos_token, which ends a text")
        rows: list[TokenRow] = []
        num_texts = num_long = 0
        for text in self._judged(tokenizer, table):
            ids, judged = text.tokens(tokenizer)
            num_texts, num_long = num_texts + 1, num_long + (len(ids) > limit)
            rows += windows(ids, judged, limit, self.overlap)
        if not rows:
            raise ValueError(f"{self.place(part)}: no text has two tokens, so there is nothing to predict")
        if num_long:
            rank_zero_info(
                f"{self.place(part)}: {num_long} of {num_texts} texts are longer than {limit} tokens; cut into windows"
            )
        if not self.packing:
            return [{"input_ids": row.input_ids, "labels": row.labels} for row in rows]
        return [
            {"input_ids": row.input_ids, "labels": row.labels, "position_ids": row.position_ids}
            for row in pack(rows, limit)
        ]

    def lengths(self, samples: Any) -> Sequence[int] | None:
        """Return the tokens of each row; None where batches are not to be bucketed."""
        rows = samples.rows if isinstance(samples, MaskedRows) else samples
        return [len(row["input_ids"]) for row in rows] if self.bucket else None

    def collate(self) -> "RowCollator":
        """Return the function that pads a batch to its longest row."""
        return RowCollator(self._tokenizer(), prompts_left=self.objective == "causal")

    def _check_conversations(self, table: "Dataset", place: str, *, trains: bool = False) -> None:
        for row, messages in enumerate(table[self.messages_column] if self.messages_column else ()):
            check_messages(messages, place, row, trains=trains)

    def _columns(self, part: Part) -> dict[str, str]:
        if self.messages_column is not None:
            return {"messages_column": self.messages_column}
        if self.prompt_column is not None and self.completion_column is not None:
            completion = {} if part == "predict" else {"completion_column": self.completion_column}
            return {"prompt_column": self.prompt_column, **completion}
        return {"text_column": self.text_column}

    def _judged(self, tokenizer: Any, table: "Dataset") -> list[JudgedText]:
        if self.messages_column is not None:
            if tokenizer.chat_template is None:
                raise ValueError(f"{type(tokenizer).__name__} has no chat template, which messages_column needs")
            return [chat(messages, tokenizer) for messages in table[self.messages_column]]
        if self.prompt_column is not None and self.completion_column is not None:
            pairs = zip(table[self.prompt_column], table[self.completion_column], strict=True)
            return [completed(str(prompt), "" if is_missing(end) else str(end)) for prompt, end in pairs]
        return [plain(str(text)) for text in table[self.text_column]]

    def _to_predict(self, tokenizer: Any, table: "Dataset") -> "Dataset":
        """Return the tokens of rows to predict; they lie on the disk, as the rows do."""

        def tokenise(rows: Mapping[str, Sequence[Any]], numbers: Sequence[int]) -> Mapping[str, Any]:
            return {"input_ids": self._fitting(self._prompts(tokenizer, rows), numbers, tokenizer)}

        datasets = require("datasets", extra="text", needed_by=type(self).__name__)
        columns = list(self._columns("predict").values())
        table = table.select_columns(columns)
        settings = {"template": getattr(tokenizer, "chat_template", None), "columns": columns}
        return table.map(
            tokenise,
            batched=True,
            with_indices=True,
            remove_columns=columns,
            features=datasets.Features({"input_ids": datasets.List(datasets.Value("int64"))}),
            desc="Tokenising",
            new_fingerprint=tokenised_name(
                table, tokenizer, limit=self._limit(tokenizer), objective=self.objective, **settings
            ),
        )

    def _prompts(self, tokenizer: Any, table: Mapping[str, Sequence[Any]]) -> list[list[int]]:
        if self.messages_column is not None:
            texts = [chat_prompt(messages, tokenizer) for messages in table[self.messages_column]]
            return tokenizer(texts, add_special_tokens=False)["input_ids"]
        texts = ["" if is_missing(cell) else str(cell) for cell in table[self.prompt_column or self.text_column]]
        ids = tokenizer(texts)["input_ids"]
        return [prompt_of(row, tokenizer) for row in ids] if self.objective == "causal" else ids

    def _fitting(self, prompts: list[list[int]], numbers: Sequence[int], tokenizer: Any) -> list[list[int]]:
        """Return rows to predict, none of which is longer than the model takes."""
        limit = self._limit(tokenizer)
        for row, ids in zip(numbers, prompts, strict=True):
            if limit is not None and len(ids) > limit:
                raise ValueError(
                    f"{self.place('predict')}, row {row + 1}: {len(ids)} tokens, but the model takes {limit}; cut it"
                )
        return prompts

    def _masked(self, part: Part, tokenizer: Any, table: "Dataset", limit: int) -> MaskedRows:
        if tokenizer.mask_token_id is None:
            raise ValueError(f"{type(tokenizer).__name__} has no mask_token: objective: masked needs a model as BERT")
        if limit <= tokenizer.num_special_tokens_to_add():
            raise ValueError(f"max_length={limit} leaves no room beside the tokens that the tokenizer adds")
        encoded = tokenizer(
            [str(text) for text in table[self.text_column]],
            truncation=True,
            max_length=limit,
            return_overflowing_tokens=True,
            return_special_tokens_mask=True,
        )
        names = [name for name in encoded if name not in ("overflow_to_sample_mapping", "length")]
        rows = [dict(zip(names, row, strict=True)) for row in zip(*(encoded[name] for name in names), strict=True)]
        if len(rows) > len(table):
            rank_zero_info(
                f"{self.place(part)}: texts longer than {limit} tokens are cut into windows: {len(rows)} "
                f"rows of {len(table)} texts"
            )
        return MaskedRows(rows, self.mask_share, tokenizer.mask_token_id, len(tokenizer), each_epoch=part == "train")


class RowCollator:
    """Pads rows to the longest of their batch, on the right.

    Args:
        tokenizer: The tokenizer, for its pad token.
        prompts_left: Whether rows to predict are padded on the left: a text goes on at its end.
    """

    def __init__(self, tokenizer: Any, *, prompts_left: bool) -> None:
        self.prompts_left = prompts_left
        padding = tokenizer.pad_token_id
        self.fill = {"input_ids": tokenizer.eos_token_id if padding is None else padding, "labels": IGNORED}

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return tensors of shape (row, token), and an ``attention_mask`` with 1 at tokens."""
        length = max(len(row["input_ids"]) for row in rows)
        left = self.prompts_left and "labels" not in rows[0]
        batch = {}
        for name in ("attention_mask", *(name for name in rows[0] if name != "attention_mask")):
            found = torch.full((len(rows), length), self.fill.get(name, 0))
            for number, row in enumerate(rows):
                values = torch.tensor(row.get(name) or [1] * len(row["input_ids"]))
                found[number, slice(length - len(values), None) if left else slice(len(values))] = values
            batch[name] = found
        return batch


def _is_empty(cell: Any) -> bool:
    return is_missing(cell) or not (cell if isinstance(cell, list) else str(cell).strip())
