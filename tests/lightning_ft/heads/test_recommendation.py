"""RecommendationHead: scores of items for users, from nothing but what each user had by then."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_ft import FeatureInfo, RecommendationHead, TokenFeatures

INFO = FeatureInfo(8, "tokens")
NUM_ITEMS = 6


def head_of(num_classes: int | None = NUM_ITEMS, **options: Any) -> RecommendationHead:
    torch.manual_seed(0)
    head = RecommendationHead(INFO, num_classes, **options).eval()
    if head.ids is not None:
        torch.nn.init.normal_(head.ids.weight)
    return head


def batch_of(**changes: Tensor) -> dict[str, Tensor]:
    """Return two users: one who had items 3, 1, 2 and is judged twice, and one who had 5 after 0 and 4."""
    batch = {
        "items": torch.arange(NUM_ITEMS),
        "history": torch.tensor([[3, 1, 2], [5, -1, -1]]),
        "queries": torch.tensor([[0, 1], [0, 2], [1, 0]]),
        "seen": torch.zeros(2, NUM_ITEMS, dtype=torch.bool).index_put(
            (torch.tensor([1, 1]), torch.tensor([0, 4])), torch.tensor(True)
        ),
        "log_q": torch.zeros(NUM_ITEMS),
    }
    return batch | changes


def features_of(num_items: int = NUM_ITEMS) -> TokenFeatures:
    states = torch.randn(num_items, 4, 8, generator=torch.Generator().manual_seed(1))
    return TokenFeatures(states, torch.tensor([[1.0, 1, 1, 0]]).expand(num_items, 4))


def test_what_a_user_had_by_then_is_not_recommended_and_all_else_may_be() -> None:
    scores = head_of().predict_from(features_of(), batch_of())
    had = [[item for item, score in enumerate(row) if score == -torch.inf] for row in scores.tolist()]
    assert had == [[1, 3], [1, 2, 3], [0, 4, 5]]


def test_what_came_later_changes_nothing() -> None:
    head, features = head_of(), features_of()
    before = head.predict_from(features, batch_of())[0]
    later = torch.tensor([[3, 1, 4], [5, -1, -1]])
    assert torch.equal(head.predict_from(features, batch_of(history=later))[0], before)
    earlier = torch.tensor([[4, 1, 2], [5, -1, -1]])
    assert not torch.allclose(head.predict_from(features, batch_of(history=earlier))[0, 2], before[2])


def test_padding_of_texts_and_of_histories_changes_nothing() -> None:
    head, features = head_of(), features_of()
    expected = head.predict_from(features, batch_of())
    states = features.states.clone()
    states[:, 3] = 100.0
    longer = torch.nn.functional.pad(batch_of()["history"], (0, 2), value=-1)
    found = head.predict_from(TokenFeatures(states, features.mask), batch_of(history=longer))
    assert torch.allclose(found, expected)


def test_scores_are_corrected_by_the_log_of_how_likely_an_item_was_to_be_there() -> None:
    log_q = torch.tensor([0.1, 0.5, 0.9, 0.2, 1.0, 0.3]).log()
    plain = head_of(correction=False).predict_from(features_of(), batch_of(log_q=log_q))
    corrected = head_of().predict_from(features_of(), batch_of(log_q=log_q))
    open_ = plain > -torch.inf
    assert torch.allclose((plain - corrected)[open_], log_q.expand_as(plain)[open_], atol=1e-6)


def test_the_corrected_loss_over_a_sample_is_that_over_all_items_in_the_mean() -> None:
    """With items drawn by how popular they are the correction makes the sum over a sample that over all."""
    generator = torch.Generator().manual_seed(0)
    scores, share = torch.randn(500, generator=generator), torch.rand(500, generator=generator)
    there = torch.rand(4000, 500, generator=generator) < share
    sums = (scores - share.log()).exp().expand_as(there).masked_fill(~there, 0).sum(1)
    assert sums.mean().item() == pytest.approx(scores.exp().sum().item(), rel=0.01)


def test_an_items_own_vector_follows_its_number_in_the_catalogue() -> None:
    head = head_of()
    features, items = features_of(2), torch.tensor([4, 1])
    assert head.ids is not None
    difference = head.item_vectors(features, items) - head_of(item_ids=False).item_vectors(features, items)
    assert torch.allclose(difference, head.ids.weight[items], atol=1e-6)


def test_the_loss_is_the_cross_entropy_over_items_not_had_and_has_a_gradient() -> None:
    head = head_of()
    scores, target = head.predict_from(features_of(), batch_of()), torch.tensor([2, 0, 3])
    loss = head.loss(scores, target)
    assert torch.allclose(loss, cross_entropy(scores, target))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_the_best_items_are_named_with_their_scores_and_fewer_where_all_were_had() -> None:
    head, names = head_of(k=4), list("abcdef")
    batch = batch_of(items=torch.tensor([5, 4, 3, 2, 1, 0]))
    scores = torch.tensor([[0.1, 0.6, 0.3, 0.2, 0.4, 0.5], [-torch.inf, 1.0, -torch.inf, -torch.inf, 2.0, -torch.inf]])
    rows = head.decode(scores, names, batch)
    assert rows[0]["prediction"] == ["e", "a", "b", "d"]
    assert rows[1] == {"prediction": ["b", "e"], "scores": [2.0, 1.0]}
    assert head.decode(scores, None, batch)[1]["prediction"] == ["1", "4"]


def test_it_is_judged_by_lists_of_k() -> None:
    head = head_of(k=3)
    assert set(head.metrics()) == {"recall@3", "ndcg@3", "mrr"}
    assert head.main_metric in head.metrics()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": None}, "items of the catalogue, to be at least 2, but got None"),
        ({"num_classes": 1}, "to be at least 2, but got 1"),
        ({"k": 0}, "expected k to be a positive integer, but got 0"),
        ({"num_features": -1}, "expected num_features to be a positive integer, but got -1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head_of(**({"num_classes": NUM_ITEMS} | options))


def test_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="reads tokens, but this backbone gives maps"):
        RecommendationHead(FeatureInfo(8, "maps", (8,), (32,)), 5)
