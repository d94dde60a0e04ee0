"""Laws of the files of predictions: what comes through unchanged, what is refused, and what goes on."""

import csv
import errno
import gzip
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from lightning.pytorch import Callback
from small_tasks import NUM_ROWS, Small, Stop, StopAfter, parts_of, predict, rows_of, small

from lightning_ft import FineTuner, ImageClassificationData, PredictionWriter, TextClassificationData
from lightning_ft.data.predict_batches import PredictBatches
from lightning_ft.predictions.parts import PartFolder

STAMP = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def classes(tiny_bert: Path, tiny_gpt2: Path, tmp_path: Path) -> Small:
    """Return a model of three classes, and its data."""
    return small("classes", tmp_path, tiny_bert, tiny_gpt2)


def data_of(file: Path) -> TextClassificationData:
    return TextClassificationData(predict_file=str(file), batch_size=2)


# what comes through


def test_cells_of_csv_stand_as_they_stood(classes: Small, tmp_path: Path) -> None:
    rows = [
        ["id", "text", "price", "note"],
        ["007", "good film", "1.0", ""],
        ["008", 'a "quoted", text\nof two lines', "1e3", "NA"],
        ["", "", "null", " padded "],
        ["+1", "ümlaut 電影", "True", "2026-01-02"],
    ]
    file = tmp_path / "new.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    for name in ("found.csv", "found.tsv"):
        with predict(classes.model, data_of(file), tmp_path / name).open(newline="", encoding="utf-8") as stream:
            found = list(csv.reader(stream, delimiter="\t" if name.endswith("tsv") else ","))
        assert [row[:4] for row in found] == rows
        assert found[0][4:] == ["prediction", "probability_0", "probability_1", "probability_2"]
    found = rows_of(predict(classes.model, data_of(file), tmp_path / "found.jsonl"))
    assert [list(row.values())[:4] for row in found] == rows[1:]


def test_rows_of_jsonl_stand_as_they_stood(classes: Small, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "good", "at": "2026-01-02", "tags": [], "n": 1},
        {"n": None, "text": "bad", "tags": ["a", "b"]},
        {"text": "fine", "tags": None, "n": 3, "more": {"x": 1.0}},
    ]
    file = tmp_path / "new.jsonl.gz"
    with gzip.open(file, "wt") as stream:
        stream.write("\n\n".join(json.dumps(row) for row in rows) + "\n")
    found = rows_of(predict(classes.model, data_of(file), tmp_path / "found.jsonl"))
    assert [{**row, "prediction": 0, "probabilities": 0} for row in rows] == [
        {**row, "prediction": 0, "probabilities": 0} for row in found
    ]
    assert [list(row)[:-2] for row in found] == [list(row) for row in rows]
    table = pyarrow.parquet.read_table(predict(classes.model, data_of(file), tmp_path / "found.parquet"))
    assert table["at"].to_pylist() == ["2026-01-02", None, None]
    assert table.schema.field("tags").type == pyarrow.list_(pyarrow.string())
    with predict(classes.model, data_of(file), tmp_path / "found.csv").open() as stream:
        assert [row["tags"] for row in csv.DictReader(stream)] == ["", "a|b", ""]


def test_parquet_keeps_its_types_and_what_is_nothing(classes: Small, tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "text": ["good", "", None],
            "small": pyarrow.array([1, None, 3], pyarrow.int16()),
            "at": pyarrow.array([STAMP] * 3, pyarrow.timestamp("us", "UTC")),
            "never": pyarrow.array([None] * 3, pyarrow.float32()),
        }
    )
    file = tmp_path / "new.parquet"
    pyarrow.parquet.write_table(table, file)
    found = pyarrow.parquet.read_table(predict(classes.model, data_of(file), tmp_path / "found.parquet"))
    assert found.select(table.column_names).equals(table)
    assert found.schema.names[4:] == ["prediction", "probability_0", "probability_1", "probability_2"]


def test_a_type_that_only_later_rows_tell_is_that_of_the_column(tmp_path: Path) -> None:
    from lightning_ft.predictions.formats import Parquet

    chunks = [([{"a": None}], [{"prediction": []}]), ([{"a": 2}], [{"prediction": [{"label": "x", "score": 0.5}]}])]
    Parquet(["a"], None).write(tmp_path / "found.parquet", lambda: iter(chunks))
    assert pyarrow.parquet.read_table(tmp_path / "found.parquet").to_pylist() == [
        {"a": None, "prediction": []},
        {"a": 2, "prediction": [{"label": "x", "score": 0.5}]},
    ]


def test_rows_of_a_table_of_images_stand_as_they_stood_without_those_that_are_skipped(
    tiny_bert: Path, tiny_gpt2: Path, tmp_path: Path
) -> None:
    model, _ = small("images", tmp_path, tiny_bert, tiny_gpt2)
    (tmp_path / "images" / "03.png").write_text("no image")
    table = tmp_path / "table.csv"
    table.write_text("id,image,note\n" + "".join(f"{row:03},images/{row:02}.png,1.0\n" for row in range(2, 5)))
    with pytest.raises(ValueError, match=r"1 of 3 images cannot be read: .*03.png"):
        predict(model, ImageClassificationData(predict_file=str(table)), tmp_path / "found.csv")
    data = ImageClassificationData(predict_file=str(table), skip_unreadable=True)
    with predict(model, data, tmp_path / "found.csv", probabilities=False).open() as stream:
        rows = list(csv.reader(stream))
    assert [row[:3] for row in rows] == [
        ["id", "image", "note"],
        ["002", "images/02.png", "1.0"],
        ["004", "images/04.png", "1.0"],
    ]


@pytest.mark.parametrize(
    ("source", "name"), [("a.jsonl", "jsonl"), ("a.csv.gz", "csv"), ("a.parquet", "parquet"), ("folder", "csv")]
)
def test_the_file_has_the_suffix_of_the_input_unless_it_is_named(source: str, name: str) -> None:
    from lightning_ft.predictions.writer import _suffix_of

    assert _suffix_of(source) == f".{name}"


# what is chosen


def test_top_k_are_the_likeliest_classes_with_their_probabilities(classes: Small, tmp_path: Path) -> None:
    plain = rows_of(predict(classes.model, classes.data, tmp_path / "plain.jsonl"))
    best = rows_of(predict(classes.model, classes.data, tmp_path / "best.jsonl", top_k=2))
    for row, other in zip(plain, best, strict=True):
        order = sorted(row["probabilities"], key=row["probabilities"].__getitem__, reverse=True)
        assert other["top"] == [{"label": name, "probability": row["probabilities"][name]} for name in order[:2]]
        assert other["prediction"] == other["top"][0]["label"]
        assert "probabilities" not in other
    with predict(classes.model, classes.data, tmp_path / "best.csv", top_k=1, probabilities=True).open() as stream:
        names = next(csv.reader(stream))
    assert names[3:] == [
        *("prediction", "top_1", "top_1_probability"),
        *(f"probability_{number}" for number in range(3)),
    ]
    without = rows_of(predict(classes.model, classes.data, tmp_path / "without.jsonl", probabilities=False))
    assert [set(row) for row in without] == [{"id", "text", "price", "prediction"}] * NUM_ROWS
    assert "probabilities" in classes.model.head.decode(torch.zeros(1, 3), None, {})[0], "the head is as it was"


def test_top_k_is_how_many_items_are_recommended(tiny_bert: Path, tiny_gpt2: Path, tmp_path: Path) -> None:
    model, data = small("items", tmp_path, tiny_bert, tiny_gpt2)
    three = rows_of(predict(model, data, tmp_path / "three.jsonl"))
    two = rows_of(predict(model, data, tmp_path / "two.jsonl", top_k=2))
    assert [row["prediction"][:2] for row in three] == [row["prediction"] for row in two]
    assert {len(row["prediction"]) for row in three} == {3}


def test_the_batch_size_that_is_found_changes_no_prediction(
    classes: Small, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    plain = rows_of(predict(classes.model, classes.data, tmp_path / "plain.jsonl"))
    found = rows_of(predict(classes.model, classes.data, tmp_path / "found.jsonl", batch_size="auto"))
    for row, other in zip(plain, found, strict=True):
        assert other["probabilities"] == pytest.approx(row["probabilities"], abs=1e-5)
    (said,) = [record.message for record in caplog.records if "batch_size" in record.message]
    assert "rows a second; tried 1: " in said
    assert not classes.model.training or classes.data.batch_size == 3


def test_a_limit_on_batches_is_a_limit_on_rows(classes: Small, tmp_path: Path) -> None:
    for limit, num_rows in ((2, 6), (0.5, 6)):
        found = predict(classes.model, classes.data, tmp_path / "found.jsonl", limit_predict_batches=limit)
        assert len(rows_of(found)) == num_rows


# what is refused


def test_a_column_of_the_same_name_is_refused_with_a_remedy(classes: Small, tmp_path: Path) -> None:
    file = tmp_path / "new.csv"
    file.write_text("text,prediction\ngood,1\n")
    with pytest.raises(ValueError, match=r"has a column 'prediction' already.*--predictions.column prediction_2"):
        predict(classes.model, data_of(file), tmp_path / "found.csv")
    found = predict(classes.model, data_of(file), tmp_path / "found.csv", column="guess")
    assert found.read_text().splitlines()[0].startswith("text,prediction,guess,probability_0")
    file.write_text("text,probability_1\ngood,1\n")
    with pytest.raises(ValueError, match="has a column 'probability_1', as what is predicted has; rename it"):
        predict(classes.model, data_of(file), tmp_path / "other.csv")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["found.csv", "new.csv", "texts.csv"]


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("numbers", {"top_k": 2}, "nothing of which 2 are the best; predictions.top_k is for classification"),
        ("numbers", {"probabilities": True}, "no probabilities of classes; predictions.probabilities is for"),
        ("text", {"probabilities": False}, "CausalLMHead predicts no probabilities"),
        ("items", {"probabilities": True}, "RecommendationHead predicts no probabilities"),
        ("classes", {"top_k": 4}, "top_k=4, but SequenceClassificationHead tells 3 classes apart"),
    ],
)
def test_a_choice_without_meaning_is_refused(
    tiny_bert: Path, tiny_gpt2: Path, tmp_path: Path, task: str, options: dict[str, Any], message: str
) -> None:
    model, data = small(task, tmp_path, tiny_bert, tiny_gpt2)
    with pytest.raises(ValueError, match=message):
        predict(model, data, tmp_path / "found.jsonl", **options)
    assert not list(tmp_path.glob("*found*"))


@pytest.mark.parametrize("options", [{"top_k": 0}, {"batch_size": -1}, {"column": ""}, {"file": "a.xlsx"}])
def test_a_choice_that_nothing_can_be_is_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected predictions|written as"):
        PredictionWriter(**options)


def test_a_place_that_cannot_be_written_is_named_before_any_work(classes: Small, tmp_path: Path) -> None:
    (tmp_path / "found.csv").mkdir()
    with pytest.raises(ValueError, match=r"predictions cannot be written to '.*found.csv': it is a folder"):
        predict(classes.model, classes.data, tmp_path / "found.csv")
    with pytest.raises(ValueError, match=r"predictions cannot be written to '.*texts.csv/found.csv': Not a directory"):
        predict(classes.model, classes.data, tmp_path / "texts.csv" / "found.csv")


def test_a_full_disk_is_named_and_keeps_what_was_there(
    classes: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "found.csv"
    file.write_text("earlier")
    sync = os.fsync
    calls: list[int] = []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"predictions cannot be written to '.*found.csv': the disk is full"):
            predict(classes.model, classes.data, file, save_every=0)
    assert file.read_text() == "earlier"
    assert len(parts_of(file)) == 2
    assert len(predict(classes.model, classes.data, file).read_text().splitlines()) == NUM_ROWS + 1


class Touch(Callback):
    """Changes the file to predict in the midst."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_predict_batch_end(self, *arguments: Any) -> None:  # noqa: ARG002
        with self.file.open("a") as stream:
            stream.write("999,one more,\n")


def test_a_file_that_changes_in_the_midst_is_refused(classes: Small, tmp_path: Path) -> None:
    touch = Touch(str(classes.data.files["predict"]))
    with pytest.raises(ValueError, match="changed while it was predicted"):
        predict(classes.model, classes.data, tmp_path / "found.csv", touch)
    assert not (tmp_path / "found.csv").exists()


def test_two_at_once_into_one_file_are_refused(classes: Small, tmp_path: Path) -> None:
    other = PartFolder(tmp_path / "found.csv")
    other.claim()
    with pytest.raises(ValueError, match="another process is predicting into"):
        predict(classes.model, classes.data, tmp_path / "found.csv")
    assert other.folder.is_dir()
    other.release()


# what goes on


def stopped(classes: Small, file: Path) -> None:
    with pytest.raises(Stop):
        predict(classes.model, classes.data, file, StopAfter(2), save_every=0)
    assert len(parts_of(file)) == 2


def other_weights(classes: Small) -> FineTuner:
    next(classes.model.head.parameters()).data.add_(1.0)
    return classes.model


def other_options(classes: Small) -> FineTuner:
    classes.data.max_length = 5  # pyright: ignore[reportAttributeAccessIssue]
    return classes.model


def another_input(classes: Small) -> FineTuner:
    file = Path(str(classes.data.files["predict"]))
    file.write_text(file.read_text().replace("film", "plot"))
    return classes.model


@pytest.mark.parametrize(
    ("change", "words"),
    [(other_weights, "other weights"), (other_options, "other options"), (another_input, "another input")],
)
def test_parts_of_another_prediction_are_never_taken(
    classes: Small,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[Small], FineTuner],
    words: str,
) -> None:
    caplog.set_level("INFO")
    stopped(classes, tmp_path / "found.csv")
    model = change(classes)
    found = predict(model, classes.data, tmp_path / "found.csv").read_bytes()
    assert f"is of a prediction with {words}; begun anew" in caplog.text
    assert found == predict(model, classes.data, tmp_path / "whole.csv").read_bytes()


def test_a_prediction_goes_on_by_itself_unless_it_is_not_to(
    classes: Small, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    file = tmp_path / "found.csv"
    stopped(classes, file)
    assert "6 rows are kept in" in caplog.text
    with pytest.raises(Stop):
        predict(classes.model, classes.data, file, StopAfter(1), save_every=0, resume=False)
    assert len(parts_of(file)) == 1
    predict(classes.model, classes.data, file)
    assert "3 of 11 rows were predicted before; going on with the others" in caplog.text


def test_another_batch_size_begins_anew(classes: Small, tmp_path: Path) -> None:
    file = tmp_path / "found.csv"
    stopped(classes, file)
    with pytest.raises(Stop):
        predict(classes.model, classes.data, file, StopAfter(1), save_every=0, batch_size=4)
    assert parts_of(file) == ["000000000000-000000000004.jsonl"]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("done", [[], [range(3)], [range(3), range(6, 12)], [range(16)]])
def test_ranks_share_what_is_left_each_row_once_in_equal_steps(num_ranks: int, done: list[range]) -> None:
    ranks = [
        PredictBatches(16, batch_size=3, done=done, num_replicas=num_ranks, rank=rank) for rank in range(num_ranks)
    ]
    assert len({rank.num_steps for rank in ranks}) == 1
    rows = [row for rank in ranks for step in range(rank.num_steps) for row in rank.rows(step)]
    assert rows == [row for row in range(16) if not any(row in part for part in done)]
    for rank in ranks:
        passed = list(rank)
        assert len(rank) == len(passed)
        batches = [passed[start : start + 3] for start in range(0, len(passed), 3)]
        assert len(batches) == rank.num_steps
        own = [rank.rows(step) for step in range(rank.num_steps)]
        assert all(batch == [*rows] for batch, rows in zip(batches, own, strict=True) if rows)
