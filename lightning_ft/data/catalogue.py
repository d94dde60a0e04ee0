"""Catalogue: all items that can be recommended, their names and texts."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from lightning_ft.data.labels import natural_order


@dataclass(frozen=True, slots=True, eq=False)
class Catalogue:
    """Items in the order of the prediction.

    Attributes:
        numbers: The place of each item in that order, by its id.
        names: What a person calls them: their text where it is no other's, with the id behind it where it is; else
            the id.
        texts: What a text encoder reads; empty where an item has no text.
    """

    numbers: Mapping[str, int]
    names: tuple[str, ...]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, ids: Iterable[str], titles: Mapping[str, str], texts: Mapping[str, str]) -> "Catalogue":
        """Return the catalogue of some items and of all that have a title.

        Args:
            ids: Ids of items.
            titles: The short text of each item, by its id.
            texts: The whole text of each item, by its id.
        """
        named = _names(titles)
        known = sorted({*ids, *titles}, key=natural_order)
        return cls(
            {item: number for number, item in enumerate(known)},
            tuple(named.get(item, item) for item in known),
            tuple(texts.get(item, "") for item in known),
        )

    @classmethod
    def of_names(cls, names: Sequence[str], titles: Mapping[str, str], texts: Mapping[str, str]) -> "Catalogue":
        """Return the catalogue of a checkpoint, which knows the names.

        Args:
            names: The names, in their order.
            titles: The short text of each item, by its id.
            texts: The whole text of each item, by its id.
        """
        ids = {name: item for item, name in _names(titles).items()}
        known = [ids.get(name, name) for name in names]
        numbers = {item: number for number, item in enumerate(known)}
        return cls(numbers, tuple(names), tuple(texts.get(item, "") for item in known))

    def encode(self, ids: Sequence[str], place: str) -> np.ndarray:
        """Return the numbers of items, shape (row,).

        Args:
            ids: Their ids.
            place: The file, for messages.

        Raises:
            ValueError: If one is not in the catalogue, with the nearest that is.
        """
        strange = Counter(item for item in ids if item not in self.numbers)
        if strange:
            first = next(iter(strange))
            near = get_close_matches(first, self.numbers, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{place}: {sum(strange.values())} rows have items that training never saw and items_file does not "
                f"list, the first is {first!r}{hint}"
            )
        return np.fromiter((self.numbers[item] for item in ids), dtype=np.int64, count=len(ids))


def _names(titles: Mapping[str, str]) -> dict[str, str]:
    """Return a name for each item that is no other's."""
    count = Counter([*titles, *titles.values()])
    return {
        item: title if title and count[title] == 1 else f"{title} ({item})" if title else item
        for item, title in titles.items()
    }
