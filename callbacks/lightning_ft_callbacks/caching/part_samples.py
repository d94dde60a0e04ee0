"""PartSamples: a loader's samples, and the numbers under which they are kept."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_ft_callbacks.caching.augmented_views import same_data, whole_data
from lightning_ft_callbacks.caching.identified_batches import IdentifiedBatches
from lightning_ft_callbacks.caching.same_samples import check_same

FEW = 16  # of a batch that are read twice: what changes one sample in ten goes unseen in 4 % of looks (0.82 ** 16)


class PartSamples:
    """The samples of one loader, each of them once in every view.

    Args:
        loader: The loader.
        in_whole: Whether samples of a subset have their numbers in the whole data set, so that folds of it find what
            others have kept.

    Attributes:
        loader: The loader that gives them now.
        whole: The data set that numbers are of.
    """

    def __init__(self, loader: IdentifiedBatches, *, in_whole: bool) -> None:
        self.loader = loader
        dataset: Any = loader.loader.dataset
        self.whole, subset = whole_data(dataset) if in_whole else (dataset, None)
        self._subset = None if subset is None else torch.tensor(subset, dtype=torch.int64)
        self._lengths = len(dataset), len(self.whole)

    def __len__(self) -> int:
        """Return how many there are, in all views."""
        return self._lengths[0] * self.loader.views

    @property
    def num_numbers(self) -> int:
        """How many numbers there are, those of the whole data set in all views."""
        return self._lengths[1] * self.loader.views

    @property
    def kind(self) -> str:
        """The data set's class, for messages."""
        return type(self.loader.loader.dataset).__name__

    def is_of(self, loader: IdentifiedBatches) -> bool:
        """Tell whether a loader gives these samples by the same numbers: data may grow, and be made anew."""
        dataset: Any = loader.loader.dataset
        if (len(dataset), len(self.whole)) != self._lengths:
            return False
        return dataset is self.loader.loader.dataset or same_data(dataset, self.loader.loader.dataset)

    def follow(self, loader: IdentifiedBatches) -> None:
        """Go on with another loader of the same samples."""
        self.loader = loader

    def numbers(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return the numbers under which samples are kept in this epoch."""
        first = self.loader.view * self._lengths[1]
        numbers = ids if self._subset is None else self._subset[list(ids)].tolist()
        return tuple(first + number for number in numbers)

    @property
    def all_numbers(self) -> Tensor | None:
        """The numbers of all samples in all views; None for every number."""
        if self._subset is None:
            return None
        return torch.cat([self._subset + view * self._lengths[1] for view in range(self.loader.views)])

    def check(self, ids: Sequence[int]) -> None:
        """Make sure that the data set gives the same for the same number.

        Raises:
            CannotCacheError: If it does not, with what to change.
        """
        check_same(self.loader, list(ids)[:FEW])
