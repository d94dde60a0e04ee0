"""Laws of predictions that hold for each task: the same rows in each form, after a stop, and on two processes."""

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from small_tasks import NUM_ROWS, TASKS, Stop, StopAfter, parts_of, predict, rows_of, small

NATURAL: dict[str, Any] = {
    "classes": str,
    "several classes": list,
    "numbers": float,
    "entities": list,
    "text": str,
    "gaps": list,
    "images": str,
    "masks": str,
    "boxes": list,
    "items": list,
}


def content(file: Path) -> dict[str, str]:
    """Return the digests of a file of predictions and of the masks beside it."""
    files = [file, *file.with_suffix("").rglob("*.png")]
    return {str(one.relative_to(file.parent)): hashlib.sha256(one.read_bytes()).hexdigest() for one in files}


@pytest.mark.parametrize("task", TASKS)
def test_each_form_holds_the_same_rows_in_order(
    task: str, tiny_bert: Path, tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, data = small(task, tmp_path, tiny_bert, tiny_gpt2)
    rows = rows_of(predict(model, data, Path("found.jsonl")))
    assert len(rows) == NUM_ROWS
    assert all(isinstance(row["prediction"], NATURAL[task]) for row in rows)
    first = next(iter(rows[0]))
    assert [row[first] for row in rows] == sorted(row[first] for row in rows) or task == "items"
    with predict(model, data, Path("found.csv")).open(newline="") as stream:
        cells = list(csv.DictReader(stream))
    table = pyarrow.parquet.read_table(predict(model, data, Path("found.parquet"))).to_pylist()
    for row, cell, typed in zip(rows, cells, table, strict=True):
        shares = row.pop("probabilities", {})
        assert typed == {**row, **{f"probability_{name}": share for name, share in shares.items()}}
        assert cell[first] == str(row[first])
        found = row["prediction"]
        if task in ("entities", "boxes"):
            assert json.loads(cell["prediction"] or "[]") == found
        else:
            assert cell["prediction"] == ("|".join(found) if isinstance(found, list) else str(found))


@pytest.mark.parametrize("task", TASKS)
def test_a_stopped_prediction_goes_on_and_ends_as_if_it_never_stopped(
    task: str, tiny_bert: Path, tiny_gpt2: Path, tmp_path: Path
) -> None:
    (tmp_path / "whole").mkdir()
    model, data = small(task, tmp_path, tiny_bert, tiny_gpt2)
    file = tmp_path / "found.jsonl"
    whole = content(predict(model, data, file))
    file.unlink()
    for num_batches in (2, 1):
        with pytest.raises(Stop):
            predict(model, data, file, StopAfter(num_batches), save_every=0)
        assert not file.exists()
    assert len(parts_of(file)) == 3
    assert content(predict(model, data, file)) == whole
    assert parts_of(file) == []
    assert not list(tmp_path.glob(".found*"))


TWO_RANKS = """
import sys
from pathlib import Path
from small_tasks import TASKS, predict, small

folder, bert, gpt2 = map(Path, sys.argv[1:])
for task in TASKS:
    below = folder / task
    below.mkdir(exist_ok=True)
    model, data = small(task, below, bert, gpt2)
    predict(model, data, below / "two.jsonl", devices=2, strategy="ddp")
"""


def test_two_processes_write_what_one_does(tiny_bert: Path, tiny_gpt2: Path, tmp_path: Path) -> None:
    script = tmp_path / "two_ranks.py"
    script.write_text(TWO_RANKS)
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run(
        [sys.executable, script, tmp_path, tiny_bert, tiny_gpt2],
        check=True,
        env=os.environ | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""},
        timeout=300,
    )
    for task in TASKS:
        model, data = small(task, tmp_path / task, tiny_bert, tiny_gpt2)
        one = predict(model, data, tmp_path / task / "two_.jsonl").read_text().replace("two_/", "two/")
        assert (tmp_path / task / "two.jsonl").read_text() == one, task
