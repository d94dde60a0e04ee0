"""Ranks of the right item, and recall, NDCG and MRR made of them, as scikit-learn and torchmetrics count them."""

import pytest
import torch
from sklearn.metrics import ndcg_score
from torch import Tensor
from torchmetrics.retrieval import RetrievalMRR, RetrievalRecall

from lightning_ft.tasks.ranking import RankScore, gains_of, ranks_of


@pytest.fixture
def scores() -> Tensor:
    return torch.randn(40, 30, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def target() -> Tensor:
    return torch.randint(30, (40,), generator=torch.Generator().manual_seed(1))


def score(name: str, k: int | None, scores: Tensor, target: Tensor, size: int = 40) -> float:
    metric = RankScore(name, k)
    for part, right in zip(scores.split(size), target.split(size), strict=True):
        metric.update(part, right)
    return metric.compute().item()


def test_they_are_those_of_the_libraries(scores: Tensor, target: Tensor) -> None:
    relevant = torch.zeros_like(scores).scatter(1, target[:, None], 1)
    expected = ndcg_score(relevant.numpy(), scores.numpy(), k=10)
    assert score("ndcg", 10, scores, target) == pytest.approx(expected, abs=1e-6)
    indexes = torch.arange(40)[:, None].expand_as(scores).flatten()
    for name, k, metric in (("recall", 10, RetrievalRecall(top_k=10)), ("mrr", None, RetrievalMRR())):
        # which takes probabilities
        expected = metric(scores.sigmoid().flatten(), relevant.long().flatten(), indexes=indexes).item()
        assert score(name, k, scores, target) == pytest.approx(expected, abs=1e-6)


def test_batches_of_any_size_give_the_same(scores: Tensor, target: Tensor) -> None:
    assert score("ndcg", 5, scores, target, 7) == pytest.approx(score("ndcg", 5, scores, target), abs=1e-7)


def test_scores_that_tell_nothing_put_the_target_in_the_middle() -> None:
    assert ranks_of(torch.zeros(3, 9), torch.tensor([0, 4, 8])).tolist() == [5.0, 5.0, 5.0]


def test_items_that_do_not_compete_take_no_rank() -> None:
    scores = torch.tensor([[-torch.inf, 3.0, 1.0, -torch.inf, 2.0]])
    assert ranks_of(scores, torch.tensor([2])).tolist() == [3.0]


def test_what_is_beyond_the_list_counts_nothing() -> None:
    ranks = torch.tensor([1.0, 3.0, 10.0, 11.0])
    assert gains_of(ranks, "recall", 10).tolist() == [1, 1, 1, 0]
    assert gains_of(ranks, "ndcg", 10).tolist() == pytest.approx([1, 0.5, 0.289065, 0], abs=1e-5)
    assert gains_of(ranks, "mrr", None).tolist() == pytest.approx([1, 1 / 3, 0.1, 1 / 11])


def test_without_queries_it_is_zero() -> None:
    metric = RankScore("mrr")
    metric.update(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    assert metric.compute() == 0
