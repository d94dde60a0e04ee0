"""RecommendationHead: what a user will want next, from what they wanted before."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MetricCollection

from lightning_ft.features import FeatureInfo, Features, TokenFeatures
from lightning_ft.heads.base import Head
from lightning_ft.tasks.ranking import RankScore


class RecommendationHead(Head):
    """Two towers: items by their text, users by their history; the score is the product of their vectors.

    An item's vector is the mean of its tokens' states, projected, and with ``item_ids`` a vector of its own is added,
    which learns what the text does not say. A user's vector is the state of a GRU that has read the vectors of their
    items in order (Hidasi et al. 2016, arXiv:1511.06939). Trained is a softmax over the items of the batch, whose
    scores are corrected for how likely each item was to be among them (Yi et al. 2019, "Sampling-bias-corrected
    neural modeling for large corpus item recommendations", RecSys): without it, what is popular is met as a wrong
    answer so often that it sinks.

    Args:
        features: What the backbone gives.
        num_classes: Items of the catalogue.
        num_features: Numbers in the vector of an item or user.
        item_ids: Whether each item has a vector and a bias of its own beside its text.
        correction: Whether scores are corrected for how likely an item was to be in the batch.
        dropout: Share of the vectors' numbers set to zero in training.
        k: Items to recommend, and length of the lists that are judged.

    Raises:
        ValueError: If the backbone gives maps, num_classes is missing, or an option is out of range.
    """

    reads = "tokens"
    tasks = ("recommendation",)
    top_k: int | None = None
    inputs = ("items", "history", "queries", "seen", "log_q")

    def __init__(
        self,
        features: FeatureInfo,
        num_classes: int | None = None,
        *,
        num_features: int = 64,
        item_ids: bool = True,
        correction: bool = True,
        dropout: float = 0.2,
        k: int = 10,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.expect(features)
        if num_classes is None or num_classes < 2:
            raise ValueError(
                f"{name}: expected num_classes, the items of the catalogue, to be at least 2, but got {num_classes}"
            )
        for option, value in (("num_features", num_features), ("k", k)):
            if value < 1:
                raise ValueError(f"{name}: expected {option} to be a positive integer, but got {value}")
        self.num_classes = num_classes
        self.k = k
        self.correction = correction
        self.main_metric = f"ndcg@{k}"
        self.project = nn.Linear(features.num_features, num_features)
        self.ids = nn.Embedding(num_classes, num_features) if item_ids else None
        self.bias = nn.Embedding(num_classes, 1) if item_ids else None
        for table in (self.ids, self.bias):
            if table is not None:
                nn.init.zeros_(table.weight)
        self.dropout = nn.Dropout(dropout)
        self.users = nn.GRU(num_features, num_features, batch_first=True)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] # it reads entries of the batch too: inputs
        self, features: Features, items: Tensor, history: Tensor, queries: Tensor, seen: Tensor, log_q: Tensor
    ) -> Tensor:
        """Return the scores of a batch's items for each query, -inf for items that the user had before, (query, item).

        Args:
            features: States of the tokens of the batch's items.
            items: Their numbers in the catalogue, shape (item,).
            history: What each user had in order, as indices into ``items``, -1 behind the last, (user, position).
            queries: The row and the position in ``history`` after which something is to be predicted, shape (query, 2).
            seen: Whether a user had an item before their ``history`` begins, shape (user, item).
            log_q: Log of the probability that an item is in the batch, shape (item,).
        """
        assert isinstance(features, TokenFeatures)
        vectors = self.item_vectors(features, items)
        read = torch.cat([vectors, torch.zeros_like(vectors[:1])])[history]
        states, _ = self.users(self.dropout(read))
        user, position = queries.unbind(1)
        scores = self.dropout(states[user, position]) @ vectors.T
        if self.bias is not None:
            scores = scores + self.bias(items)[:, 0]
        if self.correction:
            scores = scores - log_q
        return scores.masked_fill(_had(history, queries, seen), -torch.inf)

    def item_vectors(self, features: TokenFeatures, items: Tensor) -> Tensor:
        """Return the vectors of items, shape (item, feature)."""
        mask = features.mask[..., None].to(features.states.dtype)
        pooled = (features.states * mask).sum(1) / mask.sum(1).clamp(min=1)
        vectors = self.project(pooled)
        return vectors if self.ids is None else vectors + self.ids(items)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the mean over queries of the cross-entropy [nat].

        Args:
            prediction: Scores, shape (query, item).
            target: Index of the item that came next, shape (query,).
        """
        return functional.cross_entropy(prediction, target)

    def metrics(self) -> MetricCollection:
        """Return recall and NDCG of the first k items, and the MRR, all over the items of the batch."""
        k = self.k
        scores: dict[str, Any] = {
            f"recall@{k}": RankScore("recall", k),
            f"ndcg@{k}": RankScore("ndcg", k),
            "mrr": RankScore("mrr"),
        }
        return MetricCollection(scores, compute_groups=False)

    def choose_output(self, probabilities: bool | None, top_k: int | None) -> None:
        """Choose how many items ``decode`` returns from now on.

        Args:
            probabilities: None: there are none.
            top_k: The number of items; None for k.

        Raises:
            ValueError: If probabilities are asked for.
        """
        super().choose_output(probabilities, None)
        self.top_k = top_k

    def decode(
        self, prediction: Tensor, label_names: Sequence[str] | None, batch: Mapping[str, Tensor]
    ) -> list[dict[str, Any]]:
        """Return for each query its ``prediction``, the k best items, the best first, and their ``scores``.

        Items that a user had are left out, so that there are fewer where a user had nearly all.

        Args:
            prediction: What ``forward`` returned.
            label_names: Names of all items of the catalogue; None where they have none.
            batch: The batch.
        """
        best = prediction.float().topk(min(self.top_k or self.k, prediction.shape[1]))
        rows = []
        for scores, found in zip(best.values.tolist(), batch["items"][best.indices].tolist(), strict=True):
            number = sum(score > -torch.inf for score in scores)
            names = [str(item) if label_names is None else label_names[item] for item in found[:number]]
            rows.append({"prediction": names, "scores": scores[:number]})
        return rows


def _had(history: Tensor, queries: Tensor, seen: Tensor) -> Tensor:
    """Return which items a query's user had by then, shape (query, item)."""
    user, position = queries.unbind(1)
    later = torch.arange(history.shape[1], device=history.device) > position[:, None]
    num_items = seen.shape[1]
    read = history[user].masked_fill(later | (history[user] < 0), num_items)
    # one column more, for positions that do not count
    had = functional.pad(seen[user], (0, 1))
    return had.scatter(1, read, True)[:, :num_items]
