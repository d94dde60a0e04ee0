"""TokenClassificationHead: words' classes, their loss, and entities as stretches of characters."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_ft import FeatureInfo, TokenClassificationHead, TokenFeatures
from lightning_ft.tasks.entities import CONTINUES, IGNORED, entities_of, tag_names

INFO = FeatureInfo(8, "tokens")
NAMES = tag_names(["person", "place"])
TARGET = torch.tensor([[IGNORED, 1, 2, IGNORED], [CONTINUES, 0, 3, IGNORED], [IGNORED, 0, IGNORED, IGNORED]])


def head_of(num_classes: int | None = 5, **options: Any) -> TokenClassificationHead:
    torch.manual_seed(0)
    return TokenClassificationHead(INFO, num_classes, **options).eval()


def logits_of(classes: Tensor) -> Tensor:
    """Return logits that are certain of classes."""
    return 20.0 * torch.nn.functional.one_hot(classes.clamp(min=0), 5).float()


def test_the_loss_is_the_mean_over_words() -> None:
    head, prediction = head_of(), torch.randn(3, 4, 5)
    words = TARGET >= 0
    assert torch.allclose(head.loss(prediction, TARGET), cross_entropy(prediction[words], TARGET[words]))


def test_a_batch_without_words_has_no_loss_and_a_gradient() -> None:
    prediction = torch.randn(1, 4, 5, requires_grad=True)
    for head in (head_of(), head_of(crf=True)):
        loss = head.loss(prediction, torch.full((1, 4), IGNORED))
        loss.backward()
        assert loss.item() == 0.0


@pytest.mark.parametrize("crf", [False, True])
def test_entities_are_told_by_their_characters_over_the_windows_of_a_text(crf: bool) -> None:
    head = head_of(crf=crf)
    characters = torch.tensor(
        [[[0, 0], [0, 4], [5, 9], [0, 0]], [[0, 0], [10, 12], [13, 20], [0, 0]], [[0, 0], [0, 3], [0, 0], [0, 0]]]
    )
    rows = head.decode(logits_of(TARGET), NAMES, {"labels": TARGET.clamp(max=0), "characters": characters})
    found = [[(e["label"], e["start"], e["end"]) for e in row["prediction"]] for row in rows]
    assert found == [[("person", 0, 9), ("place", 13, 20)], []]
    scores = [entity.get("score") for entity in rows[0]["prediction"]]
    assert scores == ([None, None] if crf else pytest.approx([1.0, 1.0]))


def test_a_class_that_goes_on_with_nothing_begins_an_entity() -> None:
    target = torch.tensor([[0, 0, 0]])
    batch = {"labels": target, "characters": torch.tensor([[[0, 1], [2, 3], [4, 5]]])}
    (row,) = head_of().decode(logits_of(torch.tensor([[0, 2, 4]])), NAMES, batch)
    assert [entity["label"] for entity in row["prediction"]] == ["person", "place"]


def test_with_a_crf_such_a_class_never_comes_and_the_loss_falls() -> None:
    head = head_of(crf=True)
    prediction = torch.randn(8, 40, 5) * 5
    target = torch.zeros(8, 40, dtype=torch.long)
    tags, _ = head.compared(prediction, target)
    for text in tags.tolist():
        for before, tag in zip([0, *text], text, strict=False):
            assert tag % 2 or not tag or before in (tag - 1, tag)
    goal = logits_of(tags)
    assert head.loss(goal, tags) < head.loss(prediction, tags)
    assert any(entities_of(text) for text in tags.tolist())


def test_tags_that_are_no_entities_are_told_by_word() -> None:
    head = head_of(task="tags")
    rows = head.decode(logits_of(TARGET), list("abcde"), {"labels": TARGET})
    assert [row["prediction"] for row in rows] == [["b", "c", "a", "d"], ["a"]]
    assert set(head.metrics()) == {"accuracy", "macro_f1"}


def test_states_become_logits_of_each_token() -> None:
    states = torch.randn(2, 3, 8)
    assert head_of(hidden_size=4)(TokenFeatures(states, torch.ones(2, 3))).shape == (2, 3, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": None}, "needs num_classes"),
        ({"num_classes": 4}, "1, and 2 more for each kind of entity, but got 4"),
        ({"task": "spans"}, "expected task to be entities or tags, but got 'spans'"),
        ({"class_weights": [1.0]}, "1 class_weights for 5 classes"),
        ({"label_smoothing": 1.0}, "below 1, but got 1.0"),
        ({"crf": True, "label_smoothing": 0.1}, "have no effect with crf"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head_of(**({"num_classes": 5} | options))


def test_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="reads tokens, but this backbone gives maps"):
        TokenClassificationHead(FeatureInfo(8, "maps", (8,), (32,)), 5)
