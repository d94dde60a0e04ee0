"""AugmentedViews: a data set whose random augmentation follows from a sample's number and a view."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from lightning_ft_callbacks.state.seeded import seeded


class AugmentedViews:
    """Reads a data set in one of several augmented views, in workers too.

    A data set that augments by its ``epoch``, a tensor, as lightning-ft's do, is given the view for it. Any other one
    draws from the random generators of Python, NumPy and torch, which are seeded for each sample by the fit's seed, the
    view and the sample's number.

    Args:
        dataset: The data set, or a subset of one.

    Attributes:
        view: The view that is read, shared with workers.
        epoch: The epoch that the data set would augment by; None if it knows of none.
    """

    def __init__(self, dataset: Any) -> None:
        self._whole, self._numbers = whole_data(dataset)
        self._seed = fit_seed()
        self.view = torch.zeros((), dtype=torch.int64).share_memory_()
        epoch = getattr(self._whole, "epoch", None)
        self.epoch = epoch if isinstance(epoch, Tensor) else None
        if self.epoch is not None:
            self._whole.epoch = self.view

    def __len__(self) -> int:
        """Return the number of samples of the data set."""
        return len(self._whole if self._numbers is None else self._numbers)

    def __getitems__(self, ids: Sequence[int]) -> list[Any]:
        """Return samples in the view."""
        numbers = ids if self._numbers is None else [self._numbers[number] for number in ids]
        if self.epoch is not None:
            return samples_of(self._whole, numbers)
        return [self._seeded(number) for number in numbers]

    def read_whole(self, numbers: Sequence[int]) -> list[Any]:
        """Return samples of the whole data set, the samples of one view behind those of another.

        Args:
            numbers: The sample's number plus the view times the samples of the whole data set.
        """
        before, length = int(self.view), len(self._whole)
        samples = []
        try:
            for number in numbers:
                view, own = divmod(number, length)
                self.view.fill_(view)
                samples += samples_of(self._whole, [own]) if self.epoch is not None else [self._seeded(own)]
        finally:
            self.view.fill_(before)
        return samples

    def _seeded(self, number: int) -> Any:
        with seeded(self._seed, int(self.view), number):
            (sample,) = samples_of(self._whole, [number])
        return sample


def fit_seed() -> int:
    """Return what ``seed_everything`` was called with; 0 if it was not."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def whole_data(dataset: Any) -> tuple[Any, list[int] | None]:
    """Return the data set that torch's ``Subset`` takes its samples from, and their numbers in it.

    Args:
        dataset: A data set, a subset of one, or a subset of a subset.

    Returns:
        The data set, and the numbers; None for them where the data set is no subset.
    """
    numbers: list[int] | None = None
    while type(dataset) is Subset:  # one of another kind may change its samples
        own = [int(number) for number in dataset.indices]
        numbers = own if numbers is None else [own[number] for number in numbers]
        dataset = dataset.dataset
    return dataset, numbers


def same_data(one: Any, other: Any) -> bool:
    """Tell whether two data sets are the same samples of the same data, by identity or by fingerprint."""
    (whole, numbers), (other_whole, other_numbers) = whole_data(one), whole_data(other)
    name = fingerprint_of(whole)
    same = whole is other_whole or (name is not None and name == fingerprint_of(other_whole))
    return same and numbers == other_numbers


def fingerprint_of(dataset: Any) -> str | None:
    """Return what a data set, as those of ``datasets`` do, says of its rows and transforms; None if nothing."""
    found = getattr(dataset, "fingerprint", None) or getattr(dataset, "_fingerprint", None)
    return None if found is None else str(found)


def samples_of(dataset: Any, numbers: Sequence[int]) -> Any:
    """Return samples of a data set, as a DataLoader reads them."""
    return dataset.__getitems__(numbers) if hasattr(dataset, "__getitems__") else [dataset[i] for i in numbers]
