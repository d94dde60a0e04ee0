"""Rows held out for validation and test, the shares of the classes kept."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

Name = TypeVar("Name", bound=str)


def stratified_split(
    num_rows: int, classes: Sequence[str] | None, sizes: Mapping[Name, float], seed: int, where: str
) -> dict[Name | str, np.ndarray]:
    """Choose the rows of each held-out part; the others train.

    Rows are shuffled within their class and the classes dealt out evenly, so that each part has nearly the same share
    of every class, as scikit-learn's stratified splits have.

    Args:
        num_rows: Rows in all.
        classes: The class of each row, shape (row,); None to split without regard to it.
        sizes: Size of each held-out part: a share below 1, or a number of rows.
        seed: Seed of the choice.
        where: The file, for messages.

    Returns:
        Row numbers of each part and of ``"train"``, rising.

    Raises:
        ValueError: If the parts ask for more rows than there are.
    """
    counts = _counts(num_rows, sizes, where)
    generator = np.random.default_rng(seed)
    order = generator.permutation(num_rows)
    if classes is not None:
        order = _dealt(order, np.unique(np.asarray(classes), return_inverse=True)[1])
    parts: dict[Name | str, np.ndarray] = {}
    start = 0
    for name, count in counts.items():
        parts[name] = np.sort(order[start : start + count])
        start += count
    parts["train"] = np.sort(order[start:])
    return parts


def grouped_split(
    groups: Sequence[str], sizes: Mapping[Name, float], seed: int, where: str
) -> dict[Name | str, np.ndarray]:
    """Choose whole groups of rows for each held-out part; the others train.

    A part gets groups, in random order, for as long as that brings its size nearer to the one asked for, and one at
    least.

    Args:
        groups: The group of each row, shape (row,).
        sizes: Size of each held-out part: a share below 1, or a number of rows.
        seed: Seed of the choice.
        where: The file, for messages.

    Returns:
        Row numbers of each part and of ``"train"``, rising.

    Raises:
        ValueError: If there are too few rows or groups.
    """
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    counts = _counts(len(codes), sizes, where)
    members = np.bincount(codes)
    left = np.random.default_rng(seed).permutation(len(names)).tolist()
    chosen: dict[Name | str, list[int]] = {}
    for name, count in counts.items():
        chosen[name] = []
        held = 0
        while left and held < count and (not held or abs(held + members[left[0]] - count) < count - held):
            chosen[name].append(left.pop(0))
            held += members[chosen[name][-1]]
    if not left:
        raise ValueError(
            f"{where}: {len(names)} groups, which stay whole, are too few to hold out "
            + " and ".join(f"{count} rows for {name}" for name, count in counts.items())
        )
    return {name: np.flatnonzero(np.isin(codes, one)) for name, one in {**chosen, "train": left}.items()}


def _counts(num_rows: int, sizes: Mapping[Name, float], where: str) -> dict[Name, int]:
    """Return how many rows each held-out part gets."""
    counts = {name: round(size * num_rows) if size < 1 else int(size) for name, size in sizes.items()}
    if sum(counts.values()) >= num_rows:
        raise ValueError(
            f"{where}: {num_rows} rows are too few to hold out "
            + " and ".join(f"{count} for {name}" for name, count in counts.items())
        )
    return counts


def _dealt(order: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Reorder rows so that every stretch of them has nearly the classes' shares of the whole."""
    position = np.empty(len(order))
    shuffled = codes[order]
    for code in range(codes.max() + 1):
        members = np.flatnonzero(shuffled == code)
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(position, kind="stable")]
