"""Laws of the splits: disjoint parts of the sizes asked for, the shares of the classes kept, or whole groups."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from lightning_ft.data.split import grouped_split, stratified_split

LAWS = settings(max_examples=150, deadline=None, database=None, derandomize=True)


@LAWS
@given(
    classes=st.lists(st.sampled_from("abc"), min_size=12, max_size=80),
    stratify=st.booleans(),
    sizes=st.fixed_dictionaries({"val": st.sampled_from([0, 0.1, 0.25, 3]), "test": st.sampled_from([0, 0.2, 4])}),
    seed=st.integers(0, 5),
)
def test_each_row_is_in_one_part_and_parts_have_their_size(classes, stratify, sizes, seed):
    parts = stratified_split(len(classes), classes if stratify else None, sizes, seed, "")
    assert sorted(row for part in parts.values() for row in part) == list(range(len(classes)))
    for name, size in sizes.items():
        assert len(parts[name]) == (size if size >= 1 else round(size * len(classes)))
    assert all(np.all(np.diff(rows) > 0) for rows in parts.values())


@pytest.mark.parametrize("test_size", [60, 0.1, 0.37])
@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.9, 0.08, 0.02]])
def test_shares_of_classes_are_kept_as_scikit_learn_keeps_them(test_size, weights):
    draw = np.random.default_rng(0)
    classes = draw.choice([f"class {number}" for number in range(len(weights))], 600, p=weights).tolist()
    parts = stratified_split(600, classes, {"test": test_size}, 1, "")
    theirs = Counter(train_test_split(classes, test_size=test_size, stratify=classes, random_state=0)[1])
    ours = Counter(classes[row] for row in parts["test"])
    assert all(abs(ours[name] - count) <= 1 for name, count in theirs.items())
    assert sum(ours.values()) == sum(theirs.values())


def test_rows_in_class_order_are_mixed():
    classes = ["a"] * 50 + ["b"] * 50
    for seed in range(5):
        parts = stratified_split(100, classes, {"val": 10, "test": 10}, seed, "")
        assert [Counter(classes[row] for row in parts[name]) for name in ("val", "test")] == [{"a": 5, "b": 5}] * 2


def test_the_seed_alone_decides():
    classes = ["a", "b", "b"] * 40
    choices = [stratified_split(120, classes, {"val": 0.1}, seed, "")["val"].tolist() for seed in (0, 0, 1)]
    assert choices[0] == choices[1] != choices[2]


@pytest.mark.parametrize("sizes", [{"val": 10}, {"val": 6, "test": 4}, {"val": 0.5, "test": 0.5}])
def test_more_than_there_is_is_refused_with_the_counts(sizes):
    with pytest.raises(ValueError, match=r"train_file 'a.csv': 10 rows are too few to hold out \d+ for val"):
        stratified_split(10, None, sizes, 0, "train_file 'a.csv'")


@LAWS
@given(
    sizes_of_groups=st.lists(st.integers(1, 9), min_size=5, max_size=12),
    sizes=st.fixed_dictionaries({"val": st.sampled_from([0, 0.1, 3]), "test": st.sampled_from([0, 0.2, 4])}),
    seed=st.integers(0, 5),
)
def test_groups_stay_whole_and_parts_are_as_near_to_their_size_as_the_largest_group(sizes_of_groups, sizes, seed):
    groups = [f"g{number}" for number, size in enumerate(sizes_of_groups) for _ in range(size)]
    counts = {name: size if size >= 1 else round(size * len(groups)) for name, size in sizes.items()}
    if sum(counts.values()) + 2 * max(sizes_of_groups) > len(groups):
        return  # too few rows are an error, or may be
    parts = grouped_split(groups, sizes, seed, "")
    assert sorted(row for part in parts.values() for row in part) == list(range(len(groups)))
    held = [{groups[row] for row in rows} for rows in parts.values()]
    assert sum(map(len, held)) == len(sizes_of_groups)
    for name, count in counts.items():
        assert abs(len(parts[name]) - count) <= (max(sizes_of_groups) if count else 0)
        assert bool(len(parts[name])) == bool(count)


def test_a_part_stops_where_one_more_group_would_bring_it_farther_from_its_size():
    groups = [str(number // 5) for number in range(60)]
    sizes = [len(grouped_split(groups, {"val": count}, 3, "")["val"]) for count in (1, 5, 7, 8, 12, 13)]
    assert sizes == [5, 5, 5, 10, 10, 15]


def test_the_choice_of_groups_follows_the_seed():
    groups = [str(number // 5) for number in range(60)]
    choices = [grouped_split(groups, {"val": 0.1}, seed, "")["val"].tolist() for seed in (0, 0, 1)]
    assert choices[0] == choices[1] != choices[2]


def test_too_few_groups_are_refused():
    with pytest.raises(ValueError, match="train_file 'a': 2 groups, which stay whole, are too few to hold out 3 rows"):
        grouped_split(["a"] * 9 + ["b"] * 9, {"val": 3, "test": 3}, 0, "train_file 'a'")
