"""Laws of Labels: which task a column is, its classes, and their translation to targets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import LabelEncoder, MultiLabelBinarizer

from lightning_ft.data.labels import Labels, is_missing

LAWS = settings(max_examples=100, deadline=None, database=None, derandomize=True)
WORDS = st.text("abcdefgh", min_size=1, max_size=3)


def labels_of(values, task=None):
    return Labels.of(values, task, "train_file 'reviews.csv'")


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (["good", "bad"], "multiclass"),
        ([0, 1, 2], "multiclass"),
        ([0.0, 1.0, 2.0], "multiclass"),
        ([True, False], "multiclass"),
        ([0.5, 1.0], "regression"),
        ([["a"], ["a", "b"], []], "multilabel"),
    ],
)
def test_the_values_say_the_task(values, task):
    assert labels_of(values).task == task


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_a_given_task_wins(task):
    assert labels_of([1, 2, 5], task).task == task


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["good", "bad", "good"], ("bad", "good")),
        ([10, 9, 100], ("9", "10", "100")),
        ([2.0, 10.0, 1.0], ("1", "2", "10")),
        (["10", "9", "x", "-1"], ("-1", "9", "10", "x")),
        ([True, False], ("False", "True")),
    ],
)
def test_classes_are_sorted_numbers_by_value(values, names):
    assert labels_of(values).names == names


@LAWS
@given(st.lists(WORDS, min_size=2).filter(lambda values: len(set(values)) > 1))
def test_classes_are_encoded_as_scikit_learn_does(values):
    assert labels_of(values).encode(values, "") == LabelEncoder().fit_transform(values).tolist()


@LAWS
@given(st.lists(st.lists(WORDS, unique=True), min_size=1).filter(any))
def test_several_classes_are_encoded_as_scikit_learn_does(values):
    expected = MultiLabelBinarizer().fit_transform(values).tolist()
    assert labels_of(values).encode(values, "") == expected
    joined = ["|".join(names) for names in values]
    assert labels_of(joined, "multilabel").encode(joined, "") == expected


def test_spaces_and_empty_names_between_bars_are_no_classes():
    labels = labels_of(["a | b", "", "|b|"], "multilabel")
    assert labels.names == ("a", "b")
    assert labels.encode(["a | b", "", "|b|"], "") == [[1, 1], [0, 0], [0, 1]]


def test_numbers_stay_numbers_in_a_regression():
    labels = labels_of([1, 2.5, "3"], "regression")
    assert (labels.names, labels.num_classes) == ((), 1)
    assert labels.encode([1, 2.5, "3"], "") == [1.0, 2.5, 3.0]


@pytest.mark.parametrize("value", ["high", None, float("nan"), float("inf"), [1]])
def test_what_is_no_number_is_refused_in_a_regression(value):
    with pytest.raises(ValueError, match=r"reviews.csv', row 2: .* is no number, but the task is regression"):
        labels_of([1.0, value], "regression")


def test_whole_floats_are_the_classes_of_whole_numbers():
    labels = labels_of([1, 2, 3])
    assert labels.encode([3.0, 1.0], "") == labels.encode([3, 1], "") == labels.encode(["3", "1"], "") == [2, 0]


@pytest.mark.parametrize(
    ("values", "near"), [(["good", "godd"], "; did you mean 'good'"), (["good", "xyz"], "bad, good$")]
)
def test_an_unseen_label_is_named_with_its_row_and_the_nearest(values, near):
    with pytest.raises(ValueError, match=rf"v.csv', row 2: label '{values[1]}' is not among .*{near}"):
        labels_of(["good", "bad"]).encode(values, "val_file 'v.csv'")


@pytest.mark.parametrize("values", [["good"] * 3, [1, 1], [1.0, 1]])
def test_one_class_only_is_refused(values):
    with pytest.raises(ValueError, match=r"reviews.csv'.* at least two classes"):
        labels_of(values)


def test_a_single_class_is_enough_where_a_sample_may_have_none():
    assert labels_of([["spam"], []]).names == ("spam",)


@pytest.mark.parametrize(
    ("value", "missing"),
    [(None, True), ("", True), (float("nan"), True), (np.float64("nan"), True), ([], False), (0, False), ("0", False)],
)
def test_only_what_is_not_there_is_missing(value, missing):
    assert bool(is_missing(value)) is missing
