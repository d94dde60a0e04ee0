"""PredictBatches: the batches that one rank predicts, in the order of the rows."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from torch.utils.data import DistributedSampler

if TYPE_CHECKING:
    from torch.utils.data import Dataset


class PredictBatches(DistributedSampler):
    """Cuts rows into batches in their order, and gives each rank a stretch of those that are still to be predicted.

    A batch holds the same rows whatever was predicted before and on however many ranks, so that a prediction is the
    same too. All ranks take as many steps as the others: one with fewer batches repeats its last, whose outcome nobody
    needs. It is a ``DistributedSampler``, which Lightning leaves as it is.

    Args:
        num_rows: Rows to predict.
        batch_size: Rows a batch; only the last may be smaller.
        done: Rows that are predicted already, stretches of whole batches.
        num_replicas: Number of ranks.
        rank: This rank.
    """

    def __init__(
        self, num_rows: int, *, batch_size: int, done: Sequence[range] = (), num_replicas: int = 1, rank: int = 0
    ) -> None:
        super().__init__(cast("Dataset", range(num_rows)), num_replicas=num_replicas, rank=rank, shuffle=False)
        self.num_rows = num_rows
        self.batch_size = batch_size
        lacking = np.ones(-(-num_rows // batch_size), bool)
        for rows in done:
            lacking[rows.start // batch_size : -(-rows.stop // batch_size)] = False
        batches = np.flatnonzero(lacking)
        # the later ranks take what is over, so that a last batch which is smaller has none behind it
        ends = len(batches) * np.arange(num_replicas + 1) // num_replicas
        self.mine = batches[ends[rank] : ends[rank + 1]]
        # one where none is left, because Lightning passes over a loader without batches, and over what comes at its end
        self.num_steps = max(1, int(np.diff(ends).max()))

    def rows(self, step: int) -> range:
        """Return the rows of this rank's batch of a step; none where it repeats another."""
        return self._rows(int(self.mine[step])) if step < len(self.mine) else range(0)

    def __len__(self) -> int:
        """Return the rows that this rank passes, repeated ones too."""
        last = int(self.mine[-1]) if len(self.mine) else 0
        return (self.num_steps - 1) * self.batch_size + len(self._rows(last))

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of this rank's rows."""
        for step in range(self.num_steps):
            own = int(self.mine[min(step, len(self.mine) - 1)]) if len(self.mine) else 0
            yield from self._rows(own)

    def _rows(self, batch: int) -> range:
        return range(batch * self.batch_size, min((batch + 1) * self.batch_size, self.num_rows))
