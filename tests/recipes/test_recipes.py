"""Each recipe runs offline in a fresh process, has at most 15 lines, and learns."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def run(*arguments: str, cwd: Path) -> str:
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(
        [sys.executable, "-m", "lightning_ft", *arguments], cwd=cwd, env=environment, check=True, capture_output=True
    )
    return finished.stdout.decode()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_each_recipe_runs_offline(recipe: Path, tmp_path: Path) -> None:
    run("fit", "--config", str(recipe), "--trainer.fast_dev_run=true", cwd=tmp_path)
    assert not any(tmp_path.iterdir()), "fast_dev_run leaves files behind"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_each_recipe_has_at_most_15_lines_without_comments(recipe: Path) -> None:
    lines = [line for line in recipe.read_text().splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(lines) <= 15


def test_the_digits_recipe_learns_and_its_run_tests_and_predicts_without_the_recipe(tmp_path: Path) -> None:
    recipe = next(recipe for recipe in RECIPES if recipe.stem == "image_classification")
    printed = run("fit", "--config", str(recipe), cwd=tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    assert printed.splitlines()[0] == printed.splitlines()[-1] == f"run folder: runs/{folder.name}"
    tested = run("test", "--run", str(folder), cwd=tmp_path)
    accuracy = next(line for line in tested.splitlines() if line.startswith("test/accuracy"))
    assert float(accuracy.split()[1]) > 0.9  # one class in ten is right by chance
