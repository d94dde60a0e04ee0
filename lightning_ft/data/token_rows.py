"""TokenRow: tokens of one or several texts for a language model, cut into windows and packed."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_ft.tasks.targets import IGNORED


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A row of a batch.

    Attributes:
        input_ids: Tokens, shape (token,).
        labels: The same tokens where they are judged, ``IGNORED`` elsewhere, shape (token,).
        position_ids: The place of each in its own text, from 0, shape (token,).
    """

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]


def windows(ids: Sequence[int], judged: Sequence[bool], limit: int, overlap: int) -> list[TokenRow]:
    """Cut a text into windows, each token judged in one of them.

    Tokens that a window shares with the one before are there for their context alone. The first token of a window has
    none, and is not judged. Windows with nothing to judge are left out.

    Args:
        ids: Its tokens.
        judged: Whether the loss judges each.
        limit: Tokens of a window at most, more than ``overlap`` and at least 2.
        overlap: Tokens that neighbouring windows share, at least 1, so that each token but the first is judged.
    """
    found = []
    start = 0
    while True:
        stop = min(start + limit, len(ids))
        fresh = start + overlap if start else 1
        labels = [
            token if place >= fresh and judged[place] else IGNORED for place, token in enumerate(ids[start:stop], start)
        ]
        if any(label != IGNORED for label in labels):
            found.append(TokenRow(list(ids[start:stop]), labels, list(range(stop - start))))
        if stop == len(ids):
            return found
        start = stop - overlap


def pack(rows: Sequence[TokenRow], limit: int) -> list[TokenRow]:
    """Put short rows into one another's company, none longer than a limit.

    The longest first, each into the fullest row that has room for it (best-fit decreasing; Johnson 1974). A text that
    begins in the middle of a row is told from the one before it by its positions, which begin with 0 again.

    Args:
        rows: The rows, none longer than the limit.
        limit: Tokens of a row at most.
    """
    together: list[list[TokenRow]] = []
    rooms: list[tuple[int, int]] = []  # tokens free, and in which row, sorted
    for row in sorted(rows, key=lambda row: -len(row.input_ids)):
        length = len(row.input_ids)
        place = bisect_left(rooms, (length, -1))
        if place == len(rooms):
            room, number = limit, len(together)
            together.append([])
        else:
            room, number = rooms.pop(place)
        together[number].append(row)
        insort(rooms, (room - length, number))
    return [
        TokenRow(
            [token for row in group for token in row.input_ids],
            [label for row in group for label in row.labels],
            [position for row in group for position in row.position_ids],
        )
        for group in together
    ]
