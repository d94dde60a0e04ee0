"""Finished runs to export: short fits of small models on real formats of data."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from lightning_ft.__main__ import main
from lightning_ft.export.command import export
from lightning_ft.run.finished_run import FinishedRun, finished_run

QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
LABELS = ("billing", "bug: `x` | **y**\n---\n<b>", "praise")


@pytest.fixture(scope="session")
def fit(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that trains a recipe for an epoch and returns the run's folder; keywords are its keys."""

    def run(recipe: dict, *options: str) -> Path:
        root = tmp_path_factory.mktemp("runs")
        file = root / "recipe.yaml"
        file.write_text(yaml.safe_dump({"seed_everything": 1, "trainer": {"max_epochs": 1}, **recipe}))
        environment = dict(os.environ)
        with torch.random.fork_rng():
            assert main(["fit", "--config", str(file), f"--trainer.default_root_dir={root}", *QUIET, *options]) == 0
        os.environ.clear()
        os.environ.update(environment)
        (checkpoint,) = root.glob("*/checkpoints/best.ckpt")
        (checkpoint.parent / "last.ckpt").unlink()  # large files stay no longer than they are needed
        return checkpoint.parent.parent

    return run


@pytest.fixture(scope="session")
def mails(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a table of texts of several lengths, whose labels would break a card that took them as they are."""
    draw = random.Random(0)
    file = tmp_path_factory.mktemp("data") / "mails.jsonl"
    words = {LABELS[0]: "charged twice refund", LABELS[1]: "crash fails blank", LABELS[2]: "love great thanks"}
    rows = [
        {"text": " ".join(draw.choices(words[label].split(), k=draw.randint(2, 20))), "label": label}
        for label in LABELS
        for _ in range(14)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def _text(model: Path, mails: Path, head: dict, **backbone: object) -> dict:
    return {
        "model": {
            "backbone": {"class_path": "TransformersBackbone", "init_args": {"name": str(model), **backbone}},
            "head": {"class_path": "SequenceClassificationHead", "init_args": head},
            "lr": 0.01,
        },
        "data": {
            "class_path": "TextClassificationData",
            "init_args": {"train_file": str(mails), "batch_size": 8, "max_length": 24},
        },
    }


@pytest.fixture(scope="session")
def cls_run(fit: Callable[..., Path], tiny_bert: Path, mails: Path) -> Path:
    """Return a run of BERT with the first token."""
    return fit(_text(tiny_bert, mails, {"pooling": "cls"}))


@pytest.fixture(scope="session")
def mean_run(fit: Callable[..., Path], tiny_bert: Path, mails: Path) -> Path:
    """Return a run of BERT with the mean of the tokens and a hidden layer, in bfloat16."""
    return fit(_text(tiny_bert, mails, {"pooling": "mean", "hidden_size": 8}), "--trainer.precision=bf16-mixed")


@pytest.fixture(scope="session")
def lora_run(fit: Callable[..., Path], tiny_bert: Path, mails: Path) -> Path:
    """Return a run of BERT with adapters."""
    return fit(_text(tiny_bert, mails, {"pooling": "cls"}, lora={"r": 4}))


@pytest.fixture(scope="session")
def gpt2_run(fit: Callable[..., Path], tiny_gpt2: Path, mails: Path) -> Path:
    """Return a run of GPT-2 with the last token."""
    return fit(_text(tiny_gpt2, mails, {"pooling": "last"}))


@pytest.fixture(scope="session")
def language_run(fit: Callable[..., Path], tiny_gpt2: Path, mails: Path) -> Path:
    """Return a run of GPT-2 as a language model, on packed texts."""
    return fit(
        {
            "model": {
                "backbone": {"class_path": "TransformersBackbone", "init_args": {"name": str(tiny_gpt2)}},
                "head": "CausalLMHead",
            },
            "data": {
                "class_path": "LanguageModelingData",
                "init_args": {"train_file": str(mails), "batch_size": 2, "val_size": 6},
            },
        }
    )


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of noisy images of three colours and several sizes."""
    from PIL import Image

    draw = random.Random(0)
    root = tmp_path_factory.mktemp("images")
    for name, colour in (("red", (200, 30, 30)), ("green", (30, 200, 30)), ("blue", (30, 30, 200))):
        (root / name).mkdir()
        for number in range(12):
            size = draw.randint(40, 90), draw.randint(40, 90)
            noise = Image.effect_noise(size, 60).convert("RGB")
            Image.blend(noise, Image.new("RGB", size, colour), 0.6).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def timm_run(fit: Callable[..., Path], images: Path) -> Path:
    """Return a run of a small ResNet of timm, on images of another size than its own."""
    return fit(
        {
            "model": {
                "backbone": {"class_path": "TimmBackbone", "init_args": {"name": "test_resnet", "pretrained": False}},
                "head": "ImageClassificationHead",
            },
            "data": {
                "class_path": "ImageClassificationData",
                "init_args": {"train_file": str(images), "batch_size": 8, "image_size": 64},
            },
        }
    )


@pytest.fixture(scope="session")
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function from a run's fixture and a format to the exported folder, which is written once."""
    folders: dict[tuple, Path] = {}

    def folder(run: str, name: str, dtype: str = "float32") -> Path:
        key = (run, name, dtype)
        if key not in folders:
            target = tmp_path_factory.mktemp("exported") / name
            folders[key], _, _ = export(request.getfixturevalue(run), name, output=target, dtype=dtype)
        return folders[key]

    return folder


@pytest.fixture
def trained(request: pytest.FixtureRequest) -> Callable[[str], FinishedRun]:
    """Return a function from the name of a run's fixture to the run, its adapters merged."""
    return lambda name: finished_run(request.getfixturevalue(name), merge=True)


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Return a function that copies a run, so that a test can change it."""
    return lambda run: Path(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("export")))
