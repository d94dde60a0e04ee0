"""Tables of interactions in the order of time, and what is held out of them; tables of items."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from lightning_ft.data.labels import is_missing
from lightning_ft.data.tables import READERS, check_columns, read_table
from lightning_ft.extras import require

if TYPE_CHECKING:
    from datasets import Dataset

NEEDED_BY = "InteractionsData"
ATOMIC = {".inter": "csv", ".item": "csv"}


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
    table = read_rows(file, what)
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


def read_rows(file: str, what: str) -> "Dataset":
    """Return all rows of a file.

    Names of columns in RecBole's files lose the type that stands behind them: ``user_id:token``
    (https://recbole.io/docs/user_guide/data/atomic_files.html).
    """
    table = read_table(file, what, NEEDED_BY, readers={**READERS, **ATOMIC})
    if Path(file).suffix.lower() not in ATOMIC:
        return table
    return table.rename_columns({name: name.partition(":")[0] for name in table.column_names})


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
    table = read_rows(file, "items_file")
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


def held_out(users: Sequence[str], sizes: Mapping[str, float], place: str) -> dict[str, list[int]]:
    """Choose the rows of each held-out part by time; the others train.

    Args:
        users: The user of each row, in the order of time.
        sizes: Of ``"val"`` and ``"test"``, where they are to be held out: a number of each user's last rows, or a
            share below 1 of all rows, the latest. A user who would keep no row to train on is not held out from.
        place: The file, for messages.

    Returns:
        Row numbers of each part and of ``"train"``, rising.

    Raises:
        ValueError: If one size is a share and the other a number, or nothing is left to train on.
    """
    kinds = {0 < size < 1 for size in sizes.values() if size}
    if len(kinds) > 1:
        raise ValueError(
            f"expected val_size and test_size to be both shares below 1 or both numbers of a user's interactions, but "
            f"got {sizes['val']} and {sizes['test']}"
        )
    rows: dict[str, list[int]] = {part: [] for part in sizes}
    order = [part for part in ("test", "val") if sizes.get(part)]
    if kinds == {True}:
        stop = len(users)
        for part in order:
            start = stop - round(sizes[part] * len(users))
            rows[part] = list(range(max(start, 0), stop))
            stop = max(start, 0)
        if not stop:
            raise ValueError(f"{place}: nothing is left to train on")
        return {"train": list(range(stop)), **rows}
    last = [part for part in order for _ in range(int(sizes[part]))]
    num_rows: dict[str, int] = {}
    for user in users:
        num_rows[user] = num_rows.get(user, 0) + 1
    too_few = sum(number <= len(last) for number in num_rows.values())
    if too_few and last:
        rank_zero_info(
            f"{place}: {too_few} of {len(num_rows)} users have no more than {len(last)} interactions; they only train"
        )
    behind = dict(num_rows)
    rows["train"] = []
    for row, user in enumerate(users):
        behind[user] -= 1
        held = behind[user] < len(last) < num_rows[user]
        rows[last[behind[user]] if held else "train"].append(row)
    return rows


def merged(tables: Sequence["Dataset"], place: str) -> tuple["Dataset", np.ndarray]:
    """Return the rows of several tables in the order of time, and which of them are of the last table.

    Args:
        tables: Tables as ``interactions`` returns them; of equal times an earlier table comes first.
        place: The file of the last one, for messages.
    """
    datasets = require("datasets", extra="text", needed_by=NEEDED_BY)
    if len(tables) == 1:
        return tables[0], np.ones(len(tables[0]), dtype=bool)
    earlier = datasets.concatenate_datasets([*tables[:-1]])
    table = datasets.concatenate_datasets([*tables])
    own = np.arange(len(table)) >= len(table) - len(tables[-1])
    order = np.argsort(table["time"][:], kind="stable")
    users, items = (np.array(table[column][:], dtype=object)[order] for column in ("user", "item"))
    latest: dict[str, float] = {}
    for user, time in zip(*(earlier[column][:] for column in ("user", "time")), strict=True):
        latest[user] = max(time, latest.get(user, time))
    last = tables[-1]
    pairs = zip(last["user"][:], last["time"][:], strict=True)
    if num_late := sum(time < latest.get(user, time) for user, time in pairs):
        rank_zero_info(
            f"{place}: {num_late} of {len(last)} rows are earlier than what their user has in the files before it; "
            "each is predicted from what came before it, but training has seen what came after"
        )
    first = order[first_rows(users.tolist(), items.tolist())]
    if num_repeated := len(last) - int(own[first].sum()):
        rank_zero_info(f"{place}: {num_repeated} of {len(last)} rows repeat what their user had before; left out")
    return rows_of(table, first.tolist()), own[first]


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
