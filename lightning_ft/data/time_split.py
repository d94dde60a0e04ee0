"""Interactions held out by time, and those that lie before them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from lightning_ft.data.interaction_table import first_rows, rows_of
from lightning_ft.extras import require

if TYPE_CHECKING:
    from datasets import Dataset


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
    datasets = require("datasets", extra="text", needed_by="InteractionsData")
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
