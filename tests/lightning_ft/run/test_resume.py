"""A run stopped after any batch and resumed ends bitwise equal to one that never stopped."""

import csv
import random
import re
import shutil
from pathlib import Path

import pytest
import torch

from lightning_ft.__main__ import main

NUM_STEPS = 9  # 20 rows, batches of 8: two whole ones and a short one in each of three epochs
EVERY_STATE = ("state_dict", "optimizer_states", "lr_schedulers", "rng", "epoch", "global_step")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write texts of different lengths, so that bucketing has something to sort."""
    words = random.Random(0)
    file = tmp_path_factory.mktemp("data") / "reviews.csv"
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        for row in range(26):
            mood = ["good", "fine", "nice"] if row % 2 else ["bad", "poor", "dull"]
            writer.writerow([" ".join(words.choices(mood, k=words.randint(2, 20))), row % 2])
    return file


def fit(root: Path, tiny_bert: Path, table: Path, *options: str) -> int:
    """Run the command with dropout, shuffling and bucketing on, and a checkpoint after every batch."""
    return main(
        [
            *("fit", "--seed_everything", "3", "--debug"),
            *("--model.backbone", "TransformersBackbone", "--model.backbone.name", str(tiny_bert)),
            *("--model.head", "SequenceClassificationHead", "--model.lr", "0.01"),
            *("--data", "TextClassificationData", "--data.train_file", str(table), "--data.batch_size", "8"),
            *("--data.val_size", "3", "--data.test_size", "3"),
            *("--trainer.max_epochs", "3", "--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(root)),
            *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
            *("--trainer.log_every_n_steps", "1", "--last_checkpoint.every_n_train_steps", "1"),
            *options,
        ]
    )


def keep_every_checkpoint(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Keep a copy of each ``last.ckpt`` beside the metrics as they were then, as a kill at that moment leaves them."""
    from lightning_ft.run.checkpoints import LastCheckpoint

    save = LastCheckpoint._save

    def save_and_keep(self: LastCheckpoint, trainer) -> None:
        save(self, trainer)
        epoch_end = trainer.fit_loop.epoch_progress.current.processed == trainer.fit_loop.epoch_progress.current.started
        moment = folder / f"{trainer.global_step}{'-end' if epoch_end else ''}"
        moment.mkdir(parents=True)
        shutil.copytree(Path(self.dirpath).parent, moment / "run")

    monkeypatch.setattr(LastCheckpoint, "_save", save_and_keep)


def final_state(root: Path) -> dict:
    (run,) = root.iterdir()
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return {key: checkpoint[key] for key in EVERY_STATE}


def metrics(root: Path) -> str:
    (run,) = root.iterdir()
    return (run / "metrics.csv").read_text()


def same(one: object, other: object) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize(
    ("options", "moments"),
    [
        pytest.param([], "1 2 3-end 4 5 6-end 7 8 9-end", id="linear"),
        pytest.param(
            ["--model.lr_schedule", "plateau", "--data.num_workers", "2"], "1 2 3-end 4 5 6-end 7 8 9-end", id="plateau"
        ),
        pytest.param(
            ["--model.lr_schedule", "one_cycle", "--trainer.accumulate_grad_batches", "2"],
            "1 2-end 3 4-end 5 6-end",
            id="accumulation",
        ),
        pytest.param(["--trainer.val_check_interval", "2"], "1 2 3-end 4 5 6-end 7 8 9-end", id="mid-epoch-validation"),
        pytest.param(
            ["--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "1"], "1 2 3-end 4 5 6-end 7 8 9-end", id="epochs"
        ),
    ],
)
def test_a_run_resumed_from_any_checkpoint_ends_bitwise_equal(
    options: list[str], moments: str, tmp_path: Path, tiny_bert: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        keep_every_checkpoint(patch, tmp_path / "moments")
        assert fit(tmp_path / "whole", tiny_bert, table, *options) == 0
    whole, rows = final_state(tmp_path / "whole"), metrics(tmp_path / "whole")
    assert {moment.name for moment in (tmp_path / "moments").iterdir()} == set(moments.split())
    for name in moments.split():
        moment = tmp_path / "moments" / name
        assert fit(moment, tiny_bert, table, *options, "--ckpt_path", "last") == 0
        assert same(final_state(moment), whole), f"resumed at {name}"
        assert metrics(moment) == rows, f"resumed at {name}"
        assert len(list(moment.iterdir())) == 1, "the resumed run has made a folder of its own"


def test_the_newest_whole_checkpoint_is_resumed_and_one_cut_short_passed_over(
    tmp_path: Path, tiny_bert: Path, table: Path
) -> None:
    assert fit(tmp_path / "whole", tiny_bert, table) == 0
    assert fit(tmp_path / "cut", tiny_bert, table, "--trainer.max_epochs", "2") == 0
    (run,) = (tmp_path / "cut").iterdir()
    whole = (run / "checkpoints" / "last.ckpt").read_bytes()
    (run / "checkpoints" / "newer.ckpt").write_bytes(whole[: len(whole) // 2])
    # the schedule of a longer run differs from the first step on: what is compared is that it goes on at all
    assert fit(tmp_path / "cut", tiny_bert, table, "--ckpt_path", "last") == 0
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == NUM_STEPS


def test_a_checkpoint_of_other_data_is_refused(
    tmp_path: Path, tiny_bert: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path / "run", tiny_bert, table, "--trainer.max_epochs", "1") == 0
    shorter = tmp_path / "shorter.csv"
    shorter.write_text("".join(table.open().readlines()[:-3]))
    capsys.readouterr()
    assert fit(tmp_path / "run", tiny_bert, shorter, "--ckpt_path", "last") == 2
    assert re.search(r"trained on 20 rows, but .*shorter.csv' gives 17", capsys.readouterr().err)


def test_another_batch_size_is_refused_in_mid_epoch_alone(
    tmp_path: Path, tiny_bert: Path, table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        keep_every_checkpoint(patch, tmp_path)
        assert fit(tmp_path / "whole", tiny_bert, table) == 0
    assert fit(tmp_path / "2", tiny_bert, table, "--data.batch_size", "4", "--ckpt_path", "last") == 2
    assert "behind 2 batches of 8 samples" in capsys.readouterr().err
    assert fit(tmp_path / "3-end", tiny_bert, table, "--data.batch_size", "4", "--ckpt_path", "last") == 0
