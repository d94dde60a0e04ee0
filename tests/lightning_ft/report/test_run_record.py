"""The record: what a run took and was, also of one that was resumed, and without a trace in the training."""

import shutil

import pytest
import torch
from report_parts import fit, text_recipe

from lightning_ft.report.fingerprint import fingerprint
from lightning_ft.report.record import RunRecord
from lightning_ft.report.story import story


def test_each_phase_has_its_blocks_its_time_and_its_memory(run, table):
    record = RunRecord.read(run)
    head, every = record.phases
    assert (head.first_step, every.first_step) == (0, 7)  # 56 texts in batches of 8
    assert head.trained == ["head"]
    assert every.trained == list(record.blocks)
    assert head.num_trained == record.blocks["head"] == 3 * 32 + 3
    assert every.num_trained == sum(record.blocks.values())
    assert all(phase.seconds > 0 for phase in record.phases)
    assert all(phase.peak_bytes is None or phase.peak_bytes > 1e6 for phase in record.phases)
    assert record.num_rows == {"train": 56, "val": 24}
    assert record.data == {"train": fingerprint(table)}
    assert record.versions["torch"] == torch.__version__.partition("+")[0] or record.versions["torch"]
    assert record.seed == 1
    assert record.num_planned == 2
    assert record.finished


def test_a_resumed_run_has_the_record_of_one_that_never_stopped(run, tiny_bert, table, tmp_path):
    short = fit(
        text_recipe(tiny_bert, table), tmp_path / "runs", "--report.at_end", "false", "--trainer.max_epochs", "2"
    )
    first = RunRecord.read(short)
    root = tmp_path / "runs"
    from lightning_ft.__main__ import main

    options = ["--trainer.max_epochs", "3", "--report.at_end", "false", "--trainer.default_root_dir", str(root)]
    assert main(["fit", "--ckpt_path", str(short / "checkpoints" / "last.ckpt"), *options]) == 0
    resumed, whole = RunRecord.read(short), RunRecord.read(run)
    assert [(one.phase, one.first_step, one.trained) for one in resumed.phases] == [
        (one.phase, one.first_step, one.trained) for one in whole.phases
    ]
    assert resumed.num_planned == whole.num_planned == 2
    assert resumed.phases[0].seconds == first.phases[0].seconds
    assert resumed.phases[1].seconds > first.phases[1].seconds
    assert [step for step, _ in resumed.rates] == [step for step, _ in whole.rates]


def test_phases_that_a_plateau_kept_away_are_advice(tiny_bert, table, tmp_path):
    recipe = text_recipe(tiny_bert, table, epochs=3)
    plateau = {"monitor": "val/loss", "patience": 1}  # which could end in this time; the loss falls in each epoch
    phases = [{"train": ["head"], "plateau": plateau}, {"train": ["*"]}]
    recipe["trainer"]["callbacks"][0]["init_args"]["schedule"] = phases
    folder = fit(recipe, tmp_path, "--report.at_end", "false")
    assert RunRecord.read(folder).num_planned == 2
    said = [one.sentence for one in story(folder).advice]
    assert any(sentence.startswith("Phase 1 never began") for sentence in said)
    assert not any("train for more epochs" in sentence for sentence in said)


def test_a_record_is_the_same_after_reading(run, tmp_path):
    record = RunRecord.read(run)
    record.write(tmp_path)
    assert RunRecord.read(tmp_path) == record
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


def test_a_record_that_is_none_is_named(tmp_path):
    (tmp_path / "record.json").write_text('{"phases": []}')
    with pytest.raises(ValueError, match=r"record\.json' is no record of a run"):
        RunRecord.read(tmp_path)


def test_the_fingerprint_follows_content_and_not_names(tmp_path):
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    one.write_text("text,label\na,b\n")
    other.write_text("text,label\na,b\n")
    assert fingerprint(one) == fingerprint(other)
    other.write_text("text,label\na,c\n")
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint("owner/set-of-the-hub") == ""
    folder = tmp_path / "images"
    (folder / "cat").mkdir(parents=True)
    (folder / "cat" / "1.png").write_bytes(b"1")
    before = fingerprint(folder)
    shutil.move(folder / "cat", folder / "dog")
    assert fingerprint(folder) != before


def test_of_a_large_file_size_beginning_and_end_count(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_ft.report.fingerprint.MOST_BYTES", 20)
    monkeypatch.setattr("lightning_ft.report.fingerprint.PART_BYTES", 4)
    file = tmp_path / "large.csv"
    found, gap = [], "." * 20
    for content in (f"head{gap}tail", f"hear{gap}tail", f"head{gap}tall", f"head{gap}{gap}tail"):
        file.write_text(content)
        found.append(fingerprint(file))
    assert len(set(found)) == 4
