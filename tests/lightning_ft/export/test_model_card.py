"""The model card says what was measured, is read by hubs' own parser, and its lines run."""

import csv
import getpass
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_ft.export.model_card import cell, code, fenced

QUIET = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")


def card_of(folder: Path) -> Any:
    from huggingface_hub import ModelCard

    return ModelCard.load(folder / "README.md")


@pytest.fixture
def tested(copied: Callable[[Path], Path], cls_run: Path, command: Callable) -> Path:
    """Return a run that was tested."""
    run = copied(cls_run)
    assert command("test", "--run", run, *QUIET).code == 0
    return run


def test_scores_are_those_of_the_run(tested: Path, command: Callable) -> None:
    assert command("export", tested).code == 0
    data = card_of(tested / "export" / "transformers").data
    with (tested / "metrics.csv").open() as stream:
        (row,) = [row for row in csv.DictReader(stream) if row["val/loss"]]
    found = {(result.dataset_split, result.metric_type): result.metric_value for result in data.eval_results}
    results = json.loads((tested / "results.json").read_text())["test"]
    assert found == {
        **{("validation", name[4:]): float(value) for name, value in row.items() if name.startswith("val/")},
        **{("test", name[5:]): value for name, value in results["metrics"].items()},
    }
    assert results["num_rows"] == 4
    assert data.license == "unknown"
    assert data.pipeline_tag == "text-classification"
    assert data.library_name == "transformers"
    assert data.base_model is None  # a folder of this machine
    assert data.datasets is None
    assert data.language is None


def test_a_test_of_another_checkpoint_is_left_out(tested: Path, command: Callable) -> None:
    results = json.loads((tested / "results.json").read_text())
    results["test"]["step"] += 1
    (tested / "results.json").write_text(json.dumps(results))
    assert command("export", tested).code == 0
    assert {result.dataset_split for result in card_of(tested / "export" / "transformers").data.eval_results} == {
        "validation"
    }


def test_a_card_survives_the_hubs_parser(tested: Path, command: Callable) -> None:
    assert command("export", tested).code == 0
    card = card_of(tested / "export" / "transformers")
    metadata = yaml.safe_load(str(card).split("---\n")[1])
    assert metadata["model-index"][0]["results"][0]["dataset"] == {
        "name": "mails.jsonl",
        "type": "local",
        "split": "validation",
    }
    assert type(card)(str(card)).data.to_dict() == card.data.to_dict()


@pytest.mark.parametrize("run", ["cls_run", "lora_run", "timm_run", "language_run"])
def test_no_file_names_this_machine(
    run: str, command: Callable, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(run)
    assert command("export", folder, "--output=out").code == 0
    private = [str(folder), str(folder.parent), "/tmp/", socket.gethostname(), str(Path.home())]
    private += [] if getpass.getuser() == "root" else [getpass.getuser()]
    for file in (tmp_path / "out").rglob("*"):
        if file.suffix in (".md", ".json") and file.name != "tokenizer.json":
            text = file.read_text()
            assert [word for word in private if word in text] == [], file.name


def test_labels_and_names_are_data_and_not_markdown_or_yaml(cls_run: Path, command: Callable, tmp_path: Path) -> None:
    name = "x\n---\nlicense: mit `` # [link](javascript:alert(1))"
    assert command("export", cls_run, "--output", tmp_path / name.replace("/", "_")).code == 0
    card = card_of(tmp_path / name.replace("/", "_"))
    assert card.data.license == "unknown"
    (labels,) = [line for line in str(card).splitlines() if line.startswith("- Classes")]
    assert "``bug: `x` | **y** --- <b>``" in labels


@pytest.mark.parametrize("text", ["a", "`", "``", "`a`", "a``b", "a\nb", "", "|", "a`"])
def test_code_in_a_line_is_closed_by_its_own_fence_alone(text: str) -> None:
    line = code(text)
    fence = line[: len(line) - len(line.lstrip("`"))] if text != "" else "`"
    inside = line[len(fence) : -len(fence)]
    assert line.startswith(fence)
    assert line.endswith(fence)
    assert fence not in inside.split()
    assert "\n" not in line
    assert "|" not in cell(text).replace("\\|", "")


def test_a_block_of_code_is_longer_fenced_than_what_it_holds() -> None:
    assert fenced("a ``` b", "python").splitlines() == ["````python", "a ``` b", "````"]


@pytest.mark.parametrize(
    ("run", "name"),
    [
        ("cls_run", "transformers"),
        ("language_run", "transformers"),
        ("mean_run", "safetensors"),
        ("mean_run", "onnx"),
        ("cls_run", "torch"),
        ("timm_run", "timm"),
        ("timm_run", "onnx"),
        ("timm_run", "torch"),
    ],
)
def test_the_lines_of_the_card_run(
    run: str,
    name: str,
    exported: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = exported(run, name)
    block = (folder / "README.md").read_text().split("```python\n")[1].split("\n```")[0]
    monkeypatch.chdir(folder.parent)
    exec(block, {"__name__": "card"})
    assert capsys.readouterr().out.strip()
