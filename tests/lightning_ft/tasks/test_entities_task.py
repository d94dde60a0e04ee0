"""Named entities from end to end: trained, tested and predicted by the command, and with every callback."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from task_fits import QUIET, Task

from lightning_ft import FineTuner, TokenClassificationData, TokenClassificationHead, TransformersBackbone

Command = Callable[..., Any]


@pytest.fixture
def task(tiny_bert: Path, mentions: Path) -> Task:
    def module() -> FineTuner:
        backbone = TransformersBackbone(str(tiny_bert))
        return FineTuner(backbone, lambda features: TokenClassificationHead(features, num_classes=5), lr=3e-3)

    return Task(module, lambda: TokenClassificationData(str(mentions), batch_size=8))


def test_the_command_learns_it_tests_each_kind_and_predicts_characters(
    command: Command, tiny_bert: Path, mentions: Path, tmp_path: Path
) -> None:
    trained = command(
        "fit",
        *("--model.backbone", "TransformersBackbone", "--model.backbone.name", tiny_bert),
        *("--model.head", "TokenClassificationHead", "--model.lr", "0.01"),
        *("--data", "TokenClassificationData", "--data.train_file", mentions, "--data.batch_size", "8"),
        *("--trainer.max_epochs", "4", "--best_checkpoint.monitor", "val/f1"),
    )
    assert trained.code == 0, trained.err
    tested = command("test", "--run", "last")
    (f1,) = [float(line.split()[1]) for line in tested.out.splitlines() if line.startswith("test/f1 ")]
    assert f1 > 0.8
    rows = [line.split("│")[1:6] for line in tested.out.splitlines() if "│" in line]
    kinds = [[cell.strip() for cell in row] for row in rows]
    assert [row[0] for row in kinds] == ["person", "place"]
    assert sum(int(row[4]) for row in kinds) > 0
    text = "meet Ada Grace in Paris."
    (tmp_path / "new.jsonl").write_text(json.dumps({"text": text}) + "\n")
    for name in ("found.csv", "found.jsonl"):
        asked = ("--data.predict_file", "new.jsonl", "--predictions.file", name)
        assert command("predict", "--run", "last", *asked).code == 0
    with (tmp_path / "found.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    entities = json.loads((tmp_path / "found.jsonl").read_text())["prediction"]
    assert json.loads(row["prediction"]) == entities
    spans = [(entity["label"], text[entity["start"] : entity["end"]]) for entity in entities]
    assert spans == [("person", "Ada Grace"), ("place", "Paris")]
    assert all(0 < entity["score"] <= 1 for entity in entities)


def test_phases_rates_and_the_cache(task: Task) -> None:
    task.assert_the_cache_changes_nothing()


def test_a_range_test(task: Task) -> None:
    task.assert_a_rate_is_found()


def test_the_mean_loss_is_that_of_all_words_in_whatever_batches(task: Task, mentions: Path) -> None:
    model, trainer = task.module(), Trainer(**QUIET)
    values = []
    for batch_size in (2, 9):
        trainer.validate(model, datamodule=TokenClassificationData(str(mentions), batch_size=batch_size), verbose=False)
        values.append(trainer.callback_metrics["val/loss"].item())
    assert values[0] == pytest.approx(values[1], abs=1e-6)


def test_a_head_that_cannot_learn_it_is_named_with_those_that_can(
    command: Command, tiny_bert: Path, mentions: Path
) -> None:
    result = command(
        "fit",
        *("--model.backbone", "TransformersBackbone", "--model.backbone.name", tiny_bert),
        *("--model.head", "SequenceClassificationHead"),
        *("--data", "TokenClassificationData", "--data.train_file", mentions),
    )
    assert result.code == 2
    assert "does not learn entities, which TokenClassificationData has; heads that do: TokenClassif" in result.err
