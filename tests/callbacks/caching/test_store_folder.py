"""StoreFolder: what a fit keeps goes when nobody needs it any more, or serves later fits."""

import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_ft_callbacks.caching import store_folder
from lightning_ft_callbacks.caching.kept_caches import is_whole, num_held
from lightning_ft_callbacks.caching.sample_shapes import Samples, SampleShape
from lightning_ft_callbacks.caching.sample_store import SampleStore
from lightning_ft_callbacks.caching.storage import Budget
from lightning_ft_callbacks.caching.store_folder import SHARED_MEMORY, StoreFolder


def images(ids: list[int], size: int = 1000) -> tuple[Samples, Tensor]:
    return Samples(tuple(ids)), torch.stack([torch.full((size,), float(number)) for number in ids])


def filled(folder: StoreFolder, ids: list[int], fingerprint: str = "name") -> SampleStore:
    """Return a store of six samples, some of which were put into it."""
    samples, tensor = images(ids or [0])
    store = folder.store("training", 6, [SampleShape(tensor, samples)], None, 4000, fingerprint, lambda _: True)
    if ids:
        store.put(samples, [tensor])
    return store


def test_a_folder_of_a_fit_goes_with_it(tmp_path: Path) -> None:
    folder = StoreFolder(tmp_path, "1", Budget(0))
    samples, tensor = images([0])
    store = folder.store("training", 1, [SampleShape(tensor, samples)], None, 4000)
    store.put(samples, [tensor])
    assert list(tmp_path.rglob("segment-1.bin"))
    folder.close(store)
    folder.remove()
    assert not list(tmp_path.iterdir())


def test_in_shared_memory_that_is_too_small_nothing_is_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setattr(store_folder, "SHARED_MEMORY", shared)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=64 * 2**20))  # as in a container
    folder = StoreFolder(tmp_path / "disk", "1", Budget(2**40), num_ranks=2)
    samples, tensor = images([0])
    for num_bytes, place in ((63 * 2**20, "disk"), (40 * 2**20, "shared")):
        folder.store("training", 1, [SampleShape(tensor, samples)], None, num_bytes).put(samples, [tensor])
        assert list((tmp_path / place).rglob("segment-1.bin"))
        assert not [*shared.iterdir()] or place == "shared"


def test_a_fit_that_begins_is_never_taken_for_one_that_was_killed(tmp_path: Path) -> None:
    living = StoreFolder(tmp_path, "1", Budget(0))
    filled(living, [0])
    assert not [path for path in tmp_path.rglob("lock") if not _is_locked(path)]
    StoreFolder(tmp_path, "2", Budget(0))
    assert list(tmp_path.rglob("segment-1.bin"))


def _is_locked(file: Path) -> bool:
    with file.open() as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def test_the_files_of_a_store_go_with_it(tmp_path: Path) -> None:
    folder = StoreFolder(tmp_path, "1", Budget(0))
    samples, tensor = images([0])
    stores = [folder.store(name, 1, [SampleShape(tensor, samples)], None, 4000) for name in ("training", "validation")]
    for store in stores:
        store.put(samples, [tensor])
    folder.close(stores[0])
    assert [path.parent.name for path in tmp_path.rglob("segment-1.bin")] == ["validation-1"]
    assert torch.equal(stores[1].get(samples)[0], tensor)


# several processes


def test_several_processes_take_no_more_shared_memory_together_than_allowed(tmp_path: Path) -> None:
    samples, tensor = images([0, 1])
    folders = [StoreFolder(tmp_path, "token", Budget(2**21), rank=rank, num_ranks=2) for rank in (0, 1)]
    try:
        for folder in folders:
            places = []
            for name in ("training", "validation"):
                store = folder.store(name, 2, [SampleShape(tensor, samples)], None, int(0.7 * 2**22))
                places.append(store.storage._folder.is_relative_to(SHARED_MEMORY))
            assert places == [True, False]
            assert folder.room == pytest.approx(0.3 * 2**21, rel=0.01)
    finally:
        for folder in folders:
            folder.remove()


def of_two(root: Path, last: int | None = None) -> tuple[list[StoreFolder], list[SampleStore]]:
    """Return the folders of two processes, and a store that both have filled together, to be kept.

    Args:
        root: Where it will be kept.
        last: The process that will still put the last sample; None if it is there.
    """
    folders = [StoreFolder(root, "1", Budget(0), rank=rank, num_ranks=2, keep=True) for rank in (0, 1)]
    ids = ([0, 1, 2], [3, 4] if last is not None else [3, 4, 5])
    return folders, [filled(folder, mine) for folder, mine in zip(folders, ids, strict=True)]


@pytest.mark.parametrize("first", [0, 1])
def test_the_last_of_two_processes_keeps_what_they_filled_while_the_first_may_still_be_read(
    first: int, tmp_path: Path
) -> None:
    folders, stores = of_two(tmp_path)
    folders[first].close(stores[first])
    samples, tensor = images([0, 5])
    assert torch.equal(stores[1 - first].get(samples)[0], tensor)
    folders[1 - first].close(stores[1 - first])
    kept = tmp_path / "name-0"
    assert is_whole(kept, json.loads((kept / "manifest.json").read_text())["store"])
    for folder in folders:
        folder.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["name-0"]
    assert {path.suffix for path in kept.iterdir()} == {".json", ".bin"}


@pytest.mark.parametrize("first", [0, 1])
def test_it_is_kept_too_where_the_last_samples_come_while_the_first_process_lets_go(
    first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, stores = of_two(tmp_path, last=1 - first)
    users, (samples, tensor) = folders[first]._users[stores[first].storage], images([5])
    leave = users.leave

    def after_the_other() -> bool:
        stores[1 - first].put(samples, [tensor])
        folders[1 - first].close(stores[1 - first])
        return leave()

    monkeypatch.setattr(users, "leave", after_the_other)
    folders[first].close(stores[first])
    assert [path.name for path in tmp_path.glob("name-*")] == ["name-0"]


def test_the_first_process_waits_with_removing_until_the_last_has_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, stores = of_two(tmp_path)
    folders[0].close(stores[0])
    removing, real = Thread(target=folders[0].remove), store_folder.finish

    def while_it_removes(*arguments: Any) -> Any:
        removing.start()
        time.sleep(0.5)
        return real(*arguments)

    monkeypatch.setattr(store_folder, "finish", while_it_removes)
    folders[1].close(stores[1])
    removing.join()
    assert [path.name for path in tmp_path.iterdir()] == ["name-0"]


def test_what_is_small_goes_with_the_last_process_too(tmp_path: Path) -> None:
    samples, tensor = images([0])
    folders = [StoreFolder(tmp_path, "1", Budget(0), rank=rank, num_ranks=2, keep=True) for rank in (0, 1)]
    stores = []
    for folder in folders:
        storage, index = folder.beside("labels")
        stores.append(SampleStore(1, [SampleShape(tensor, samples)], storage, index=index))
    stores[0].put(samples, [tensor])
    for folder, store, there in zip(folders, stores, (True, False), strict=True):
        folder.close_beside(store)
        assert (tmp_path / "fit-1" / "labels").exists() == there


def test_where_something_goes_wrong_the_first_process_keeps_it_alone_and_the_other_leaves_nothing(
    tmp_path: Path,
) -> None:
    folders, stores = of_two(tmp_path)
    folders[0].close(stores[0])
    folders[0].remove()
    folders[1].close(stores[1])
    folders[1].remove()
    assert [path.name for path in tmp_path.iterdir()] == ["name-0"]


def test_a_process_that_lets_go_while_the_first_removes_all_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, stores = of_two(tmp_path)
    real = os.rmdir

    def let_go_before(path: Any, **options: Any) -> None:
        if Path(path).name.startswith("fit-1") and stores[1].storage in folders[1]._users:  # all in it is gone
            folders[1].close(stores[1])
        real(path, **options)

    folders[0].close(stores[0])
    monkeypatch.setattr(os, "rmdir", let_go_before)
    folders[0].remove()
    assert stores[1].storage not in folders[1]._users
    assert [path.name for path in tmp_path.iterdir()] == ["name-0"]


# kept for later fits


def test_a_finished_store_is_whole_until_a_byte_of_it_changes(tmp_path: Path) -> None:
    folder = StoreFolder(tmp_path, "1", Budget(0), keep=True)
    folder.close(filled(folder, [0, 1]))
    kept = tmp_path / "name-0"
    described = json.loads((kept / "manifest.json").read_text())["store"]
    assert is_whole(kept, described)
    assert num_held(kept, described) == 2
    assert not is_whole(kept, described | {"format": 1})
    assert not is_whole(tmp_path / "nothing", described)
    segment = kept / "segment-1.bin"
    segment.write_bytes(segment.read_bytes()[:-1] + b"y")
    assert not is_whole(kept, described)
    assert num_held(kept, described) == 0


def test_a_later_fit_begins_with_what_is_kept_adds_to_it_and_changes_no_byte_of_it(tmp_path: Path) -> None:
    for number, ids in enumerate(([0, 1], [1, 2], [5])):
        folder = StoreFolder(tmp_path, f"{number}", Budget(0), keep=True)
        before = {path.name: path.read_bytes() for path in (tmp_path / "name-0").glob("segment-*.bin")}
        folder.close(filled(folder, ids))
        folder.remove()
        assert before.items() <= {path.name: path.read_bytes() for path in (tmp_path / "name-0").iterdir()}.items()
    assert [path.name for path in tmp_path.iterdir()] == ["name-0"]
    store = filled(StoreFolder(tmp_path, "4", Budget(0), keep=True), [])
    samples, tensor = images([0, 1, 2, 5])
    assert store.num_held == 4
    assert torch.equal(store.get(samples)[0], tensor)


def test_two_fits_at_once_keep_each_what_it_holds(tmp_path: Path) -> None:
    folders = [StoreFolder(tmp_path, token, Budget(0), keep=True) for token in ("1", "2")]
    stores = [filled(folder, ids) for folder, ids in zip(folders, ([0, 1, 2], [2, 4]), strict=True)]
    for folder, store in zip(folders, stores, strict=True):
        folder.close(store)
        folder.remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["name-0", "name-1"]
    store = filled(StoreFolder(tmp_path, "3", Budget(0), keep=True), [])
    samples, tensor = images([0, 1, 2])  # of two whose values are proven, that which holds more
    assert store.num_held == 3
    assert torch.equal(store.get(samples)[0], tensor)


def test_what_a_fit_holds_twice_is_kept_as_one_where_it_is_proven_to_be_the_same(tmp_path: Path) -> None:
    folder = StoreFolder(tmp_path, "1", Budget(0), keep=True)
    for store in [filled(folder, ids) for ids in ([0, 1, 2], [2, 4])]:
        folder.close(store)
    folder.remove()
    store = filled(StoreFolder(tmp_path, "2", Budget(0), keep=True), [])
    samples, tensor = images([0, 1, 2, 4])
    assert store.num_held == 4
    assert torch.equal(store.get(samples)[0], tensor)
