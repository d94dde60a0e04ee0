"""What the tests of the report share: names that try to get into the page, and a story of any size."""

import base64
import os
from pathlib import Path
from typing import Any

import torch
import yaml

from lightning_ft.__main__ import main
from lightning_ft.report.calibration import Calibration
from lightning_ft.report.classes import class_scores
from lightning_ft.report.evaluation import Evaluation
from lightning_ft.report.history import History, Validation
from lightning_ft.report.mistakes import Mistake
from lightning_ft.report.movement import Movement
from lightning_ft.report.phases import phases_of
from lightning_ft.report.record import PhaseRecord, RunRecord
from lightning_ft.report.story import Story

QUIET = (
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false", "--trainer.log_every_n_steps", "1"),
)
PHASES = "lp_ft"  # the head for an epoch, then all


def fit(recipe: dict[str, Any], root: Path, *options: str) -> Path:
    """Train by the command, and return the run's folder."""
    root.mkdir(parents=True, exist_ok=True)
    file = root / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    environment = dict(os.environ)
    before = set(root.iterdir())
    try:
        with torch.random.fork_rng():
            code = main(["fit", "--config", str(file), "--trainer.default_root_dir", str(root), *options, *QUIET])
    finally:
        os.environ.clear()
        os.environ.update(environment)
    assert code == 0
    (folder,) = set(root.iterdir()) - before
    return folder


def text_recipe(model: Path, table: Path, lr: float = 0.003, epochs: int = 3) -> dict[str, Any]:
    return {
        "seed_everything": 1,
        "model": {
            "backbone": {"class_path": "TransformersBackbone", "init_args": {"name": str(model)}},
            "head": "SequenceClassificationHead",
            "lr": lr,
        },
        "data": {
            "class_path": "TextClassificationData",
            "init_args": {"train_file": str(table), "batch_size": 8, "val_size": 24, "test_size": 4},
        },
        "trainer": {
            "max_epochs": epochs,
            "callbacks": [
                {"class_path": "GradualUnfreezing", "init_args": {"schedule": PHASES}},
                {"class_path": "DiscriminativeLR", "init_args": {"decay": 0.7}},
            ],
        },
    }


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</svg></title><b>bold</b>",
    "{{7*7}}{% raw %}$\\frac{1}$",
)
# the elements that our pages are made of
OURS = {
    *("html", "head", "meta", "title", "link", "style", "body", "main", "header", "footer", "section", "div", "span"),
    *("p", "h1", "h2", "h3", "b", "bdi", "small", "strong", "ul", "li", "dl", "dt", "dd", "details", "summary", "pre"),
    *("a", "i", "img", "figure", "figcaption", "table", "thead", "tbody", "tr", "th", "td"),
    *("svg", "g", "path", "use", "defs", "clippath", "rect", "text", "tspan", "image", "desc"),
}


def worst_story(num_classes: int, num_steps: int, num_blocks: int) -> Story:
    """Return a story of many classes, steps and blocks, with names and texts that are long."""
    draw = torch.Generator().manual_seed(0)
    names = tuple(f"class {number} " + "long name " * 40 for number in range(num_classes))
    logits = torch.randn(3000, num_classes, generator=draw)
    targets = torch.randint(num_classes, (3000,), generator=draw)
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.long)
    matrix.index_put_((targets, logits.argmax(1)), torch.tensor(1), accumulate=True)
    evaluation = Evaluation(
        3000,
        9000,
        "multiclass",
        names,
        {f"metric {i}": 0.5 for i in range(20)},
        {"confusion_matrix": matrix},
        logits,
        targets,
    )
    blocks = [f"backbone.encoder.a_layer_of_some_kind.{number}" for number in range(num_blocks)]
    every = max(1, num_steps // 20_000)
    history = History(
        [(step, 1 / (1 + step)) for step in range(0, num_steps, every)],
        [Validation(epoch, epoch, {"val/loss": 1.0, "val/accuracy": 0.5}) for epoch in range(500)],
        [
            (step, {block: 1e-3 + step * 1e-9 + i * 1e-6 for i, block in enumerate(blocks)})
            for step in range(0, num_steps, num_steps // 300)
        ],
    )
    record = RunRecord(
        [PhaseRecord(i, i * num_steps // 40, blocks[: i + 1], 10**6, 3.0, 10**9) for i in range(40)],
        dict.fromkeys(blocks, 1000),
        [(step, 1e-3) for step in range(400)],
        {"torch": "2"},
        "cpu",
        1,
        "32-true",
        {"train": 9, "val": 9000},
        {"train": "0" * 16},
        1,
        True,
    )
    curve = {name: [1e-6 * 1.01**i for i in range(1000)] for name in ("lrs", "losses", "raw")}
    test: dict[str, Any] = {"lr": 1e-3, "phase": 0, "interval": None, "candidates": {}, "curve": curve}
    picture = base64.b64encode(os.urandom(8000)).decode()
    long = "<&>" * 10_000
    return Story(
        name="run" * 50,
        config={
            "model": {"backbone": {"class_path": "a.B", "init_args": {"name": long}}, "head": "H"},
            "data": {"class_path": "a.D", "init_args": {f"key{i}": long for i in range(50)}},
        },
        record=record,
        history=history,
        score="val/accuracy",
        best=history.validations[-1],
        noise=0.01,
        num_rows=9000,
        phases=phases_of(history, record, "val/accuracy", low=False),
        tests=[test] * 30,
        evaluation=evaluation,
        calibration=Calibration.of(logits, targets),
        classes=class_scores(evaluation),
        mistakes=[Mistake(i, names[0], names[1], 0.9, long, picture) for i in range(12)],
        movements=[Movement(block, 1000, 0.01) for block in blocks],
    )
