"""FrozenPrefixCache with the command and our own data: data unread, runs resumed, two processes, augmented views."""

import csv
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from lightning_ft import FineTuner, ImageClassificationData, ImageClassificationHead, TimmBackbone
from lightning_ft_callbacks import FrozenPrefixCache, GradualUnfreezing

SCHEDULE = """
trainer:
  callbacks:
    - class_path: GradualUnfreezing
      init_args:
        schedule:
          - {train: [head], epochs: 2}
          - {train: ["backbone.encoder.layer.1", head], steps: 5}
          - {train: ["*"]}
"""
CACHE = "    - {class_path: FrozenPrefixCache, init_args: {directory: %s, max_bytes: %d}}\n"
EPOCHS = 5
TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


def command(root: Path, bert: Path, table: Path, config: Path, *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "lightning_ft", "fit", "--config", str(config), "--seed_everything", "3"),
        *("--model.backbone", "TransformersBackbone", "--model.backbone.name", str(bert)),
        *("--model.head", "SequenceClassificationHead", "--model.lr", "0.003"),
        *("--data", "TextClassificationData", "--data.train_file", str(table), "--data.batch_size", "8"),
        *("--trainer.max_epochs", str(EPOCHS), "--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(root)),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
        *("--trainer.log_every_n_steps", "1", "--last_checkpoint.every_n_train_steps", "1"),
        *options,
    ]


def environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def fit(root: Path, bert: Path, table: Path, config: Path, *options: str) -> Path:
    done = subprocess.run(
        command(root, bert, table, config, *options), capture_output=True, text=True, env=environment(), timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "no longer used" not in done.stderr
    (run,) = root.iterdir()
    return run


def losses(run: Path) -> dict[int, float]:
    with (run / "metrics.csv").open() as stream:
        return {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(stream) if row.get("train/loss")}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def assert_same(one: Path, other: Path, kills: int = 0) -> None:
    mine, theirs = losses(one), losses(other)
    assert theirs.keys() <= mine.keys()
    # Lightning logs a step behind its checkpoint: killed right between the two, that one row is not there
    assert len(mine) - len(theirs) <= kills
    assert max(mine) in theirs
    assert all(mine[step] == pytest.approx(theirs[step], abs=1e-4) for step in theirs)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(other)[name], tensor, atol=1e-4, rtol=1e-3)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "reviews.csv"
    rows = [f"{'good ' * (row % 7 + 1)}film {row},1\n{'bad ' * (row % 5 + 1)}film {row},0\n" for row in range(30)]
    file.write_text("text,label\n" + "".join(rows))
    return file


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "plain.yaml"
    file.write_text(SCHEDULE)
    return file


def cached(folder: Path, max_bytes: int = 10**9) -> Path:
    """Write a configuration with the cache, whose files go into a folder."""
    file = folder / "cached.yaml"
    file.write_text(SCHEDULE + CACHE % (folder / "cache", max_bytes))
    return file


@pytest.fixture(scope="module")
def without(tiny_bert: Path, table: Path, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tmp_path_factory.mktemp("without") / "runs", tiny_bert, table, plain)


def test_a_run_with_it_is_the_run_without_it(without: Path, tiny_bert: Path, table: Path, tmp_path: Path) -> None:
    assert_same(without, fit(tmp_path / "runs", tiny_bert, table, cached(tmp_path)))


@pytest.fixture(scope="module")
def two_ranks(tiny_bert: Path, table: Path, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tmp_path_factory.mktemp("two") / "runs", tiny_bert, table, plain, *TWO)


KILL = """
import os, signal
from lightning.pytorch import Callback

class Killed(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["fill", "phase"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_in_mid_fill_or_mid_phase_and_resumed_it_is_the_run_without_it(
    ranks: int, when: str, tiny_bert: Path, table: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    epoch = 8 // ranks  # steps
    step = epoch // 2 + (epoch if when == "phase" else 0)
    (tmp_path / "killed.py").write_text(KILL)
    config, root, files = cached(tmp_path, max_bytes=0), tmp_path / "runs", tmp_path / "cache"
    options = TWO if ranks == 2 else ()
    kill = ("--trainer.callbacks+=killed.Killed", f"--trainer.callbacks.step={step}")
    killed = subprocess.run(
        command(root, tiny_bert, table, config, *options, *kill),
        capture_output=True,
        text=True,
        env=environment() | {"PYTHONPATH": str(tmp_path)},
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    (run,) = root.iterdir()
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == step
    assert list(files.glob("fit-*/training-*/segment-*.bin")), "nothing was kept yet"
    resumed = fit(root, tiny_bert, table, config, *options, "--ckpt_path", "last")
    assert_same(request.getfixturevalue("two_ranks" if ranks == 2 else "without"), resumed, kills=1)
    assert not list(files.glob("fit-*")), "what the killed run left is still there"


def is_left_behind(folder: Path) -> bool:
    """Tell whether no fit that lives, as those of tests beside this one, has locked a folder."""
    try:
        with (folder / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:  # it begins or ends
        return folder.exists() and time.time() - folder.stat().st_mtime > 10
    except BlockingIOError:
        return False
    return True


@pytest.mark.parametrize("max_bytes", [10**9, 0])
def test_two_processes_share_what_they_keep(
    two_ranks: Path, max_bytes: int, tiny_bert: Path, table: Path, tmp_path: Path
) -> None:
    config = cached(tmp_path, max_bytes)
    assert_same(two_ranks, fit(tmp_path / "runs", tiny_bert, table, config, *TWO))
    assert not [folder for folder in Path("/dev/shm").glob("lightning-ft-fit-*") if is_left_behind(folder)]
    assert not list((tmp_path / "cache").glob("fit-*"))


# our own data in Python


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write small pictures of two classes."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for number in range(24):
        place = folder / ("dark" if number % 2 else "bright")
        place.mkdir(exist_ok=True)
        pixels = torch.randint(0, 128, (40, 40, 3), generator=generator) + 127 * (number % 2 == 0)
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(place / f"{number}.png")
    return folder


class Notes(Callback):
    """Notes losses, and how many pictures were read in each epoch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from lightning_ft.data import images

        self.losses: list[float] = []
        self.read: list[int] = []
        self.count = 0
        real = images.Images.__getitem__

        def counted(this: Any, index: int) -> Any:
            self.count += 1
            return real(this, index)

        monkeypatch.setattr(images.Images, "__getitem__", counted)

    def on_train_epoch_start(self, *_: Any) -> None:
        self.count = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.losses.append(outputs["loss"].item())

    def on_train_epoch_end(self, *_: Any) -> None:
        self.read.append(self.count)


def train(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, *callbacks: Callback, augment: bool = False, epochs: int = 3
) -> Notes:
    seed_everything(0, verbose=False)
    backbone = TimmBackbone("resnet10t", pretrained=False)
    module = FineTuner(backbone, lambda info: ImageClassificationHead(info, num_classes=2), lr=1e-3)
    data = ImageClassificationData(str(pictures), image_size=32, batch_size=4, val_size=8, test_size=0, augment=augment)
    with monkeypatch.context() as patch:
        notes = Notes(patch)
        Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=[GradualUnfreezing([{"train": ["backbone.layer4", "head"]}]), notes, *callbacks],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        ).fit(module, datamodule=data)
    return notes


def test_pictures_are_not_read_again(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without, cached = train(pictures, monkeypatch), train(pictures, monkeypatch, FrozenPrefixCache())
    assert cached.losses == pytest.approx(without.losses, abs=1e-4)
    assert without.read[1:] == [24, 24]
    assert cached.read[1:] == [8, 8]  # four of training and of validation, looked at once an epoch


def test_pictures_that_are_kept_serve_a_second_run_until_one_changes(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run() -> tuple[Notes, dict[Path, int]]:
        notes = train(pictures, monkeypatch, FrozenPrefixCache(directory=str(tmp_path / "kept"), keep=True))
        return notes, {file: file.stat().st_mtime_ns for file in (tmp_path / "kept").rglob("segment*")}

    (first, kept), (second, kept_after) = run(), run()
    assert kept
    assert kept_after == kept  # what is not used is kept anew
    assert second.losses == pytest.approx(first.losses, abs=1e-4)
    changed = next(path for path in sorted(pictures.rglob("*")) if path.is_file())
    os.utime(changed, ns=(1, 1))
    assert len(run()[1]) > len(kept)


def test_random_augmentation_is_refused_with_what_to_change(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="turn random augmentation off, or give views=K"):
        train(pictures, monkeypatch, FrozenPrefixCache(), augment=True)


def test_views_repeat_after_as_many_epochs(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = train(pictures, monkeypatch, FrozenPrefixCache(views=2), augment=True, epochs=5)
    without = train(pictures, monkeypatch, augment=True, epochs=5)
    assert cached.losses[:8] == pytest.approx(without.losses[:8], abs=1e-4)  # the first two epochs are as ever
    assert cached.losses[8:] != pytest.approx(without.losses[8:], abs=1e-4)
    assert cached.read[2:] == [8, 8, 8]
    assert cached.read[1] == 16 + 4  # the second view of the training pictures; those of validation are looked at


def test_a_backbone_runs_up_to_a_block_and_from_it(tiny_bert: Path) -> None:
    from lightning_ft import TransformersBackbone

    backbone = TransformersBackbone(str(tiny_bert)).eval()
    inputs = {"input_ids": torch.randint(5, 20, (3, 6)), "attention_mask": torch.ones(3, 6, dtype=torch.long)}
    inputs["attention_mask"][1, 4:] = 0
    whole = backbone(inputs)
    state = backbone.prefix(inputs, "encoder.layer.1")
    assert state.kept[0].shape[:2] == (3, 6)
    torch.testing.assert_close(backbone.suffix(state, "encoder.layer.1").states, whole.states)
    with pytest.raises(ValueError, match=r"no block 'encoder.layer.9'.*did you mean 'encoder.layer.1'"):
        backbone.prefix(inputs, "encoder.layer.9")
    with pytest.raises(ValueError, match=r"made up to 'encoder.layer.1', not 'encoder.layer.0'"):
        backbone.suffix(state, "encoder.layer.0")
    with pytest.raises(ValueError, match="is in train mode"):
        backbone.train().prefix(inputs, "encoder.layer.1")


def test_a_pyramid_runs_from_a_block_with_the_maps_of_lower_ones() -> None:
    backbone = TimmBackbone("resnet10t", pretrained=False, pyramid=True).eval()
    inputs = {"pixel_values": torch.randn(2, 3, 64, 64)}
    state = backbone.prefix(inputs, "layer3")
    for true, found in zip(backbone(inputs).maps, backbone.suffix(state, "layer3").maps, strict=True):
        torch.testing.assert_close(found, true)


def test_two_runs_share_a_directory(tiny_bert: Path, table: Path, without: Path, tmp_path: Path) -> None:
    config = cached(tmp_path)
    config.write_text(config.read_text().replace("max_bytes: 1000000000", "keep: true"))
    roots = [tmp_path / "one", tmp_path / "two"]
    processes = [
        subprocess.Popen(command(root, tiny_bert, table, config), env=environment(), stderr=subprocess.PIPE, text=True)
        for root in roots
    ]
    for process, root in zip(processes, roots, strict=True):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
        (run,) = root.iterdir()
        assert_same(without, run)
    kept = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert kept
    assert not any(name.startswith("fit-") for name in kept)
    assert_same(without, fit(tmp_path / "three", tiny_bert, table, config))
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == kept
    shutil.rmtree(tmp_path / "cache")
