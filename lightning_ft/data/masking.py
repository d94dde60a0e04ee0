"""MaskedRows: texts some of whose tokens are hidden, others in each epoch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lightning_ft.tasks.targets import IGNORED


class MaskedRows:
    """Rows of tokens for a masked language model (Devlin et al. 2019, arXiv:1810.04805, section 3.1).

    Of the tokens chosen eight in ten become the mask, one a random token, and one stays. Which are chosen is a function
    of seed, epoch and row, so that a resumed run hides the same ones.

    Args:
        rows: Rows with ``input_ids``, ``attention_mask`` and ``special_tokens_mask``.
        share: The share of the tokens that is chosen.
        mask: The token that hides.
        num_tokens: Tokens of the vocabulary.
        each_epoch: Whether each epoch hides others; to validate the same ones are hidden whenever it is.

    Attributes:
        epoch: With ``each_epoch`` the epoch, a tensor that worker processes share.
        seed: The seed.
    """

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], share: float, mask: int, num_tokens: int, *, each_epoch: bool
    ) -> None:
        self.rows = rows
        self.share = share
        self.mask = mask
        self.num_tokens = num_tokens
        self.seed = 0
        if each_epoch:
            self.epoch = torch.zeros((), dtype=torch.long)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a row with ``labels``: the token at each place that was chosen, ``IGNORED`` elsewhere."""
        row = dict(self.rows[index])
        ids, special = np.array(row["input_ids"]), np.array(row.pop("special_tokens_mask"), dtype=bool)
        dice = np.random.default_rng([self.seed, int(getattr(self, "epoch", 0)), index])
        places = np.flatnonzero(~special)
        # at least one, else a short text would teach nothing
        num_chosen = min(len(places), max(1, round(self.share * len(places))))
        chosen = dice.permutation(places)[:num_chosen]
        labels = np.full(len(ids), IGNORED)
        labels[chosen] = ids[chosen]
        fate = dice.random(num_chosen)
        ids[chosen[fate < 0.8]] = self.mask
        others = chosen[(fate >= 0.8) & (fate < 0.9)]
        ids[others] = dice.integers(0, self.num_tokens, len(others))
        return row | {"input_ids": ids.tolist(), "labels": labels.tolist()}
