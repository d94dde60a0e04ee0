"""EpochSampler: the order of an epoch's samples, a function of seed, epoch and rank."""

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler


class EpochSampler(DistributedSampler):
    """Sample indices of one rank, in batches of similar length, resumable after any batch.

    The order depends on nothing but the arguments and the epoch, so that a run resumed in mid-epoch meets the batches
    that it would have met. All ranks cut their samples from the same batches of ``batch_size * num_replicas``: two
    ranks see together what one process with the doubled batch sees. It is a ``DistributedSampler``, which Lightning
    leaves as it is and tells the epoch.

    Shuffled, samples are sorted by length within windows of 50 batches, and the batches of a window shuffled again:
    batches stay random, padding becomes rare. Not shuffled, all samples are sorted by length, longest first, so that
    a batch too large for the memory fails at once; without lengths they keep their order.

    Args:
        num_samples: Samples in the data set.
        batch_size: Samples a batch on one rank.
        lengths: Tokens of each sample, shape (sample,); None where all are alike.
        shuffle: Whether to draw a new order each epoch.
        seed: Seed of the order.
        epoch: The epoch to start in; Lightning goes on with ``set_epoch``.
        start_batch: Batches of that epoch which a resumed run has behind it.
        num_replicas: Number of ranks.
        rank: This rank.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        batch_size: int,
        lengths: Sequence[int] | None = None,
        shuffle: bool,
        seed: int = 0,
        epoch: int = 0,
        start_batch: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        samples = cast("Dataset", range(num_samples))
        super().__init__(samples, num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed)
        self.batch_size = batch_size
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.resumed_at = (epoch, start_batch)
        self.shared_epoch = torch.tensor(epoch).share_memory_()
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order comes next; worker processes see it through ``shared_epoch``."""
        super().set_epoch(epoch)
        self.shared_epoch.fill_(epoch)

    def __len__(self) -> int:
        """Return the samples of this rank in a whole epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size * self.num_replicas)  # pyright: ignore[reportArgumentType]
        return whole * self.batch_size + len(self._share(np.arange(rest)))

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of this rank, those of batches already trained left out."""
        epoch, start_batch = self.resumed_at
        mine = [self._share(batch) for batch in self._batches()]
        for batch in mine[start_batch if self.epoch == epoch else 0 :]:
            yield from batch.tolist()

    def rows(self, batch_idx: int) -> list[int]:
        """Return the samples of a batch of the epoch, by its number in the whole epoch."""
        return self._share(self._batches()[batch_idx]).tolist()

    def _batches(self) -> list[np.ndarray]:
        """Cut the epoch's order into batches for all ranks together; only the last may be smaller."""
        size = self.batch_size * self.num_replicas
        num_samples = len(self.dataset)  # pyright: ignore[reportArgumentType]
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(num_samples) if self.shuffle else np.arange(num_samples)
        if self.lengths is None:
            return np.split(order, range(size, num_samples, size))
        if not self.shuffle:
            order = order[np.argsort(-self.lengths, kind="stable")]
            return np.split(order, range(size, num_samples, size))
        whole = num_samples // size * size
        window = 50 * size
        batches = []
        for start in range(0, whole, window):
            part = order[start : min(start + window, whole)]
            part = part[np.argsort(-self.lengths[part], kind="stable")].reshape(-1, size)
            batches.extend(generator.permutation(part))
        return [*batches, *([order[whole:]] if whole < num_samples else [])]

    def _share(self, batch: np.ndarray) -> np.ndarray:
        """Return this rank's part of a batch.

        Every rank must take as many batches as the others, in evaluation too (batch norm's buffers are sent at each).
        So a last batch with fewer samples than ranks is filled up with its own first samples, and in training one
        that ranks cannot share evenly, because gradients are averaged over ranks.
        """
        lacking = -len(batch) % self.num_replicas
        if len(batch) and lacking and (self.shuffle or len(batch) < self.num_replicas):
            batch = np.resize(batch, len(batch) + lacking)
        return batch[self.rank :: self.num_replicas]
