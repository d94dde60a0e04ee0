"""TokenClassificationData: texts with a tag a word."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_ft.data.base import Part
from lightning_ft.data.conll import SUFFIXES, read_conll
from lightning_ft.data.labels import Labels, is_missing
from lightning_ft.data.tables import check_columns, read_table
from lightning_ft.data.texts import TextData, tokenised_name
from lightning_ft.data.word_windows import joined, word_windows, words_in
from lightning_ft.extras import require
from lightning_ft.resources import existing, resolve
from lightning_ft.tasks.entities import CONTINUES, IGNORED, NONE, are_entities, tag_names

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset


class TokenClassificationData(TextData):
    """Texts whose words have tags: named entities, or one class a word, as parts of speech.

    A file is one of these, or the ``package://name/path`` of one:

    - a word and its tag a line, and a blank line after each text, as CoNLL has it (``.txt``, ``.conll``, ``.iob``,
      ``.iob2``, ``.bio``, ``.bioes``): the first column and the last;
    - JSONL or Parquet with a list of words and a list of tags a row, a folder that the ``datasets`` library saved, or
      the name of a data set on the hub.

    To predict also rows with a text, CSV too. Tags of entities are read in IOB1, IOB2, IOBES and BILOU, and become
    those of IOB2. A text too long for the model is cut into windows that overlap, and each word is judged in the window
    in which more of the text stands around it; nothing is cut off. Batches are ``input_ids``, ``attention_mask`` and
    ``labels``, shape (window, token): the class of each word at its first token, negative numbers elsewhere. To predict
    there is also ``characters``, shape (window, token, 2): the place in the text of the word that begins there.

    Args:
        train_file: Texts to train on.
        val_file: Texts to validate on; None to hold some of the training file out.
        test_file: Texts to test on; None to hold some of the training file out.
        predict_file: Texts to predict; they need no tags.
        tokenizer: A fast tokenizer, or the name or folder of one; None for that of the model.
        token_column: Column of the lists of words.
        tag_column: Column of the lists of tags.
        text_column: Column of texts to predict, where a table has no words.
        labels: Kinds of entities, or tags, in the order of the prediction; None: those of the training data, sorted.
        task: ``"entities"`` or ``"tags"``; None: as the tags look.
        max_length: Tokens of a window; None for what the model takes.
        overlap: Tokens that neighbouring windows share; None for a quarter of a window.
        val_size: Texts held out for validation: a share below 1, or a number of texts.
        test_size: The same for the test.
        split_seed: Seed of the choice of held-out texts.
        batch_size: Texts a step on one device; windows in training.
        bucket: Whether batches hold texts of similar length.
        num_workers: Processes that load batches.

    Raises:
        ModuleNotFoundError: If datasets or transformers are not installed.
        FileNotFoundError: If a file is not there.
        ValueError: If a word has no tag, a file has no words or lacks a column, the tags are none of entities, a tag
            was never seen in training, or the tokenizer does not tell where its tokens stand.
    """

    def __init__(
        self,
        train_file: str | None = None,
        val_file: str | None = None,
        test_file: str | None = None,
        *,
        predict_file: str | None = None,
        tokenizer: Any = None,
        token_column: str = "tokens",
        tag_column: str = "tags",
        text_column: str = "text",
        labels: list[str] | None = None,
        task: Literal["entities", "tags"] | None = None,
        max_length: int | None = None,
        overlap: int | None = None,
        val_size: float = 0.1,
        test_size: float = 0.1,
        split_seed: int = 0,
        batch_size: int = 32,
        bucket: bool = True,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            {"train": train_file, "val": val_file, "test": test_file, "predict": predict_file},
            label_column=tag_column,
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
        if task not in (None, "entities", "tags"):
            raise ValueError(f"expected task to be entities or tags, but got {task!r}")
        if overlap is not None and overlap < 1:
            raise ValueError(f"expected overlap to be at least 1 token, but got {overlap}")
        self.token_column = token_column
        self.text_column = text_column
        self.overlap = overlap
        self.bucket = bucket

    @cached_property
    def labels(self) -> Labels:
        """The tags: those given, else those of the training data.

        Raises:
            ValueError: If the task is entities, and they are none.
        """
        if self.label_names is None:
            values = self.tables["train"][self.label_column]
            seen = {tag for value in values for tag in value}
            task = self.task or ("entities" if are_entities(seen) else "tags")
            return Labels.of(values, task, self.place("train"))
        names = self.label_names
        if self.task == "tags":
            return Labels("tags", names)
        # a checkpoint's are tags already, a person's are kinds
        return Labels("entities", names if names[0] == NONE else tag_names(names))

    def read(self, part: Part) -> "Dataset":
        """Return a part's texts: words and tags, or what there is to predict."""
        file = self.files[part]
        if file is None:
            raise ValueError(f"{type(self).__name__} needs {part}_file")
        datasets = require("datasets", extra="text", needed_by=type(self).__name__)
        place, path = self.place(part), Path(resolve(file)).expanduser()
        columns = {"token_column": self.token_column, "tag_column": self.label_column}
        if path.suffix.lower() in SUFFIXES and not path.is_dir():
            existing(file, f"{part}_file")
            words, tags = read_conll(path, f"{part}_file", tagged=part != "predict")
            table = {self.token_column: words} | ({} if part == "predict" else {self.label_column: tags})
            return datasets.Dataset.from_dict(table)
        table = _with_tag_names(read_table(file, f"{part}_file", type(self).__name__))
        if part == "predict":
            if self.token_column not in table.column_names:
                check_columns(table, {"text_column": self.text_column}, place)
            return table
        check_columns(table, columns, place)
        for row, (words, tags) in enumerate(zip(table[self.token_column], table[self.label_column], strict=True)):
            if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags):
                raise ValueError(
                    f"{place}, row {row + 1}: expected lists of as many words as tags, but got {words!r} and {tags!r}"
                )
        return table.filter(lambda row: bool(row[self.token_column]), desc="Texts with words")

    def samples(self, part: Part, table: "Dataset", targets: Sequence[Any] | None) -> "Dataset":
        """Return the tokenised texts, a row a text, and in training a row a window.

        Raises:
            ValueError: If the tokenizer does not tell where its tokens stand, or windows would not advance.
        """
        tokenizer = self._tokenizer()
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(self).__name__} needs a fast tokenizer, which tells where tokens stand; "
                f"{type(tokenizer).__name__} is none"
            )
        limit = self._limit(tokenizer)
        room = None if limit is None else limit - tokenizer.num_special_tokens_to_add()
        overlap = self.overlap or max(1, (room or 0) // 4)
        if room is not None and overlap >= room:
            raise ValueError(f"overlap={overlap} leaves nothing new of windows of {room} tokens")
        if part == "predict":
            return self._to_predict(table, tokenizer, limit, overlap)
        texts, places = zip(*(self._text(row) for row in table.to_list()), strict=True)
        windows = word_windows(texts, places, targets or [], tokenizer, limit, overlap)
        self._tell(part, [len(text.labels) for text in windows], sum(text.num_lost for text in windows))
        rows = []
        for text in windows:
            row: dict[str, list] = {**text.inputs, "labels": text.labels}
            apart = range(len(text.labels)) if part == "train" else [slice(None)]
            rows += [
                {name: value[n : n + 1] if isinstance(n, int) else value[n] for name, value in row.items()}
                for n in apart
            ]
        datasets = require("datasets", extra="text", needed_by=type(self).__name__)
        return datasets.Dataset.from_list(rows)

    def _to_predict(self, table: "Dataset", tokenizer: Any, limit: int | None, overlap: int) -> "Dataset":
        """Return the tokenised texts to predict, a row a text; they lie on the disk, as the texts do."""
        names = [name for name in (self.token_column, self.text_column) if name in table.column_names]

        def tokenise(rows: Mapping[str, Sequence[Any]]) -> Mapping[str, Any]:
            cells = [dict(zip(names, row, strict=True)) for row in zip(*(rows[name] for name in names), strict=True)]
            texts, places = zip(*map(self._text, cells), strict=True)
            # tokens of words that nobody has tagged count as words too
            found = word_windows(texts, places, [[0] * len(words) for words in places], tokenizer, limit, overlap)
            return {
                **{name: [text.inputs[name] for text in found] for name in found[0].inputs},
                "labels": [text.labels for text in found],
                "characters": [text.characters for text in found],
                "num_lost": [text.num_lost for text in found],
            }

        table = table.select_columns(names)
        tokens = table.map(
            tokenise,
            batched=True,
            remove_columns=names,
            desc="Tokenising",
            new_fingerprint=tokenised_name(table, tokenizer, limit=limit, overlap=overlap, columns=names),
        )
        self._tell("predict", [len(windows) for windows in tokens["labels"]], sum(tokens["num_lost"]))
        return tokens.remove_columns("num_lost")

    def lengths(self, samples: "Dataset") -> Sequence[int] | None:
        """Return the tokens of each text's longest window; None where batches are not to be bucketed."""
        return [max(map(len, windows)) for windows in samples["input_ids"]] if self.bucket else None

    def collate(self) -> "WindowCollator":
        """Return the function that makes a batch of texts' windows."""
        return WindowCollator(self._tokenizer())

    def predict_rows(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Return the texts ``start`` to ``stop`` to predict; words as the text whose characters predictions count."""
        rows = super().predict_rows(start, stop)
        if not self._has_words:
            return rows
        return [
            {**{name: cell for name, cell in row.items() if name != self.token_column}, "text": self._text(row)[0]}
            for row in rows
        ]

    def predict_columns(self) -> list[str]:
        """Return the names of what ``predict_rows`` returns."""
        columns = super().predict_columns()
        return (
            [*(name for name in columns if name not in (self.token_column, "text")), "text"]
            if self._has_words
            else columns
        )

    def predict_schema(self) -> "pyarrow.Schema | None":
        """Return the types of these columns, where the file to predict has types and is of texts."""
        return None if self._has_words else super().predict_schema()

    @property
    def _has_words(self) -> bool:
        return self.token_column in super().predict_columns()

    def _text(self, row: Mapping[str, Any]) -> tuple[str, list[tuple[int, int]]]:
        if self.token_column in row:
            return joined([str(word) for word in row[self.token_column]])
        cell = row[self.text_column]
        text = "" if is_missing(cell) else str(cell)
        return text, words_in(text)

    def _tell(self, part: Part, num_windows: Sequence[int], num_lost: int) -> None:
        if num_long := sum(number > 1 for number in num_windows):
            rank_zero_info(
                f"{self.place(part)}: {num_long} of {len(num_windows)} texts are too long for the model; cut into "
                f"{sum(number for number in num_windows if number > 1)} windows that overlap"
            )
        if num_lost:
            rank_zero_info(f"{self.place(part)}: the tokenizer makes no token of {num_lost} words; they have no tag")


class WindowCollator:
    """Pads windows to the longest of their batch, with transformers' collator.

    Args:
        tokenizer: The tokenizer whose padding it is.
    """

    def __init__(self, tokenizer: Any) -> None:
        transformers = require("transformers", extra="text", needed_by="TokenClassificationData")
        self.pad = transformers.DataCollatorForTokenClassification(tokenizer, label_pad_token_id=IGNORED)
        self.left = tokenizer.padding_side == "left"

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return a batch of all windows of some texts, those of a text behind one another."""
        names = [name for name in rows[0] if name != "characters"]
        windows = [
            {name: row[name][number] for name in names} for row in rows for number in range(len(row["input_ids"]))
        ]
        batch = dict(self.pad(windows))
        goes_on = torch.tensor([number > 0 for row in rows for number in range(len(row["input_ids"]))])
        batch["labels"][goes_on, 0] = CONTINUES
        if "characters" in rows[0]:
            places = [torch.tensor(window) for row in rows for window in row["characters"]]
            side = "left" if self.left else "right"
            batch["characters"] = pad_sequence(places, batch_first=True, padding_side=side)
        return batch


def _with_tag_names(table: "Dataset") -> "Dataset":
    """Return a table whose lists of numbered classes hold names instead."""
    for column, feature in table.features.items():
        names = getattr(getattr(feature, "feature", None), "names", None)
        if names:
            named = [[names[number] for number in numbers] for numbers in table[column]]
            table = table.remove_columns(column).add_column(column, named)
    return table
