"""Each recipe runs offline in a fresh process, and has at most 15 lines."""

from pathlib import Path

import pytest
from recipe_runs import RECIPES, run


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_each_recipe_runs_offline(recipe: Path, tmp_path: Path) -> None:
    run("fit", "--config", str(recipe), "--trainer.fast_dev_run=true", cwd=tmp_path)
    assert not any(tmp_path.iterdir()), "fast_dev_run leaves files behind"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_each_recipe_has_at_most_15_lines_without_comments(recipe: Path) -> None:
    lines = [line for line in recipe.read_text().splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(lines) <= 15


def test_the_sentiment_recipe_trains_its_head_on_kept_layers(tmp_path: Path) -> None:
    (sentiment,) = (recipe for recipe in RECIPES if recipe.stem == "sentiment")
    planned = run("plan", "--config", str(sentiment), cwd=tmp_path)
    (row,) = (line for line in planned.splitlines() if line.startswith("│ 0 "))
    assert "┃ cached ┃" in planned
    assert row.split("│")[-2].strip().startswith("0%")
