"""What a recipe may have imported: other people's code is named before it runs, and with --safe it never does."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

FOREIGN = """
from pathlib import Path

Path(__file__).with_suffix(".ran").touch()
import torch
from lightning.pytorch import Callback
from lightning_ft import SequenceClassificationHead, TextClassificationData, TransformersBackbone

class Mine(Callback): pass
class Optimizer(torch.optim.SGD): pass
class Schedule(torch.optim.lr_scheduler.StepLR): pass
class Head(SequenceClassificationHead): pass
class Data(TextClassificationData): pass
class Backbone(TransformersBackbone): pass
def hook(*_): pass
"""
PLACES = {
    "trainer.callbacks": [{"class_path": "{module}.Mine"}],
    "trainer.callbacks ": ["{module}.Mine"],
    "trainer.callbacks  ": [{"class_path": "LambdaCallback", "init_args": {"setup": "{module}.hook"}}],
    "model.optimizer": {"class_path": "{module}.Optimizer", "init_args": {"lr": 0.1}},
    "optimizer": "{module}.Optimizer",
    "lr_scheduler": {"class_path": "{module}.Schedule", "init_args": {"step_size": 1}},
    "model.head": "{module}.Head",
    "model.backbone": {"class_path": "{module}.Backbone", "init_args": {"name": "bert"}},
    "data": {"class_path": "{module}.Data", "init_args": {"train_file": "a.csv"}},
}


@pytest.fixture
def recipe(tmp_path: Path, tiny_bert: Path, reviews: Callable[..., Path]) -> Callable[..., Path]:
    """Return a function that writes a recipe with a part of other people's at a place."""
    train_file = str(reviews())

    def write(place: str, value: object) -> Path:
        content: dict = {
            "model": {
                "backbone": {"class_path": "TransformersBackbone", "init_args": {"name": str(tiny_bert)}},
                "head": "SequenceClassificationHead",
            },
            "data": {"class_path": "TextClassificationData", "init_args": {"train_file": train_file}},
            "trainer": {"max_epochs": 1, "logger": False, "limit_train_batches": 1},
        }
        *parents, last = place.strip().split(".")
        part = content
        for parent in parents:
            part = part.setdefault(parent, {})
        part[last] = value
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.mark.parametrize("place", PLACES)
def test_safe_refuses_a_class_of_others_before_it_is_imported(
    command: Callable, recipe: Callable[..., Path], tmp_path: Path, place: str
) -> None:
    module = f"foreign_{sorted(PLACES).index(place)}"
    (tmp_path / f"{module}.py").write_text(FOREIGN)
    value = yaml.safe_load(yaml.safe_dump(PLACES[place]).replace("{module}", module))
    result = command("fit", "--safe", "--config", recipe(place, value))
    assert result.code == 2
    (said,) = [line for line in result.err.splitlines() if line.startswith("lightning-ft: ")]
    assert f"--safe refuses {module}." in said
    assert not (tmp_path / f"{module}.ran").exists()
    assert not (tmp_path / "runs").exists()


def test_without_it_the_class_is_named_before_it_is_imported_in_each_command(
    command: Callable, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "foreign_said.py").write_text(
        FOREIGN + "\nimport sys\nprint('now it is imported', file=sys.stderr, flush=True)"
    )
    path = recipe("trainer.callbacks", ["foreign_said.Mine"])
    result = command("fit", "--config", path)
    assert result.code == 0, result.err
    said = "the recipe names foreign_said.Mine: importing it runs its code\n"
    assert result.err.index(said) < result.err.index("now it is imported")
    assert said in command("fit", "--config", path).err
    assert command("fit", "--safe", "--config", path).code == 2  # what was allowed is so for one command


def test_safe_trains_a_recipe_of_our_own_parts(command: Callable, recipe: Callable[..., Path]) -> None:
    stopping = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss"}}
    path = recipe("trainer.callbacks", ["GradualUnfreezing", stopping, "lightning.pytorch.callbacks.RichModelSummary"])
    options = ("--trainer.max_epochs", "4", "--optimizer", "torch.optim.SGD", "--trainer.limit_train_batches", "1.0")
    result = command("fit", "--safe", "--config", path, *options)
    assert result.code == 0, result.err
    assert "importing it runs its code" not in result.err


@pytest.mark.parametrize("value", ["os.system", "subprocess.run", "jsonargparse.set_parsing_settings"])
def test_what_runs_commands_is_never_imported_for_a_recipe(
    command: Callable, recipe: Callable[..., Path], value: str
) -> None:
    result = command("fit", "--config", recipe("model.optimizer", {"class_path": value}))
    assert result.code == 2, result.err
    assert "importing it runs its code" not in result.err
