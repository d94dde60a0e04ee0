"""InteractionsData: who had what, and when."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_ft.data.base import Part
from lightning_ft.data.catalogue import Catalogue
from lightning_ft.data.histories import Histories, HistoryCollator
from lightning_ft.data.interaction_table import interactions, read_items, rows_of
from lightning_ft.data.labels import Labels, natural_order
from lightning_ft.data.texts import TextData
from lightning_ft.data.time_split import held_out, merged
from lightning_ft.tasks.ranking import SCORES, gains_of

if TYPE_CHECKING:
    from datasets import Dataset

LENGTH = 10  # of the lists by which popularity is judged
BEFORE: dict[Part, tuple[Part, ...]] = {"train": (), "val": ("train",), "test": ("train", "val")}
NAMES = ("input_ids", "attention_mask")  # one text has no second that token types would tell apart


class InteractionsData(TextData):
    """Users' histories of items, to recommend what comes next.

    A file has a row for each time that a user had an item: CSV, TSV, JSONL, Parquet, a folder that the ``datasets``
    library saved, RecBole's ``.inter``, or ``package://name/path``. Rows are put in the order of time, and of equal
    times in that of the file; of a user's rows with one item the earliest counts, those that lack a user, item or
    time are dropped, each with a notice. Nothing that is judged, or comes after it, is seen in training or in the
    history from which it is predicted.

    A batch has the texts of its items in ``input_ids`` and ``attention_mask``, shape (item, token), where the backbone
    reads texts; ``items``, ``history``, ``queries``, ``seen`` and ``log_q`` as RecommendationHead takes them; and
    ``labels``, the index of the item that came next, shape (query,). In training its items are those that its users
    had and those drawn beside them; in evaluation it is the whole catalogue.

    Args:
        train_file: Who had what.
        val_file: Interactions to validate on, which come after those of training; None to hold the last out.
        test_file: Interactions to test on; None to hold the last out.
        predict_file: Histories of users to recommend for; None: all users of the training file, with all they had.
        items_file: Texts of items, a row an item; they can be recommended even if nobody had them yet.
        tokenizer: A tokenizer, or the name or folder of one; None for that of the model.
        user_column: Column of the users.
        item_column: Column of the items, in all files.
        time_column: Column of times: numbers, or dates as ISO 8601 has them.
        rating_column: Column of the ratings that ``min_rating`` is about.
        text_columns: Columns of ``items_file`` that are an item's text, joined by commas; the first is its name.
        min_rating: Ratings below it are left out; None to use all rows.
        labels: Names of the items in the order of the prediction; None: those of the files.
        max_history: Items of a user that are read at most, the last ones.
        num_negatives: Items drawn from the catalogue for each history of a batch, beside those that its users had.
        max_length: Tokens after which a text is cut; None for what the model takes.
        val_size: What is held out for validation: a number of interactions of each user, their last ones before the
            test's, or a share of all interactions below 1, the latest. Users with too few only train.
        test_size: The same for the test.
        batch_size: Histories a step on one device.
        eval_batch_size: Histories a step in evaluation, each of which encodes the whole catalogue.
        num_workers: Processes that load batches.

    Raises:
        ModuleNotFoundError: If datasets is not installed.
        FileNotFoundError: If a file is not there.
        ValueError: If a table is empty, lacks a column, has a time that is none, has items that training never saw, or
            nobody has two interactions to learn from.
    """

    labelled = False

    def __init__(
        self,
        train_file: str | None = None,
        val_file: str | None = None,
        test_file: str | None = None,
        *,
        predict_file: str | None = None,
        items_file: str | None = None,
        tokenizer: Any = None,
        user_column: str = "user_id",
        item_column: str = "item_id",
        time_column: str = "timestamp",
        rating_column: str = "rating",
        text_columns: Sequence[str] = ("title",),
        min_rating: float | None = None,
        labels: list[str] | None = None,
        max_history: int = 50,
        num_negatives: int = 0,
        max_length: int | None = None,
        val_size: float = 1,
        test_size: float = 1,
        batch_size: int = 32,
        eval_batch_size: int = 512,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            {"train": train_file, "val": val_file, "test": test_file, "predict": predict_file},
            label_column=item_column,
            labels=labels,
            task="recommendation",
            val_size=val_size,
            test_size=test_size,
            split_seed=0,
            batch_size=batch_size,
            num_workers=num_workers,
            tokenizer=tokenizer,
            max_length=max_length,
        )
        for name, value, least in (
            ("max_history", max_history, 1),
            ("num_negatives", num_negatives, 0),
            ("eval_batch_size", eval_batch_size, 1),
        ):
            if value < least:
                raise ValueError(f"expected {name} to be at least {least}, but got {value}")
        if not text_columns:
            raise ValueError("expected text_columns to name at least one column")
        self.items_file = items_file
        self.columns = {"user_column": user_column, "item_column": item_column, "time_column": time_column}
        self.rating_column = rating_column
        self.text_columns = tuple(text_columns)
        self.min_rating = min_rating
        self.max_history = max_history
        self.num_negatives = num_negatives
        self.eval_batch_size = eval_batch_size
        self._collator: HistoryCollator | None = None

    @cached_property
    def catalogue(self) -> Catalogue:
        """All items: those of the training file and of items_file, or those of a checkpoint, with their texts."""
        titles, texts = {}, {}
        if self.items_file is not None:
            titles, texts = read_items(self.items_file, self.columns["item_column"], self.text_columns)
        if self.label_names is not None:
            found = Catalogue.of_names(self.label_names, titles, texts)
        else:
            found = Catalogue.of(self._all["item"][:], titles, texts)
        without = [name for name, text in zip(found.names, found.texts, strict=True) if not text]
        if self.items_file is not None and without:
            some = ", ".join(without[:5]) + (", ..." if len(without) > 5 else "")
            rank_zero_info(
                f"items_file {self.items_file!r}: {len(without)} of {len(found.names)} items have no text ({some}); "
                "a model tells them apart by who had them alone"
            )
        return found

    @cached_property
    def labels(self) -> Labels:
        """The names of all items."""
        return Labels("recommendation", self.catalogue.names)

    @cached_property
    def tables(self) -> dict[Part, "Dataset"]:
        """The rows of training, validation and test, held-out ones taken from the training file by time.

        Raises:
            ValueError: If nothing is left to train on.
        """
        sizes = {part: self.split_sizes[part] for part in ("val", "test") if self.files[part] is None}
        rows = held_out(self._all["user"][:], sizes, self.place("train"))
        return {cast("Part", part): rows_of(self._all, chosen) for part, chosen in rows.items()}

    @cached_property
    def _all(self) -> "Dataset":
        """The rows of the training file, read once."""
        return self.read("train")

    def read(self, part: Part) -> "Dataset":
        """Return the rows of a part's file in the order of time: ``user``, ``item`` and ``time``."""
        source = "train" if part == "predict" and self.files[part] is None else part
        file = self.files[source]
        if file is None:
            raise ValueError(f"{type(self).__name__} needs {part}_file")
        # ratings that nobody has given yet leave no history out
        min_rating = None if source == "predict" else self.min_rating
        return interactions(file, f"{source}_file", self.columns, self.rating_column, min_rating)

    def samples(self, part: Part, table: "Dataset", targets: Sequence[Any] | None) -> Histories:
        """Return the histories of a part.

        Args:
            part: The part.
            table: Rows in the order of time, those before the part's own too.
            targets: Whether each row is of the part, and to be predicted; None to predict what comes after all.
        """
        names = {user: number for number, user in enumerate(_users(table))}
        users = np.array([names[user] for user in table["user"][:]], dtype=np.int64)
        order = np.argsort(users, kind="stable")
        items = self.catalogue.encode(table["item"][:], self.place(part))
        return Histories(
            users[order],
            items[order],
            None if targets is None else np.asarray(targets)[order],
            num_items=len(self.catalogue.names),
            max_history=self.max_history,
            num_negatives=self.num_negatives if part == "train" else None,
        )

    def batch_size_of(self, part: Part) -> int:
        """Return the histories a step of a part."""
        return self.batch_size if part == "train" else self.eval_batch_size

    def setup(self, stage: str) -> None:
        """Read and check the parts of a stage, and the texts of the catalogue for this backbone."""
        self._collator = None
        super().setup(stage)

    def collate(self) -> HistoryCollator:
        """Return the function that makes a batch of histories.

        Raises:
            ValueError: If the backbone reads texts, and there are none.
        """
        if self._collator is None:
            reads_texts = (self.tokenizer or getattr(self._backbone(), "tokenizer", None)) is not None
            inputs, left = self._texts() if reads_texts else ({}, False)
            # in evaluation nothing is drawn, and the training file may be gone
            popularity = self.popularity if "train" in self._samples else np.zeros(len(self.catalogue.names))
            self._collator = HistoryCollator(inputs, left=left, popularity=popularity)
        return self._collator

    def _texts(self) -> tuple[dict[str, Tensor], bool]:
        """Return the tokens of all items, each of shape (item, token), and whether padding stands on the left."""
        if self.items_file is None:
            raise ValueError(
                f"{type(self).__name__} needs items_file with the texts that {type(self._backbone()).__name__} reads; "
                "without texts the backbone ItemEmbedding learns a vector an item"
            )
        tokenizer, texts = self._tokenizer(), self.catalogue.texts
        limit = self._limit(tokenizer)
        encoded = tokenizer([*texts], truncation=limit is not None, max_length=limit)
        if num_cut := sum(bool(encoding.overflowing) for encoding in encoded.encodings or ()):
            rank_zero_info(
                f"items_file {self.items_file!r}: {num_cut} of {len(texts)} texts are longer than {limit} tokens; cut"
            )
        padded = tokenizer.pad({name: encoded[name] for name in NAMES}, return_tensors="pt")
        return dict(padded), tokenizer.padding_side == "left"

    @cached_property
    def popularity(self) -> np.ndarray:
        """The share of each item in the rows of training, shape (item,)."""
        number = len(self.catalogue.names)
        items = self.catalogue.encode(self.tables["train"]["item"][:], self.place("train"))
        return np.bincount(items, minlength=number) / len(items)

    def predict_rows(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Return the users ``start`` to ``stop`` to recommend for."""
        column = self.columns["user_column"] or "user"
        return [{column: user} for user in _users(self._to_predict)[start:stop]]

    def predict_columns(self) -> list[str]:
        """Return the name of the column of users."""
        return [self.columns["user_column"] or "user"]

    def predict_schema(self) -> None:
        """Return nothing: the rows are users, whose names are texts."""

    def _prepared(self, part: Part) -> Histories | list:
        if part == "predict":
            return self.samples(part, self._to_predict, None)
        if not len(own := self.table(part)):
            if part == "test":
                raise ValueError(f"no rows to test: give test_file, or a test_size above {self.split_sizes['test']}")
            return []  # nothing was to be held out
        earlier = [self.table(other) for other in BEFORE[part] if self.files["train"] is not None]
        table, judged = merged([*earlier, own], self.place(part))
        found = self.samples(part, table, judged.tolist())
        self._tell(part, found)
        return found

    @cached_property
    def _to_predict(self) -> "Dataset":
        return self.read("predict")

    def _tell(self, part: Part, found: Histories) -> None:
        """Say what is left out, and how well popularity alone does; refuse what cannot be learned.

        Raises:
            ValueError: If no row has one of its user's before it.
        """
        place = self.place(part)
        if not len(found):
            raise ValueError(f"{place}: no user has an interaction before the one that is to be predicted")
        if part == "train":
            if found.num_single:
                rank_zero_info(
                    f"{place}: {found.num_single} users have one interaction to train on; it counts for how popular "
                    "items are, and nothing is predicted from it"
                )
            return
        if found.num_alone:
            rank_zero_info(f"{place}: {found.num_alone} rows come after no other of their user; left out of {part}")
        if self.files["train"] is None:
            return
        ranks = found.ranks(self.popularity)
        scores = ", ".join(
            f"{score}{'' if k is None else f'@{k}'} {gains_of(ranks, score, k).mean():.4f}" for score, k in SCORES
        )
        rank_zero_info(f"{part}, if the most popular items were recommended to everyone: {scores}")


def _users(table: "Dataset") -> list[str]:
    """Return the users of a table, user 10 after user 9."""
    return sorted({*table["user"][:]}, key=natural_order)
