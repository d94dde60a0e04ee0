"""SampleStore: what was put comes back, in other batches, with other padding, from memory and from files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from lightning_ft_callbacks.caching.another_batch import another_batch
from lightning_ft_callbacks.caching.augmented_views import whole_data
from lightning_ft_callbacks.caching.kept_caches import digest
from lightning_ft_callbacks.caching.prefix_lines import lines_worth_keeping
from lightning_ft_callbacks.caching.sample_shapes import CannotCacheError, Samples, SampleShape
from lightning_ft_callbacks.caching.sample_store import SampleStore
from lightning_ft_callbacks.caching.storage import Budget, Storage, StorageFullError, free_memory


def batch(ids: list[int], lengths: list[int], *, left: bool) -> tuple[Samples, Tensor, Tensor]:
    """Return samples, states (batch, token, 3) that follow from number and token, and a mask (batch, 2, token)."""
    tokens = max(lengths)
    samples = Samples(tuple(ids), tuple(lengths), tokens, left)
    states = torch.zeros(len(ids), tokens, 3)
    flags = torch.zeros(len(ids), 2, tokens, dtype=torch.bool)
    for row, (number, length) in enumerate(zip(ids, lengths, strict=True)):
        place = samples.place(row)
        states[row, place] = number * 100 + torch.arange(length).float()[:, None]
        flags[row, :, place] = True
    return samples, states, flags


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=4, max_size=12), left=st.booleans(), data=st.data())
def test_samples_come_back_in_other_batches_with_other_padding(
    lengths: list[int], left: bool, data: st.DataObject
) -> None:
    storage = Storage(Budget(2**30), Path(), lambda: None)
    count = len(lengths)
    shapes: list[SampleShape] = []
    for width in (2, 3):  # two batches of different sizes tell which dimension is which
        samples, *tensors = batch(list(range(width)), [9, 7, 8][:width] if width == 3 else [6, 4], left=left)
        if shapes:
            for shape, tensor in zip(shapes, tensors, strict=True):
                shape.see(tensor, samples, "it")
        else:
            shapes = [SampleShape(tensor, samples) for tensor in tensors]
    store = SampleStore(count, shapes, storage)
    order = data.draw(st.permutations(range(count)))
    for start in range(0, count, 3):
        ids = order[start : start + 3]
        samples, states, flags = batch(ids, [lengths[number] for number in ids], left=left)
        assert not store.holds(ids)
        store.put(samples, [states, flags])
        assert store.holds(ids)
    assert store.num_held == count
    again = data.draw(st.permutations(range(count)))[: count - 1]
    samples, states, flags = batch(again, [lengths[number] for number in again], left=left)
    found = store.get(samples)
    assert torch.equal(found[0], states)
    assert torch.equal(found[1], flags)


def images(ids: list[int], size: int = 1000) -> tuple[Samples, Tensor]:
    return Samples(tuple(ids)), torch.stack([torch.full((size,), float(number)) for number in ids])


def test_beyond_the_budget_it_goes_to_files(tmp_path: Path) -> None:
    budget = Budget(0)
    made: list[int] = []
    storage = Storage(budget, tmp_path / "store", lambda: made.append(1))
    samples, tensor = images([0, 1, 2])
    store = SampleStore(3, [SampleShape(tensor, samples)], storage)
    store.put(samples, [tensor])
    assert made
    assert list((tmp_path / "store").glob("segment-*.bin"))
    assert torch.equal(store.get(images([2, 0])[0])[0], images([2, 0])[1])


def test_a_folder_that_cannot_be_written_is_no_room(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    storage = Storage(Budget(0), tmp_path / "file" / "store", lambda: None)
    with pytest.raises(StorageFullError):
        storage.reserve(10)


def test_another_process_sees_a_sample_whole_or_not_at_all(tmp_path: Path) -> None:
    samples, tensor = images([0, 1])
    stores = [
        SampleStore(
            2,
            [SampleShape(tensor, samples)],
            Storage(Budget(0), tmp_path, lambda: None, in_files=True, writer=writer),
            index=tmp_path / "index.bin",
        )
        for writer in (0, 1)
    ]
    for store, number in zip(stores, (0, 1), strict=True):
        mine, rows = images([number])
        store.put(mine, [rows])
    for store in stores:
        assert store.num_held == 2
        assert torch.equal(store.get(samples)[0], tensor)


def test_of_two_processes_that_keep_a_sample_at_once_one_does(tmp_path: Path) -> None:
    samples, tensor = images([0, 1])

    def store(writer: int, before_files: Callable[[], None] = lambda: None) -> SampleStore:
        storage = Storage(Budget(0), tmp_path, before_files, in_files=True, writer=writer)
        return SampleStore(2, [SampleShape(tensor, samples)], storage, index=tmp_path / "index.bin")

    first, other = store(0), images([1, 0])
    # the other one has looked whether they are there, and is about to write, when the first one keeps them
    second = store(1, lambda: first.put(other[0], [other[1]]))
    second.put(samples, [tensor])
    entries = second._index.clone()
    assert entries[:, 0].tolist() == [1, 1]  # segments of the first one's
    for each in (first, second):
        assert torch.equal(each.get(samples)[0], tensor)


def test_numbers_are_kept_in_half_of_the_room_when_asked() -> None:
    samples, tensor = images([0, 1])
    shapes = [SampleShape(tensor, samples)]
    sizes = []
    for dtype in (None, torch.bfloat16):
        store = SampleStore(2, shapes, Storage(Budget(2**30), Path(), lambda: None), dtype=dtype)
        sizes.append(store.sample_bytes(None))
        store.put(samples, [tensor])
        assert store.get(samples)[0].dtype == torch.float32
    assert sizes == [4000, 2000]


def test_what_has_not_one_row_a_sample_is_refused() -> None:
    samples = Samples((0, 1, 2))
    with pytest.raises(CannotCacheError, match="one row a sample"):
        SampleStore(3, [SampleShape(torch.zeros(7, 3), samples)], Storage(Budget(0), Path(), lambda: None))


def test_a_size_that_is_by_chance_that_of_tokens_is_told_by_another_batch() -> None:
    samples = Samples((0, 1), (3, 2), 3)
    shape = SampleShape(torch.zeros(2, 3, 3), samples)
    fewer, other = another_batch({"states": torch.zeros(2, 3, 3)}, samples)
    assert fewer["states"].shape == (1, 2, 3)
    shape.see(fewer["states"], other, "it")
    assert shape.token_dims == (1,)
    assert shape.size(Samples((0, 1, 2), (5, 5, 5), 5)) == (3, 5, 3)


def test_masks_with_holes_are_refused() -> None:
    with pytest.raises(CannotCacheError, match="holes"):
        Samples.of_mask((0,), torch.tensor([[1, 0, 1]]))


def test_a_subset_of_a_subset_tells_the_numbers_in_the_whole() -> None:
    class Changed(Subset):
        """One that may change its samples."""

    data = TensorDataset(torch.arange(10))
    assert whole_data(data) == (data, None)
    assert whole_data(Subset(Subset(data, [5, 6, 7]), [2, 0])) == (data, [7, 5])
    changed = Changed(data, [1])
    assert whole_data(changed) == (changed, None)


def test_names_differ_with_what_they_name() -> None:
    names = {digest("a"), digest("b"), digest(torch.zeros(2)), digest(torch.zeros(2, 1)), digest(torch.ones(2))}
    assert len(names) == 5


def test_reading_files_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    """What is mapped counts as the file's pages, which the system takes back where memory is short."""

    def own_memory() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    samples, tensor = images(list(range(64)), size=2**18)  # a megabyte each
    store = SampleStore(64, [SampleShape(tensor, samples)], Storage(Budget(0), tmp_path, lambda: None))
    store.put(samples, [tensor])
    del tensor
    before = own_memory()
    for number in range(64):
        store.get(Samples((number,)))
    assert own_memory() - before < 8 * 2**20


NAMES = ("a", "b", "c", "head")


@pytest.mark.parametrize(
    ("to_come", "frontier", "lines"),
    [
        ([], 3, [3]),
        ([(["head"], 1)], 3, []),
        ([(["head"], 2)], 3, [3]),
        ([(["head"], 1), (["c"], 1), (["a"], None)], 3, [2]),
        ([(["head"], 2), (["c"], 1), (["b", "c"], None)], 3, [3, 2, 1]),
        ([(["c"], 2), (["head"], 2), (["b"], 2)], 2, [2, 1]),  # what the head reads is changed by c before
        ([(["a"], 2), (["head"], 2)], 0, []),
    ],
)
def test_what_pays_is_kept(to_come: list[tuple[list[str], int | None]], frontier: int, lines: list[int]) -> None:
    assert lines_worth_keeping(NAMES, to_come, frontier) == lines


def test_there_is_free_memory() -> None:
    assert 0 < free_memory() < 2**50
