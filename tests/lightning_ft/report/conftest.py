"""Runs to report on: short fits of small models, one of them on data that tries to get into the page."""

import csv
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_parts import HOSTILE, fit, text_recipe


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write texts of three classes, one of them told from the others by no word."""
    words = random.Random(0)
    file = tmp_path_factory.mktemp("data") / "mails.csv"
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        for row in range(84):
            label = ("bug", "praise", "billing")[row % 3]
            mood = {"bug": ["crash", "blank", "error"], "praise": ["great", "love", "nice"]}.get(
                label, ["the", "great"]
            )
            writer.writerow([" ".join(words.choices([*mood, "app", "it"], k=words.randint(3, 12))), label])
    return file


@pytest.fixture(scope="session")
def run(tiny_bert: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train in two phases; the report is made at the end of the fit."""
    return fit(text_recipe(tiny_bert, table), tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def runs(run: Path, tiny_bert: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return that run and one of another rate and length."""
    other = text_recipe(tiny_bert, table, lr=0.03, epochs=2)
    return [run, fit(other, tmp_path_factory.mktemp("others"), "--report.at_end", "false")]


@pytest.fixture(scope="session")
def image_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small network of timm's on some of scikit-learn's digits."""
    import gzip

    from lightning_ft.resources import resolve

    root = tmp_path_factory.mktemp("digits")
    with gzip.open(resolve("package://sklearn/datasets/data/digits.csv.gz"), "rt") as stream:
        (root / "digits.csv").write_text("".join(next(stream) for _ in range(200)))
    recipe = {
        "seed_everything": 1,
        "model": {
            "backbone": {
                "class_path": "TimmBackbone",
                "init_args": {"name": "test_efficientnet", "pretrained": False},
            },
            "head": "ImageClassificationHead",
        },
        "data": {
            "class_path": "ImageClassificationData",
            "init_args": {"train_file": str(root / "digits.csv"), "image_size": 32, "augment": False, "val_size": 60},
        },
        "trainer": {"max_epochs": 1},
    }
    return fit(recipe, root / "runs")


@pytest.fixture(scope="session")
def hostile_run(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on texts, labels and a file that are markup, and give metrics, blocks and the folder such names."""
    words = random.Random(1)
    root = tmp_path_factory.mktemp("hostile")
    file = root / f"{HOSTILE[0].replace('/', ' ')}'onload='x.csv"
    marks = "\u202eevil\u2066 \u200f"
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        for row in range(72):
            text = f"{words.choice(HOSTILE)} {marks} {'long' * 60} \x1b[31m {words.choice('abcdefgh')}"
            writer.writerow([text, HOSTILE[row % 4]])
    folder = fit(text_recipe(tiny_bert, file), root / "runs")
    metric, block = f"val/{HOSTILE[1]}", f"{HOSTILE[0].replace('/', '')}{HOSTILE[3]}"
    moved = Path(shutil.move(folder, root / '"><b onclick=alert(1)>run'))
    log = (moved / "metrics.csv").read_text()
    header, rest = log.split("\n", 1)
    names = [{"val/accuracy": metric, "lr/head": f"lr/{block}"}.get(name, name) for name in header.strip().split(",")]
    with (moved / "metrics.csv").open("w", newline="") as stream:
        csv.writer(stream).writerow(names)
        stream.write(rest)
    record = (moved / "record.json").read_text().replace('"head"', json.dumps(block))
    (moved / "record.json").write_text(record)
    config = yaml.safe_load((moved / "config.yaml").read_text())
    config["best_checkpoint"] = {"monitor": metric, "mode": "max"}
    (moved / "config.yaml").write_text(yaml.safe_dump(config))
    return moved


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Start a headless Chromium."""
    place = shutil.which("chromium")
    if place is None:
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=place, args=options)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Return a function that opens a file in Chromium, and fails where the page complains or asks for something."""
    contexts = []

    def show(file: Path, width: int = 1400, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: complaints.append(request.url) if request.url[:5] not in OWN else None)
        page.goto(file.as_uri())
        page.wait_for_timeout(50)
        assert complaints == []
        return page

    yield show
    for context in contexts:
        context.close()


OWN = ("file:", "data:")
