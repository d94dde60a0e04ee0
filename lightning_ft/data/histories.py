"""Histories: what users had in order, cut into samples, and the batches of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset


class Histories(Dataset):
    """Stretches of users' histories, with the items that came next.

    Negatives are a function of ``seed``, ``epoch`` and the index, so that a sample is the same in any worker process
    and after a resume.

    Args:
        users: Each row's user, shape (row,); rows of a user stand together, in the order of time.
        items: Each row's item, shape (row,).
        judged: Which rows are to be predicted, shape (row,); None: what comes after each user's last row.
        num_items: Items of the catalogue.
        max_history: Items of a history at most.
        num_negatives: Items drawn from the catalogue for each sample; None for evaluation: all items compete, and each
            sample has one row to predict.

    Attributes:
        num_alone: Rows to predict that are left out, because nothing came before them.
        num_single: Users with a single row.
        seed: Seed of the run.
        epoch: The epoch, a 0-dim tensor; a shared one tells it to worker processes.
    """

    def __init__(
        self,
        users: np.ndarray,
        items: np.ndarray,
        judged: np.ndarray | None,
        *,
        num_items: int,
        max_history: int,
        num_negatives: int | None,
    ) -> None:
        self.items = items
        self.num_items = num_items
        self.num_negatives = num_negatives
        self.has_targets = judged is not None
        begins = np.flatnonzero(np.r_[True, users[1:] != users[:-1]])
        ends = np.r_[begins[1:], len(users)]
        begin = np.repeat(begins, ends - begins)
        self.num_alone = 0 if judged is None else int(judged[begins].sum())
        self.num_single = int((ends - begins == 1).sum())
        if judged is None:
            begin, stop = begins, ends
            first, query = np.maximum(begin, stop - max_history), stop - 1
        elif num_negatives is None:
            stop = np.setdiff1d(np.flatnonzero(judged), begins)
            begin = begin[stop]
            first, query = np.maximum(begin, stop - max_history), stop - 1
        else:
            # from the end of a history, so that what is short is its beginning
            cuts = [
                (begin, max(begin, stop - max_history), stop)
                for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
                for stop in range(end - 1, begin, -max_history)
            ]
            begin, first, stop = np.array(cuts, dtype=np.int64).reshape(-1, 3).T
            query = first
        self.spans = np.stack([begin, first, query, stop], 1)
        self.seed = 0
        self.epoch = torch.tensor(0)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.spans)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a sample.

        ``history``, the items read; ``query``, the first of their positions after which something is predicted;
        ``targets``, the items that came after it and the next ones; ``seen``, the items before ``history``; and
        ``negatives``, items drawn from the catalogue, or None where all compete.
        """
        begin, first, query, stop = self.spans[index]
        negatives = None
        if self.num_negatives is not None:
            generator = np.random.default_rng([self.seed, int(self.epoch), index])
            negatives = generator.integers(self.num_items, size=self.num_negatives)
        return {
            "history": self.items[first:stop],
            "query": query - first,
            "targets": self.items[query + 1 : stop + 1] if self.has_targets else None,
            "seen": self.items[begin:first],
            "negatives": negatives,
        }

    def ranks(self, scores: np.ndarray) -> Tensor:
        """Return the rank of each target among the items that its user had not, by scores that are the same for all.

        It is what ``ranks_of`` gives, without a row of all items for each user.

        Args:
            scores: A score an item, shape (item,).
        """
        ordered = np.sort(scores)
        ranks = []
        for begin, _, query, _ in self.spans.tolist():
            own, had = scores[self.items[query + 1]], scores[self.items[begin : query + 1]]
            left, right = (int(np.searchsorted(ordered, own, side)) for side in ("left", "right"))
            above = len(scores) - right - int((had > own).sum())
            equal = right - left - 1 - int((had == own).sum())
            ranks.append(1 + above + equal / 2)
        return torch.tensor(ranks, dtype=torch.float64)


class HistoryCollator:
    """Makes batches of histories: the items that occur in them, and what happened to these.

    Args:
        inputs: What the backbone reads of the catalogue's items, each of shape (item, token), padded to the longest;
            empty where it reads their numbers alone.
        left: Whether padding stands on the left.
        popularity: Share of each item in what users had in training, shape (item,).
    """

    def __init__(self, inputs: Mapping[str, Tensor], *, left: bool, popularity: np.ndarray) -> None:
        self.inputs = dict(inputs)
        self.left = left
        self.popularity = popularity

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return a batch, as RecommendationHead takes it; ``labels``, shape (query,), where targets are known."""
        everything = rows[0]["negatives"] is None
        if everything:
            items = np.arange(len(self.popularity))
        else:
            items = np.unique(
                np.concatenate([row[part] for row in rows for part in ("history", "targets", "negatives")])
            )
        seen = torch.zeros(len(rows), len(items), dtype=torch.bool)
        for number, row in enumerate(rows):
            seen[number, np.flatnonzero(np.isin(items, row["seen"]))] = True
        histories = [torch.from_numpy(np.searchsorted(items, row["history"])) for row in rows]
        queries = [
            (number, place) for number, row in enumerate(rows) for place in range(row["query"], len(row["history"]))
        ]
        batch = {
            **self._inputs(torch.from_numpy(items)),
            "items": torch.from_numpy(items),
            "history": pad_sequence(histories, batch_first=True, padding_value=-1),
            "queries": torch.tensor(queries),
            "seen": seen,
            "log_q": torch.zeros(len(items)) if everything else self._log_q(items, rows),
        }
        if rows[0]["targets"] is not None:
            batch["labels"] = torch.from_numpy(np.searchsorted(items, np.concatenate([row["targets"] for row in rows])))
        return batch

    def _inputs(self, items: Tensor) -> dict[str, Tensor]:
        """Return what the backbone reads of items, padded to the longest of them."""
        if not self.inputs:
            return {}
        length = int(self.inputs["attention_mask"][items].sum(1).max())
        kept = slice(-length, None) if self.left else slice(length)
        return {name: values[items][:, kept] for name, values in self.inputs.items()}

    def _log_q(self, items: np.ndarray, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """Return the log of the probability that an item is among those of a batch of as many draws."""
        num_drawn = sum(len(row["negatives"]) for row in rows)
        num_had = sum(len(row["history"]) + 1 for row in rows)
        absent = (1 - self.popularity[items]) ** num_had * (1 - 1 / len(self.popularity)) ** num_drawn
        return torch.from_numpy(np.log(np.maximum(1 - absent, 1e-9))).float()
