"""The command: a default that fits, nothing half written, nothing overwritten, one sentence where it cannot be."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_ft import load_exported


def sentence(result: Any) -> str:
    """Return what a command that failed said."""
    assert result.code == 2, result
    return result.err.splitlines()[-1].removeprefix("lightning-ft: ")


def names_in(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} if folder.exists() else set()


@pytest.mark.parametrize(("run", "name"), [("cls_run", "transformers"), ("timm_run", "timm")])
def test_the_default_is_the_library_of_the_backbone(
    run: str, name: str, command: Callable, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    result = command("export", request.getfixturevalue(run), "--output", "out")
    assert result.code == 0, result.err
    assert f"format: {name}, equal to the run's model on real rows" in result.out
    assert result.out.splitlines()[-1] == "exported: out"
    assert {"config.json", "model.safetensors", "README.md"} <= names_in(tmp_path / "out")
    assert names_in(tmp_path) == {"out"}


def test_where_the_library_has_no_place_for_the_head_the_default_is_safetensors_and_says_why(
    command: Callable, mean_run: Path, tmp_path: Path
) -> None:
    result = command("export", mean_run, "--output=out")
    assert result.code == 0
    assert "no transformers folder: BertForSequenceClassification cannot be this run's model" in result.out
    assert "pooling='mean' and a hidden layer" in result.out
    assert load_exported(tmp_path / "out").label_names is not None


def test_a_folder_is_replaced_only_where_asked_and_only_one_of_an_export(
    command: Callable, cls_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    options = ("export", cls_run, "--format=safetensors", "--output=out")
    assert "'out' is there already: give --overwrite" in sentence(command(*options))
    assert "is no folder that an export wrote" in sentence(command(*options, "--overwrite"))
    assert names_in(tmp_path / "out") == {"thesis.tex"}
    (tmp_path / "out" / "thesis.tex").rename(tmp_path / "out" / "README.md")
    assert command(*options, "--overwrite").code == 0
    assert "years of work" not in (tmp_path / "out" / "README.md").read_text()
    assert names_in(tmp_path) == {"out"}


def test_an_export_that_is_not_the_model_leaves_nothing(
    command: Callable, gpt2_run: Path, copied: Callable[[Path], Path], tmp_path: Path
) -> None:
    # its padding is the token that ends a text: where a text has it at its end, transformers reads the token before
    run = copied(gpt2_run)
    rows = tmp_path / "rows.csv"
    rows.write_text("text\ncharged twice<|endoftext|>\nlove<|endoftext|>\n")
    said = sentence(command("export", run, "--format=transformers", "--rows", rows))
    assert "--format transformers: GPT2ForSequenceClassification cannot be this run's model" in said
    assert "what comes nearest differs by" in said
    assert "formats for it: safetensors, onnx, torch" in said
    assert names_in(run / "export") == set()


def test_a_full_disk_leaves_what_was_there(command: Callable, cls_run: Path, tmp_path: Path) -> None:
    options = ("export", cls_run, "--format=safetensors", "--output=out")
    assert command(*options).code == 0
    before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))  # no larger file can be written
    try:
        result = command(*options, "--overwrite")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert result.code == 2
    assert {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()} == before
    assert names_in(tmp_path) == {"out"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("{cls_run}", "--format=tims"), "expected transformers, timm, safetensors, onnx, torch, peft, but got 'tims'"),
        (("{cls_run}", "--fromat=timm"), "no option --fromat; did you mean '--format'?"),
        (("{cls_run}", "--format=timm"), "--format timm: TransformersBackbone is no model of timm; formats for it: tr"),
        (("{timm_run}", "--format=transformers"), "TimmBackbone is no model of transformers; formats for it: timm"),
        (("{cls_run}", "--format=peft"), "--format peft: the run trained no adapters: its backbone has no lora"),
        (("{cls_run}", "--format=onnx", "--dtype=float16"), "--format onnx is written in float32 only"),
        (("nowhere",), "no such run: 'nowhere'"),
        (("last",), "no whole checkpoint under 'runs'"),
        (("{cls_run}", "--rows=nowhere.csv"), "nowhere.csv"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(
    arguments: tuple[str, ...], said: str, command: Callable, cls_run: Path, timm_run: Path, tmp_path: Path
) -> None:
    line = [argument.format(cls_run=cls_run, timm_run=timm_run) for argument in arguments]
    assert said in sentence(command("export", *line))
    assert names_in(tmp_path) == set()


def test_a_folder_that_is_no_run_is_named(command: Callable, copied: Callable[[Path], Path], cls_run: Path) -> None:
    run = copied(cls_run)
    (run / "config.yaml").write_text("model: [")
    assert "is no YAML" in sentence(command("export", run))
    (run / "config.yaml").write_text("trainer: {}")
    assert "is no configuration of a run: it has no model" in sentence(command("export", run))
    (run / "config.yaml").unlink()
    assert "is no run's folder: it has no config.yaml" in sentence(command("export", run))


def test_a_run_begun_from_another_is_exported_as_itself(
    command: Callable, fit: Callable[..., Path], cls_run: Path, tmp_path: Path
) -> None:
    backbone = {"class_path": "TransformersBackbone", "init_args": {"name": str(cls_run)}}
    head = {"class_path": "TokenClassificationHead", "init_args": {"task": "tags"}}
    words = tmp_path / "words.conll"
    words.write_text("the\tD\napp\tN\ncrashes\tV\n\n" * 20)
    data = {"class_path": "TokenClassificationData", "init_args": {"train_file": str(words), "batch_size": 4}}
    run = fit({"model": {"backbone": backbone, "head": head}, "data": data})
    result = command("export", run, "--output=out")
    assert "format: transformers" in result.out, result.err
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"] == {"0": "D", "1": "N", "2": "V"}
    assert cls_run.name not in (tmp_path / "out" / "README.md").read_text()


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.file),)


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(
    command: Callable, copied: Callable[[Path], Path], cls_run: Path, tmp_path: Path
) -> None:
    run = copied(cls_run)
    file = run / "checkpoints" / "best.ckpt"
    content = torch.load(file, weights_only=True)
    torch.save({**content, "extra": Hostile(tmp_path / "pwned")}, file)
    assert "holds more than tensors and plain data; loading it could run code" in sentence(command("export", run))
    assert not (tmp_path / "pwned").exists()


def test_an_exported_folder_builds_backbones_and_heads_only(command: Callable, cls_run: Path, tmp_path: Path) -> None:
    assert command("export", cls_run, "--format=safetensors", "--output=out").code == 0
    file = tmp_path / "out" / "config.json"
    content = json.loads(file.read_text())
    content["head"] = {"class_path": "subprocess.Popen", "init_args": {"args": "true"}}
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"subprocess.Popen is no Head"):
        load_exported(tmp_path / "out")
