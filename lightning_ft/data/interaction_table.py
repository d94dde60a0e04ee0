"""Tables of interactions in the order of time, and of items."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from lightning_ft.data.labels import is_missing
from lightning_ft.data.tables import check_columns, read_table
from lightning_ft.extras import require

if TYPE_CHECKING:
    from datasets import Dataset

NEEDED_BY = "InteractionsData"


def interactions(
    file: str, what: str, columns: Mapping[str, str | None], rating_column: str, min_rating: float | None
) -> "Dataset":
    """Return ``user``, ``item`` and ``time`` of each row, in the order of time.

    Rows that lack one of them are left out, and of rows of one user with one item all but the earliest, with a notice.

    Args:
        file: The file, as InteractionsData takes it.
        what: What it is for, as messages say it: ``"train_file"``.
        columns: ``user_column``, ``item_column`` and ``time_column``; without the last the file's order counts.
        rating_column: Column of the ratings.
        min_rating: Ratings below it are left out; None to use all rows.

    Raises:
        ValueError: If a column is missing, a time or rating is none, or no row is left.
    """
    place = f"{what} {file!r}"
    table = read_table(file, what, NEEDED_BY)
    check_columns(table, columns, place)
    if min_rating is not None:
        check_columns(table, {"rating_column": rating_column}, place)
        ratings = [_number(value, row, place) for row, value in enumerate(table[rating_column][:])]
        table = rows_of(table, [row for row, rating in enumerate(ratings) if rating >= min_rating])
        if not len(table):
            raise ValueError(f"{place}: no rating is at least min_rating={min_rating}; the highest is {max(ratings)}")
    cells = [table[column][:] for column in columns.values() if column is not None]
    whole = [row for row, values in enumerate(zip(*cells, strict=True)) if not any(map(is_missing, values))]
    if len(whole) < len(table):
        needed = ", ".join(column for column in columns.values() if column is not None)
        if not whole:
            raise ValueError(f"{place}: no row has all of {needed}")
        rank_zero_info(f"{place}: {len(table) - len(whole)} of {len(table)} rows lack one of {needed}; dropped")
    users, items = ([str(cells[column][row]) for row in whole] for column in (0, 1))
    times = np.arange(len(whole), dtype=np.float64)
    if len(cells) == 3:
        times = np.array([_time(cells[2][row], row, place) for row in whole])
        order = np.argsort(times, kind="stable")
        if num_late := _num_out_of_order(users, times):
            rank_zero_info(f"{place}: rows of {num_late} of {len({*users})} users are not in the order of time; sorted")
        users, items, times = [users[row] for row in order], [items[row] for row in order], times[order]
    first = first_rows(users, items)
    if len(first) < len(users):
        rank_zero_info(f"{place}: {len(users) - len(first)} rows repeat a user and an item; the earliest counts")
    datasets = require("datasets", extra="text", needed_by=NEEDED_BY)
    columns_kept = {"user": [users[row] for row in first], "item": [items[row] for row in first], "time": times[first]}
    return datasets.Dataset.from_dict(columns_kept)


def read_items(file: str, item_column: str, text_columns: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the title, and the whole text, of each item of a file, by its id; items without a text are left out.

    Args:
        file: The file.
        item_column: Column of the ids.
        text_columns: Columns of the text, the title first.

    Raises:
        ValueError: If a column is missing, or an item stands there twice.
    """
    place = f"items_file {file!r}"
    table = read_table(file, "items_file", NEEDED_BY)
    check_columns(table, {"item_column": item_column}, place)
    for column in text_columns:
        check_columns(table, {"text_columns": column}, place)
    ids = [str(item) for item in table[item_column][:]]
    if len({*ids}) < len(ids):
        twice = next(item for row, item in enumerate(ids) if item in ids[:row])
        raise ValueError(f"{place}: item {twice!r} stands there twice")
    cells = [[_text(cell) for cell in table[column][:]] for column in text_columns]
    texts = {item: ", ".join(filter(None, parts)) for item, *parts in zip(ids, *cells, strict=True)}
    titles = {item: title or texts[item] for item, title in zip(ids, cells[0], strict=True)}
    return titles, texts


def rows_of(table: "Dataset", rows: Sequence[int]) -> "Dataset":
    """Return some rows of a table as a table of its own; one that ``select`` returns takes seconds to read."""
    columns = {name: table[name][:] for name in table.column_names}
    return type(table).from_dict({name: [values[row] for row in rows] for name, values in columns.items()})


def first_rows(users: Sequence[Any], items: Sequence[Any]) -> list[int]:
    """Return the first row of each user with each item."""
    seen: dict[tuple[Any, Any], int] = {}
    for row, pair in enumerate(zip(users, items, strict=True)):
        seen.setdefault(pair, row)
    return [*seen.values()]


def _num_out_of_order(users: Sequence[str], times: np.ndarray) -> int:
    """Return how many users have a row that is earlier than one before it."""
    latest: dict[str, float] = {}
    late = set()
    for user, time in zip(users, times.tolist(), strict=True):
        if time < latest.get(user, time):
            late.add(user)
        latest[user] = max(time, latest.get(user, time))
    return len(late)


def _text(cell: Any) -> str:
    return "" if is_missing(cell) else str(cell).strip()


def _number(value: Any, row: int, place: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{place}, row {row + 1}: {value!r} is no rating, which min_rating needs") from None


def _time(value: Any, row: int, place: str) -> float:
    """Return a time as a number [s]."""
    if isinstance(value, datetime):
        return value.timestamp()
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        raise ValueError(
            f"{place}, row {row + 1}: {value!r} is no time; expected a number or a date as 2026-01-31T12:00"
        ) from None
