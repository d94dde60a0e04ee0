"""Entities are those that seqeval finds, in any scheme and any sequence of tags."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, Entities

from lightning_ft.tasks.entities import (
    CONTINUES,
    IGNORED,
    are_entities,
    entities_of,
    kinds_of,
    tag_names,
    to_iob2,
    words_of_texts,
)
from lightning_ft.tasks.word_metrics import EntityScores, WordAccuracy

KINDS = ("person", "place", "work")
NAMES = tag_names(KINDS)
TEXTS = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=12), min_size=1, max_size=6)


def theirs(tags: list[str]) -> list[tuple[int, int, int]]:
    return [(KINDS.index(kind), start, stop + 1) for kind, start, stop in get_entities(tags)]


def test_tags_stand_in_the_order_of_their_classes() -> None:
    assert NAMES[:3] == ("O", "B-person", "I-person")
    assert kinds_of(["O", "I-b", "B-a", "B-b"]) == ["a", "b"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=15))
def test_entities_of_any_sequence_are_those_of_seqeval(tags: list[int]) -> None:
    assert [tuple(entity) for entity in entities_of(tags)] == theirs([NAMES[tag] for tag in tags])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(NAMES), max_size=15))
def test_tags_of_iob2_keep_their_entities(tags: list[str]) -> None:
    found = to_iob2(tags)
    assert theirs(found) == theirs(tags)
    assert to_iob2(found) == found


@pytest.mark.parametrize(
    ("scheme", "tags"),
    [
        (IOB1, ["I-a", "I-a", "B-a", "O", "I-b", "I-a", "O"]),
        (IOB2, ["B-a", "I-a", "B-a", "O", "B-b", "B-a", "I-a"]),
        (IOBES, ["S-a", "S-a", "B-a", "I-a", "E-a", "O", "S-b", "B-a", "E-a"]),
        (BILOU, ["U-a", "U-a", "B-a", "I-a", "L-a", "O", "U-b", "B-a", "L-a"]),
    ],
)
def test_tags_of_every_scheme_become_those_of_iob2_with_the_same_entities(scheme: type, tags: list[str]) -> None:
    strict = [entity.to_tuple()[1:] for entity in Entities([tags], scheme).entities[0]]
    found = to_iob2(tags)
    assert [(kind, start, stop + 1) for kind, start, stop in get_entities(found)] == strict


@pytest.mark.parametrize(
    ("tags", "are"),
    [
        (["O", "B-a"], True),
        (["O", "I-a-b"], True),
        (["O"], False),
        (["NN", "B-a"], False),
        (["B-"], False),
        ([], False),
    ],
)
def test_tags_of_entities_are_told_from_others(tags: list[str], are: bool) -> None:
    assert are_entities(tags) is are


def batch(texts: list[list[int]], width: int = 4) -> torch.Tensor:
    """Return texts in rows of ``width`` words, of which the first column is none."""
    rows = []
    for text in texts:
        for start in range(0, len(text), width):
            words = text[start : start + width]
            rows.append([CONTINUES if start else IGNORED, *words, *[IGNORED] * (width - len(words))])
    return torch.tensor(rows)


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.randoms(use_true_random=False))
def test_scores_are_those_of_seqeval_over_several_rows_and_batches(texts: list[list[int]], random: object) -> None:
    guesses = [[random.choice([tag, 0, 1, 2, 3]) for tag in text] for text in texts]  # type: ignore[attr-defined]
    truth, guessed = [[[NAMES[tag] for tag in text] for text in part] for part in (texts, guesses)]
    expected = {"precision": precision_score, "recall": recall_score, "f1": f1_score}
    for score, reference in expected.items():
        metric = EntityScores(score, 3)
        for half in (slice(0, 1), slice(1, None)):
            if texts[half]:
                metric.update(batch(guesses[half]), batch(texts[half]))
        assert metric.compute().item() == pytest.approx(reference(truth, guessed, zero_division=0), abs=1e-6)


def test_scores_of_each_kind() -> None:
    metric = EntityScores("by_kind", 3)
    metric.update(batch([[1, 2, 0, 3]]), batch([[1, 2, 0, 1]]))
    assert metric.compute().tolist() == [[1.0, 0.5, pytest.approx(2 / 3), 2.0], [0.0, 0.0, 0.0, 0.0], [0.0] * 4]


def test_the_words_of_a_text_are_found_over_its_rows_and_texts_without_words_are_empty() -> None:
    target = torch.tensor([[IGNORED, 1, IGNORED], [CONTINUES, 2, 0], [IGNORED] * 3, [IGNORED, 3, IGNORED]])
    assert [target[text].tolist() for text in words_of_texts(target)] == [[1, 2, 0], [], [3]]


def test_accuracy_is_that_of_words() -> None:
    metric = WordAccuracy(7, average="micro")
    metric.update(torch.tensor([[0, 1, 2]]), torch.tensor([[CONTINUES, 1, 0]]))
    assert metric.compute() == 0.5
