"""PixelScores: what torchmetrics counts, from one table that does not grow."""

import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassJaccardIndex

from lightning_ft import FeatureInfo, SegmentationHead
from lightning_ft.tasks.masks import IGNORED

NUM_CLASSES = 4


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return predictions and targets of some batches; class 3 never occurs."""
    torch.manual_seed(0)
    pairs = [(torch.randint(3, (2, 9, 7)), torch.randint(3, (2, 9, 7))) for _ in range(3)]
    return [(found, target.masked_fill(torch.rand(target.shape) < 0.2, IGNORED)) for found, target in pairs]


def test_scores_are_those_of_torchmetrics_over_all_images_together() -> None:
    scores = SegmentationHead(FeatureInfo(4, "maps", (4,), (4,)), NUM_CLASSES, width=8).metrics()
    options = {"num_classes": NUM_CLASSES, "ignore_index": IGNORED}
    theirs = {
        "mean_iou": MulticlassJaccardIndex(**options),
        "dice": MulticlassF1Score(**options, average="macro"),
        "accuracy": MulticlassAccuracy(**options, average="micro"),
    }
    by_class = MulticlassJaccardIndex(**options, average="none"), MulticlassF1Score(**options, average="none")
    for found, target in batches():
        scores.update(found, target)
        for metric in (*theirs.values(), *by_class):
            metric.update(found, target)
    ours = scores.compute()
    for name, metric in theirs.items():
        assert torch.allclose(ours[name], metric.compute()), name
    iou, dice, true, predicted = ours["by_class"].T
    assert torch.allclose(iou, by_class[0].compute())
    assert torch.allclose(dice, by_class[1].compute())
    assert torch.allclose(true.sum(), torch.tensor(1.0))
    assert torch.allclose(predicted.sum(), torch.tensor(1.0))
    assert true[3] == predicted[3] == 0


def test_nothing_grows_with_the_images() -> None:
    scores = SegmentationHead(FeatureInfo(4, "maps", (4,), (4,)), NUM_CLASSES, width=8).metrics()
    for found, target in batches():
        scores.update(found, target)
    states = [value for metric in scores.values() for value in metric.metric_state.values()]
    assert all(value.shape == (NUM_CLASSES, NUM_CLASSES) for value in states)


def test_without_judged_pixels_scores_are_0() -> None:
    scores = SegmentationHead(FeatureInfo(4, "maps", (4,), (4,)), NUM_CLASSES, width=8).metrics()
    scores.update(torch.zeros(1, 2, 2, dtype=torch.long), torch.full((1, 2, 2), IGNORED))
    assert scores.compute()["mean_iou"] == 0
