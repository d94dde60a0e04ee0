"""The command: a run's folder is all that a test, a prediction or a new run needs."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from lightning_ft import FineTuner, TransformersBackbone
from lightning_ft.__main__ import main

QUIET = (
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false"),
)


@pytest.fixture(scope="module")
def source(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the pretrained model, which a test can take away."""
    return Path(shutil.copytree(tiny_bert, tmp_path_factory.mktemp("source") / "bert"))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "reviews.csv"
    rows = [f"{'good ' * (row % 7 + 1)}film,praise\n{'bad ' * (row % 5 + 1)}film,blame\n" for row in range(40)]
    file.write_text("text,label\n" + "".join(rows))
    return file


@pytest.fixture(scope="module")
def recipe(source: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    content = {
        "seed_everything": 1,
        "model": {
            "backbone": {"class_path": "TransformersBackbone", "init_args": {"name": str(source)}},
            "head": "SequenceClassificationHead",
            "lr": 0.01,
        },
        "data": {"class_path": "TextClassificationData", "init_args": {"train_file": str(table)}},
        "trainer": {"max_epochs": 2},
    }
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="module")
def run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    assert main(["fit", "--config", str(recipe), "--trainer.default_root_dir", str(root), *QUIET]) == 0
    (folder,) = root.iterdir()
    return folder


@pytest.fixture
def moved(run: Path, source: Path, table: Path, tmp_path: Path) -> Path:
    """Return a copy of the run elsewhere, its pretrained model and its data out of reach."""
    copy = Path(shutil.copytree(run, tmp_path / "moved"))
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace(str(source), "/gone/bert").replace(str(table), "/gone/data.csv"))
    return copy


def printed(capsys: pytest.CaptureFixture[str], name: str) -> float:
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


def test_a_run_folder_holds_what_the_run_was_and_became(run: Path) -> None:
    names = {str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()}
    assert {"config.yaml", "metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["head"]["init_args"]["num_classes"] == 2
    assert "ckpt_path" not in config


def test_the_tensorboard_file_holds_the_logged_losses(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    with (run / "metrics.csv").open() as stream:
        rows = [(int(row["step"]), float(row["val/loss"])) for row in csv.DictReader(stream) if row["val/loss"]]
    assert [(event.step, pytest.approx(event.value)) for event in events.Scalars("val/loss")] == rows
    assert len(rows) == 2


def test_a_run_is_tested_by_its_folder_alone(run: Path, moved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "--run", str(run), *QUIET]) == 0
    assert printed(capsys, "test/accuracy") == 1.0
    # one class only, in another order: the names and their order are those of the run
    subset = moved / "subset.csv"
    subset.write_text("text,label\n" + "good good film,praise\n" * 5)
    assert main(["test", "--run", str(moved), "--data.test_file", str(subset), *QUIET]) == 0
    assert printed(capsys, "test/accuracy") == 1.0


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_predictions_stand_in_order_beside_their_rows_with_names_and_probabilities(moved: Path, suffix: str) -> None:
    new = moved / "new.csv"
    texts = ["bad " * length + "film" for length in (9, 1, 5)] + ["", "good film"]
    new.write_text("id,text\n" + "".join(f"{i},{text}\n" for i, text in enumerate(texts)))
    output = moved / f"out.{suffix}"
    checkpoint = moved / "checkpoints" / "best.ckpt"
    arguments = ["--ckpt_path", str(checkpoint), "--data.predict_file", str(new), "--data.batch_size", "2"]
    assert main(["predict", *arguments, "--predictions.file", str(output), *QUIET]) == 0
    if suffix == "csv":
        rows = list(csv.DictReader(output.open()))
        probabilities = [{name: float(row[f"probability_{name}"]) for name in ("blame", "praise")} for row in rows]
    else:
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        probabilities = [row["probabilities"] for row in rows]
    assert [str(row["id"]) for row in rows] == list("01234")
    assert [row["prediction"] for row in rows][:3] == ["blame"] * 3
    assert rows[4]["prediction"] == "praise"
    for row, shares in zip(rows, probabilities, strict=True):
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert max(shares, key=shares.__getitem__) == row["prediction"]


def test_a_failed_prediction_leaves_no_file(moved: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.csv"
    new.write_text("other\nbad film\n")
    assert main(["predict", "--run", str(moved), "--data.predict_file", str(new), *QUIET]) == 2
    assert [file.name for file in tmp_path.iterdir() if "predictions" in file.name] == []


def test_a_backbone_starts_from_another_run_bitwise(moved: Path) -> None:
    weights = torch.load(moved / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    backbone = TransformersBackbone(str(moved))
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, weights[f"backbone.{name}"])
    assert backbone.tokenizer("a film")["input_ids"][0] == backbone.tokenizer.cls_token_id


def test_load_from_checkpoint_builds_the_module_again(run: Path) -> None:
    module = FineTuner.load_from_checkpoint(run / "checkpoints" / "best.ckpt")
    weights = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert module.label_names == ("blame", "praise")
    assert module.lr == 0.01
    assert all(torch.equal(tensor, weights[name]) for name, tensor in module.state_dict().items())


def test_a_rerun_has_a_folder_of_its_own_and_a_runs_config_starts_a_new_one(run: Path, tmp_path: Path) -> None:
    for _ in range(2):
        options = ["--trainer.default_root_dir", str(tmp_path), "--trainer.max_epochs", "1", *QUIET]
        assert main(["fit", "--config", str(run / "config.yaml"), *options]) == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_a_finished_run_goes_on_in_its_folder_with_its_own_config(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    root = ["--trainer.default_root_dir", str(tmp_path)]
    assert main(["fit", "--ckpt_path", "last", *root, "--trainer.max_epochs", "3", *QUIET]) == 0
    assert [folder.name for folder in tmp_path.iterdir()] == ["run"]
    with (tmp_path / "run" / "metrics.csv").open() as stream:
        epochs = [row["epoch"] for row in csv.DictReader(stream) if row["val/loss"]]
    assert epochs == ["0", "1", "2"]


def test_a_resumed_run_that_was_moved_knows_its_best_score(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    text = (copy / "metrics.csv").read_text()
    root = ["--trainer.default_root_dir", str(tmp_path)]
    # nothing is trained, so that the best score can only be the one of the run before
    options = ["--trainer.max_epochs", "3", "--trainer.limit_val_batches", "0"]
    assert main(["fit", "--ckpt_path", "last", *root, *options, *QUIET]) == 0
    callbacks = torch.load(copy / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    (state,) = [state for name, state in callbacks.items() if name.startswith("BestCheckpoint")]
    losses = [float(row["val/loss"]) for row in csv.DictReader(text.splitlines()) if row["val/loss"]]
    assert state["best_model_score"].item() == pytest.approx(min(losses))
    assert state["best_model_path"] == "./best.ckpt"  # wherever the folder is


def test_a_rate_that_a_resumed_run_would_not_train_with_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    options = ["--trainer.default_root_dir", str(tmp_path), "--model.lr", "0.5"]
    assert main(["fit", "--ckpt_path", "last", *options, *QUIET]) == 2
    assert "lr=0.5 would have no effect: the resumed run goes on with 0.01" in capsys.readouterr().err


def test_a_recipes_own_callbacks_do_not_drop_the_checkpoints(recipe: Path, tmp_path: Path) -> None:
    options = ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "val/loss"]
    more = ["--trainer.default_root_dir", str(tmp_path), *QUIET]
    assert main(["fit", "--config", str(recipe), *options, *more]) == 0
    assert sorted(file.name for file in tmp_path.rglob("*.ckpt")) == ["best.ckpt", "last.ckpt"]


def checkpoint_after(recipe: Path, root: Path, *options: str) -> dict:
    more = ["--trainer.default_root_dir", str(root), "--trainer.max_epochs", "1", *QUIET]
    assert main(["fit", "--config", str(recipe), *options, *more]) == 0
    return torch.load(next(root.rglob("last.ckpt")), weights_only=True)


def test_a_top_level_optimizer_trains_with_its_own_rate_and_keeps_biases_from_decay(
    recipe: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "recipe.yaml"
    plain.write_text(recipe.read_text().replace("  lr: 0.01\n", ""))
    options = ["--optimizer", "SGD", "--optimizer.lr", "0.02", "--optimizer.momentum", "0.5"]
    more = ["--optimizer.weight_decay", "0.1", "--model.lr_schedule", "constant", "--model.warmup", "0"]
    (state,) = checkpoint_after(plain, tmp_path / "runs", *options, *more)["optimizer_states"]
    assert [group["weight_decay"] for group in state["param_groups"]] == [0.1, 0.0]
    assert all(group["lr"] == 0.02 and group["momentum"] == 0.5 for group in state["param_groups"])


def test_a_top_level_scheduler_is_stepped_each_epoch(recipe: Path, tmp_path: Path) -> None:
    options = ["--lr_scheduler", "ExponentialLR", "--lr_scheduler.gamma", "0.5"]
    (state,) = checkpoint_after(recipe, tmp_path, *options)["optimizer_states"]
    assert {group["lr"] for group in state["param_groups"]} == {0.005}


def test_two_rates_are_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", str(recipe), "--optimizer", "SGD", "--optimizer.lr", "0.5", *QUIET]) == 2
    assert "model.lr=0.01 and the optimizer's lr=0.5: set one of them" in capsys.readouterr().err


def test_print_config_prints_the_whole_recipe(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--config", str(recipe), "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["model"]["lr_schedule"] == "linear"


def test_fast_dev_run_writes_nothing(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", str(recipe), "--trainer.fast_dev_run", "true", *QUIET]) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_other_precisions_train(recipe: Path, tmp_path: Path, precision: str) -> None:
    checkpoint = checkpoint_after(recipe, tmp_path, "--trainer.precision", precision)
    assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())


def test_the_command_says_where_its_files_are_first_and_last(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint_after(recipe, tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    (folder,) = tmp_path.iterdir()
    assert lines[0] == lines[-1] == f"run folder: {folder}"
