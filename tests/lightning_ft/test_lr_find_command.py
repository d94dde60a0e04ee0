"""The command with a range test: lr_find, and a fit that tests first."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml


@pytest.fixture
def recipe(tiny_bert: Path, reviews: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a recipe with the given callbacks."""

    def write(*callbacks: Any) -> Path:
        content = {
            "seed_everything": 1,
            "model": {
                "backbone": {"class_path": "TransformersBackbone", "init_args": {"name": str(tiny_bert)}},
                "head": "SequenceClassificationHead",
                "lr": 1e-3,
            },
            "data": {
                "class_path": "TextClassificationData",
                "init_args": {"train_file": str(reviews(num_rows=320)), "batch_size": 64},
            },
            "trainer": {"max_epochs": 2, "log_every_n_steps": 1, "callbacks": list(callbacks) or None},
        }
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    return write


def finder(**options: Any) -> dict[str, Any]:
    return {"class_path": "LRFinder", "init_args": {"num_steps": 60, "min_lr": 1e-5, **options}}


def test_lr_find_tells_the_rate_and_trains_nothing(command: Any, recipe: Any, tmp_path: Path) -> None:
    result = command("lr_find", "--config", recipe(finder()))
    assert result.code == 0, result.err
    (run,) = (tmp_path / "runs").iterdir()
    (test,) = json.loads((run / "lr_finder.json").read_text())["tests"]
    assert f"train at it with: --model.lr {test['lr']:.2g}" in result.out
    assert f"run folder: runs/{run.name}" in result.out
    assert {path.name for path in run.iterdir() if "tfevents" not in path.name} == {
        "config.yaml",
        "lr_finder.json",
        "lr_finder.png",
    }


def test_lr_find_needs_no_callback_in_the_recipe(command: Any, recipe: Any) -> None:
    result = command("lr_find", "--config", recipe(), "--trainer.logger", "false")
    assert result.code == 0, result.err
    assert "auto *" in result.out


def test_a_fit_that_tests_first_trains_at_the_rate_found_and_resumes_with_it(
    command: Any, recipe: Any, tmp_path: Path
) -> None:
    file = recipe(finder(), "LearningRateMonitor")
    assert command("fit", "--config", file, "--trainer.max_epochs", "1").code == 0
    (run,) = (tmp_path / "runs").iterdir()
    result = command("fit", "--config", file, "--ckpt_path", "last")
    assert result.code == 0, result.err
    (test,) = json.loads((run / "lr_finder.json").read_text())["tests"]
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    (state,) = checkpoint["lr_schedulers"]
    assert state["base_lrs"] == pytest.approx([test["lr"]] * len(state["base_lrs"]))


def test_a_wrong_option_is_told_in_one_sentence(command: Any, recipe: Any) -> None:
    result = command("lr_find", "--config", recipe(finder(suggestion="vally")))
    assert result.code == 2
    assert result.err.splitlines()[-1] == "lightning-ft: no suggestion 'vally'; did you mean 'valley'?"


def test_two_callbacks_of_one_class_are_told_in_one_sentence(command: Any, recipe: Any) -> None:
    result = command("fit", "--config", recipe(finder(), finder()))
    assert result.code == 2
    assert "more than one stateful callback of type `LRFinder`" in result.err.splitlines()[-1]


def test_one_rate_is_found_for_all_phases_also_where_the_recipe_tests_each(command: Any, recipe: Any) -> None:
    phases = {"class_path": "GradualUnfreezing", "init_args": {"schedule": "lp_ft"}}
    for options in ({}, {"each_phase": True}):
        result = command("lr_find", "--config", recipe(phases, finder(trial_steps=0, **options)))
        assert result.code == 0, result.err
        assert "tested: all, which phase 1 trains" in result.out


def test_a_misspelt_callback_or_option_is_told_with_the_nearest(command: Any, recipe: Any) -> None:
    result = command("lr_find", "--config", recipe({"class_path": "LRFindr"}))
    assert result.err.splitlines()[-1].endswith("no class 'LRFindr'; did you mean 'LRFinder'?")
    result = command("lr_find", "--config", recipe(finder(sugestion="valley")))
    assert result.err.splitlines()[-1].endswith("init_args.sugestion'; did you mean 'suggestion'?")
