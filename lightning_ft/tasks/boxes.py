"""Boxes as Tensors: what a batch of detection holds, on which its data, its head and its metrics agree.

A large image is cut into tiles; one that is not cut is one tile. A batch has ``pixel_values``, shape (tile, 3, height,
width), and

- ``labels``, shape (tile, object, 5): the objects in each tile: class, x1, y1, x2, y2 [pixel of the network's input];
- ``tiles``, shape (tile, 6), where it is judged or predicted: the number of the tile's image, the tile's corner x, y in
  it [pixel of the image], network pixels per image pixel, and width and height of the picture in the network's input,
  without what fills it up [pixel];
- ``objects``, shape (tile, object, 7), where it is judged: the whole objects of the image, each at one of its tiles:
  class, x1, y1, x2, y2 [pixel of the image], 1 for what is not to be judged, and the object's number in its image.

What pads has class -1.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_ft.extras import require

NOTHING = -1


def best_boxes(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float, most: int) -> Tensor:
    """Return which boxes remain when those that overlap a better one of their class are gone, best first.

    Args:
        boxes: Shape (box, 4): x1, y1, x2, y2.
        scores: Shape (box,).
        classes: Shape (box,).
        threshold: The overlap, intersection over union, above which the worse box goes.
        most: Boxes that remain at most.

    Returns:
        Their numbers, shape (remaining box,).
    """
    ops: Any = require("torchvision.ops", extra="vision", needed_by="DetectionHead")
    return ops.batched_nms(boxes, scores, classes, threshold)[:most]


def by_image(rows: Tensor) -> dict[int, Tensor]:
    """Return the rows of each image.

    Args:
        rows: Shape (row, column); the first column is the number of the image.

    Returns:
        The other columns of each image's rows, by its number.
    """
    rows = rows[rows[:, 0].argsort(stable=True)]
    images, counts = rows[:, 0].unique_consecutive(return_counts=True)
    parts = torch.split(rows[:, 1:], counts.tolist())
    return dict(zip(map(int, images.tolist()), parts, strict=True))
