"""BoxScores: what COCO's own tool computes, in whatever batches, tiles and processes boxes come."""

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from lightning_ft.tasks.box_metrics import BoxScores

NUM_CLASSES = 3


def random_boxes(num_images: int = 8) -> tuple[Tensor, Tensor]:
    """Return detections near objects and elsewhere, and the objects, some of them crowds, as the metric takes them."""
    draw = torch.Generator().manual_seed(0)
    detections, objects = [], []
    for image in range(num_images):
        for number in range(image):  # the first image has none
            x, y, width, height = (torch.rand(4, generator=draw) * 60 + 10).tolist()
            kind = int(torch.randint(NUM_CLASSES - 1, (), generator=draw))
            objects.append([image, kind, x, y, x + width, y + height, float(number == 4), number])
            shift = (torch.randn(4, generator=draw) * 5).tolist()
            box = [side + by for side, by in zip((x, y, x + width, y + height), shift, strict=True)]
            detections.append([image, kind, torch.rand((), generator=draw).item(), *box])
        x, y = (torch.rand(2, generator=draw) * 90).tolist()
        detections.append([image, 0, torch.rand((), generator=draw).item(), x, y, x + 20, y + 20])
    return torch.tensor(detections), torch.tensor(objects)


def scores_of(detections: Tensor, objects: Tensor, **options: Any) -> dict[str, Tensor]:
    metric = BoxScores(NUM_CLASSES, **options)
    metric.update(detections, objects)
    return metric.compute()


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name])


def test_the_scores_are_those_of_pycocotools() -> None:
    detections, objects = random_boxes()
    truth, found = [], []
    for image, kind, x1, y1, x2, y2, crowd, _ in objects.tolist():
        box = [x1, y1, x2 - x1, y2 - y1]
        truth.append({"image_id": int(image), "category_id": int(kind), "bbox": box, "iscrowd": int(crowd)})
    for image, kind, score, x1, y1, x2, y2 in detections.tolist():
        box = [x1, y1, x2 - x1, y2 - y1]
        found.append({"image_id": int(image), "category_id": int(kind), "bbox": box, "score": score})
    coco = COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        coco.dataset = {
            "images": [{"id": image} for image in range(8)],
            "categories": [{"id": kind} for kind in range(NUM_CLASSES)],
            "annotations": [
                {**row, "id": number, "area": row["bbox"][2] * row["bbox"][3]} for number, row in enumerate(truth, 1)
            ],
        }
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(found), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    ours = scores_of(detections, objects, nms_threshold=1.0)
    names = ["map", "map_50", "map_75", "mar_100"]
    assert [ours[name].item() for name in names] == pytest.approx(judge.stats[[0, 1, 2, 8]].tolist(), abs=1e-6)
    assert 0.1 < ours["map"] < 0.9
    precision = judge.eval["precision"][..., 0, -1]
    for kind in range(NUM_CLASSES):
        assert ours["map_per_class"][kind, 0].item() == pytest.approx(precision[:, :, kind].mean(), abs=1e-6)
    num_judged = objects[objects[:, 6] == 0, 1].long().bincount(minlength=NUM_CLASSES)
    assert ours["map_per_class"][:, 3].tolist() == num_judged.tolist()


def test_a_class_without_objects_has_no_score_and_changes_none() -> None:
    scores = scores_of(*random_boxes())
    assert scores["map_per_class"][2].tolist() == [-1, -1, -1, 0]
    assert scores["map"] == pytest.approx(scores["map_per_class"][:2, 0].mean().item())


def test_batches_make_no_difference() -> None:
    detections, objects = random_boxes()
    metric = BoxScores(NUM_CLASSES)
    for image in (5, 2, 0, 7, 1, 3, 4, 6):
        metric.update(detections[detections[:, 0] == image], objects[objects[:, 0] == image])
    assert_same(metric.compute(), scores_of(detections, objects))


def test_images_that_a_batch_numbers_for_itself_are_those_of_this_batch_alone() -> None:
    detections, objects = random_boxes()
    metric = BoxScores(NUM_CLASSES)
    for first in (0, 4):
        here = [rows[(rows[:, 0] >= first) & (rows[:, 0] < first + 4)].clone() for rows in (detections, objects)]
        for rows in here:
            rows[:, 0] = first - 1 - rows[:, 0]
        metric.update(*here)
    assert_same(metric.compute(), scores_of(detections, objects))


def test_what_two_tiles_have_found_counts_once() -> None:
    detections, objects = random_boxes()
    again = detections.clone()
    again[:, 3:] += 0.5
    again[:, 2] *= 0.99
    alone, both = scores_of(detections, objects), scores_of(torch.cat([detections, again]), objects)
    assert both["map"] == pytest.approx(alone["map"].item(), abs=0.02)
    assert scores_of(torch.cat([detections, again]), objects, nms_threshold=1.0)["map"] < 0.9 * alone["map"]


def test_a_sample_that_comes_twice_counts_once() -> None:
    detections, objects = random_boxes()
    assert_same(scores_of(detections.repeat(2, 1), objects.repeat(2, 1)), scores_of(detections, objects))


def test_all_objects_of_a_crowded_image_can_be_found() -> None:
    x = torch.arange(300.0)[:, None] * 20
    boxes = torch.cat([x, x * 0, x + 10, x * 0 + 10], 1)
    zeros = torch.zeros(300, 1)
    detections = torch.cat([zeros, zeros, zeros + 0.5, boxes], 1)
    objects = torch.cat([zeros, zeros, boxes, zeros, torch.arange(300.0)[:, None]], 1)
    assert scores_of(detections, objects, max_detections=500)["mar_500"] == 1
    assert scores_of(detections, objects, max_detections=100)["mar_100"] == pytest.approx(1 / 3)
    assert set(scores_of(detections, objects, max_detections=5)) == {
        "map",
        "map_50",
        "map_75",
        "mar_5",
        "map_per_class",
    }


def test_nothing_at_all_is_told_as_coco_tells_it() -> None:
    scores = scores_of(torch.zeros(0, 7), torch.zeros(0, 8))
    assert scores["map"] == scores["mar_100"] == -1
    only_found = scores_of(torch.tensor([[0.0, 0, 0.5, 0, 0, 9, 9]]), torch.zeros(0, 8))
    assert only_found["map"] == -1
    only_there = scores_of(torch.zeros(0, 7), torch.tensor([[0.0, 0, 0, 0, 9, 9, 0, 0]]))
    assert only_there["map"] == 0


def _process(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    detections, objects = random_boxes()
    numbered, alone = BoxScores(NUM_CLASSES), BoxScores(NUM_CLASSES)
    # five batches for one, one of them twice, and four for the other; then five and three
    for image in range(rank, 8, 2) if rank else (0, 2, 4, 6, 6):
        numbered.update(detections[detections[:, 0] == image], objects[objects[:, 0] == image])
    for image in (1, 3, 5) if rank else (0, 2, 4, 6, 7):
        here = [rows[rows[:, 0] == image] for rows in (detections, objects)]
        for rows in here:
            rows[:, 0] = -1
        alone.update(*here)
    torch.save([numbered.compute(), alone.compute()], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_scores_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        for scores in torch.load(tmp_path / f"{rank}.pt"):
            assert_same(scores, scores_of(*random_boxes()))
