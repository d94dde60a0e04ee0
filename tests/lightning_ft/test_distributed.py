"""Two real processes: the same run as one with the doubled batch, in one folder, resumable."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def still_bert(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a BERT without dropout, which ranks would draw differently."""
    folder = tmp_path_factory.mktemp("still") / "bert"
    shutil.copytree(tiny_bert, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def fit(root: Path, bert: Path, table: Path, ranks: int, *options: str) -> Path:
    """Run the command on one or two processes with sixteen texts a step in all; return the run's folder."""
    subprocess.run(
        [
            *(sys.executable, "-m", "lightning_ft", "fit", "--seed_everything", "3"),
            *("--model.backbone", "TransformersBackbone", "--model.backbone.name", str(bert)),
            *("--model.head", "SequenceClassificationHead", "--model.head.dropout", "0.0", "--model.lr", "0.001"),
            *("--data", "TextClassificationData", "--data.train_file", str(table)),
            *("--data.batch_size", str(16 // ranks)),
            *("--trainer.max_epochs", "2", "--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(root)),
            *("--trainer.devices", str(ranks), "--trainer.strategy", "ddp" if ranks > 1 else "auto"),
            *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
            *options,
        ],
        check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    (run,) = root.iterdir()
    return run


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 80 texts: 64 to train on, which two ranks share evenly, and 16 held out."""
    file = tmp_path_factory.mktemp("data") / "reviews.csv"
    rows = [f"{'good ' * (row % 7 + 1)}film {row},1\n{'bad ' * (row % 5 + 1)}film {row},0\n" for row in range(40)]
    file.write_text("text,label\n" + "".join(rows))
    return file


@pytest.fixture(scope="module")
def two_ranks(still_bert: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tmp_path_factory.mktemp("two") / "runs", still_bert, table, 2)


def last(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def test_two_ranks_equal_one_process_with_the_doubled_batch(
    two_ranks: Path, still_bert: Path, table: Path, tmp_path: Path
) -> None:
    one = last(fit(tmp_path / "runs", still_bert, table, 1))
    two = last(two_ranks)
    assert two["global_step"] == one["global_step"] == 8
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], tensor, atol=1e-5, rtol=1e-4)


def test_validation_of_two_ranks_counts_every_row_once(two_ranks: Path) -> None:
    text = (two_ranks / "metrics.csv").read_text()
    header, *rows = [line.split(",") for line in text.splitlines()]
    accuracies = [float(row[header.index("val/accuracy")]) for row in rows if row[header.index("val/accuracy")]]
    assert len(accuracies) == 2
    for accuracy in accuracies:
        assert accuracy * 8 == pytest.approx(round(accuracy * 8), abs=1e-5), "not a share of the eight rows held out"


def test_a_run_of_two_ranks_has_one_whole_folder(two_ranks: Path) -> None:
    assert sorted(file.name for file in two_ranks.parent.iterdir()) == [two_ranks.name]
    files = {file.name for file in two_ranks.rglob("*") if file.is_file()}
    assert {"config.yaml", "metrics.csv", "best.ckpt", "last.ckpt"} <= files
    assert not any("partial" in name for name in files)
    assert len(last(two_ranks)["rng"]) == 2


def test_two_ranks_resumed_in_mid_epoch_end_bitwise_equal(still_bert: Path, table: Path, tmp_path: Path) -> None:
    keep = [
        *("--trainer.callbacks+", "ModelCheckpoint", "--trainer.callbacks.filename", "step-{step}"),
        *("--trainer.callbacks.every_n_train_steps", "2", "--trainer.callbacks.save_top_k", "-1"),
        *("--trainer.callbacks.auto_insert_metric_name", "false"),
        # it needs a logger on every rank
        *("--trainer.callbacks+", "LearningRateMonitor"),
    ]
    whole = fit(tmp_path / "whole", still_bert, table, 2, *keep)
    moment = tmp_path / "stopped" / "run" / "checkpoints"
    moment.mkdir(parents=True)
    shutil.copy(whole / "checkpoints" / "step-6.ckpt", moment)
    resumed = last(fit(tmp_path / "stopped", still_bert, table, 2, *keep, "--ckpt_path", "last"))
    assert resumed["global_step"] == 8
    assert all(torch.equal(tensor, resumed["state_dict"][name]) for name, tensor in last(whole)["state_dict"].items())
