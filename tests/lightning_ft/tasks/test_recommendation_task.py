"""Recommendation from end to end: by the command on titles and on ids, on MovieLens, and with every callback."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from task_fits import QUIET, Task
from task_sets import KINDS

from lightning_ft import FineTuner, InteractionsData, ItemEmbedding, RecommendationHead, TransformersBackbone
from lightning_ft.tasks.ranking import gains_of
from lightning_ft_callbacks import DiscriminativeLR, FrozenPrefixCache, GradualUnfreezing

Command = Callable[..., Any]
MOVIES = "package://recbole/dataset_example/ml-100k/ml-100k"


def data_of(films: Path, **options: Any) -> InteractionsData:
    items = {"items_file": str(films / "films.csv"), "batch_size": 16}
    return InteractionsData(str(films / "watched.csv"), **(items | options))


@pytest.fixture
def task(tiny_bert: Path, films: Path) -> Task:
    def module() -> FineTuner:
        backbone = TransformersBackbone(str(tiny_bert))
        return FineTuner(backbone, lambda features: RecommendationHead(features, 40, num_features=16), lr=3e-3)

    return Task(module, lambda: data_of(films))


def scores_of(text: str) -> dict[str, float]:
    lines = [line.split() for line in text.splitlines() if line.startswith("test/")]
    return {name: float(value) for name, value in lines}


@pytest.mark.parametrize("backbone", ["titles", "ids"])
def test_the_command_learns_it_tests_it_and_recommends_by_name(
    command: Command, tiny_bert: Path, films: Path, tmp_path: Path, backbone: str
) -> None:
    parts = {
        "titles": ("TransformersBackbone", "--model.backbone.name", tiny_bert),
        "ids": ("ItemEmbedding",),
    }
    trained = command(
        "fit",
        *("--model.backbone", *parts[backbone], "--model.head", "RecommendationHead", "--model.lr", "0.03"),
        *("--data", "InteractionsData", "--data.train_file", films / "watched.csv", "--data.batch_size", "8"),
        *("--data.items_file", films / "films.csv", "--trainer.max_epochs", "12"),
        *("--best_checkpoint.monitor", "val/ndcg@10"),
    )
    assert trained.code == 0, trained.err
    tested = command("test", "--run", "last")
    assert tested.code == 0, tested.err
    (said,) = [line for line in tested.err.splitlines() if "the most popular" in line]
    popular = float(said.split("ndcg@10 ")[1].split(",")[0])
    assert scores_of(tested.out)["test/ndcg@10"] > popular + 0.2
    (films / "watched.csv").rename(tmp_path / "moved.csv")  # a run predicts without its training file
    (tmp_path / "new.csv").write_text("user_id,item_id,timestamp\nnew,1,1\nnew,2,2\nother,20,1\nother,21,2\n")
    for name in ("found.csv", "found.jsonl"):
        asked = ("--data.predict_file", "new.csv", "--predictions.file", name)
        assert command("predict", "--run", "last", *asked).code == 0
    (tmp_path / "moved.csv").rename(films / "watched.csv")
    rows = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [row["user_id"] for row in rows] == ["new", "other"]
    assert rows[0]["prediction"][0] in {f"{word} {number}" for word in KINDS["western"] for number in range(1, 6)}
    assert not {"Sheriff 2", "Sheriff 3"} & {*rows[0]["prediction"]}
    assert rows[0]["scores"] == sorted(rows[0]["scores"], reverse=True)
    assert len(rows[0]["prediction"]) == len(rows[0]["scores"]) == 10
    with (tmp_path / "found.csv").open() as stream:
        assert [row["prediction"].split("|") for row in csv.DictReader(stream)] == [row["prediction"] for row in rows]


def test_on_movielens_ids_beat_popularity_twice_in_seconds() -> None:
    data = InteractionsData(f"{MOVIES}.inter", batch_size=32)
    data.setup("test")
    number = data.labels.num_classes
    torch.manual_seed(7)
    model = FineTuner(ItemEmbedding(number), lambda features: RecommendationHead(features, number), lr=1e-2)
    trainer = Trainer(max_epochs=3, limit_val_batches=0, **QUIET)
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    popular = gains_of(data._samples["test"].ranks(data.popularity), "ndcg", 10).mean().item()
    assert popular == pytest.approx(0.0436, abs=1e-4)
    assert trainer.callback_metrics["test/ndcg@10"] > 2 * popular


def test_an_evaluation_is_the_same_in_whatever_batches(task: Task, films: Path) -> None:
    model, trainer = task.module(), Trainer(**QUIET)
    results = []
    for size in (5, 512):
        trainer.validate(model, datamodule=data_of(films, eval_batch_size=size), verbose=False)
        results.append({name: value.item() for name, value in trainer.callback_metrics.items()})
    assert results[0] == pytest.approx(results[1], abs=1e-5)


def test_phases_and_rates_train_what_they_name(task: Task) -> None:
    before = task.module().state_dict()
    schedule = [{"train": ["head"], "epochs": 1}, {"train": ["head", "backbone.encoder.layer.1"]}]
    trained, losses = task.fit(GradualUnfreezing(schedule), DiscriminativeLR(0.7), epochs=4)
    changed = {name for name, value in trained.backbone.state_dict().items() if "layer" in name}
    changed = {
        name for name in changed if not torch.equal(trained.backbone.state_dict()[name], before[f"backbone.{name}"])
    }
    assert changed
    assert all("layer.1." in name for name in changed)
    assert sum(losses[-3:]) < sum(losses[:3])


def test_a_range_test(task: Task, films: Path) -> None:
    # of all users in each batch, or 40 steps fall by less than small batches differ
    Task(task.module, lambda: data_of(films, batch_size=48)).assert_a_rate_is_found()


@pytest.mark.filterwarnings("ignore:FrozenPrefixCache")  # which says the same of validation before
def test_the_cache_refuses_batches_whose_rows_are_no_samples(task: Task) -> None:
    with pytest.raises(
        ValueError, match=r"nothing is kept below head for training data: the attention_mask has not one row a sample"
    ):
        task.fit(GradualUnfreezing([{"train": ["head"], "epochs": 2}, {"train": ["*"]}]), FrozenPrefixCache())
