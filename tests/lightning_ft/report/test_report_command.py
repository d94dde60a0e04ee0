"""The command: what the page tells is what the run was, and wrong input is one sentence."""

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from report_parts import fit, text_recipe

from lightning_ft.report.command import report
from lightning_ft.report.movement import movements
from lightning_ft.report.story import story


@pytest.fixture(scope="module")
def told(run: Path):
    return story(run)


def logged(run: Path, name: str) -> list[float]:
    with (run / "metrics.csv").open(newline="") as stream:
        return [float(row[name]) for row in csv.DictReader(stream) if row.get(name)]


def test_fit_makes_the_report_and_says_where_it_is(tiny_bert, table, tmp_path, capsys):
    folder = fit(text_recipe(tiny_bert, table, epochs=1), tmp_path, "--trainer.limit_train_batches", "1")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [f"report: {folder / 'report.html'}", f"run folder: {folder}"]
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [file.name for file in folder.iterdir() if file.name.startswith(".")] == []


def test_a_key_turns_it_off_and_the_record_stays(runs):
    _, other = runs
    assert not (other / "report.html").exists()
    assert (other / "record.json").exists()


def test_a_report_that_fails_is_one_line_and_the_run_is_whole(tiny_bert, table, tmp_path, capsys):
    options = ["--trainer.limit_train_batches", "1", "--trainer.enable_checkpointing", "false"]
    folder = fit(text_recipe(tiny_bert, table, epochs=1), tmp_path, *options)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("no report: no whole checkpoint")
    assert lines[-1] == f"run folder: {folder}"


def test_on_two_processes_the_first_makes_it_and_waits_for_nobody(tiny_bert, table, tmp_path, run_command: Callable):
    recipe = text_recipe(tiny_bert, table, epochs=1)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    options = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--report.at_end", "true"]
    done = run_command("fit", "--config", "recipe.yaml", *options, check=True)
    (folder,) = (tmp_path / "runs").iterdir()
    assert done.stdout.splitlines()[-2:] == [
        f"report: {folder.relative_to(tmp_path) / 'report.html'}",
        f"run folder: {folder.relative_to(tmp_path)}",
    ]
    assert done.stdout.count("report: ") == 1


def test_the_page_judges_the_checkpoint_as_the_fit_did(run, told):
    best = min(range(3), key=logged(run, "val/loss").__getitem__)
    assert told.best.epoch == best
    assert told.value == logged(run, "val/accuracy")[best]
    assert told.evaluation.scores["accuracy"] == pytest.approx(told.value, abs=1e-6)
    assert told.evaluation.scores["macro_f1"] == pytest.approx(logged(run, "val/macro_f1")[best], abs=1e-6)
    assert told.calibration.loss == pytest.approx(logged(run, "val/loss")[best], abs=1e-5)
    assert told.evaluation.num_samples == told.num_rows == 24


def test_phases_are_told_by_their_own_validations(run, told):
    accuracies = logged(run, "val/accuracy")
    head, every = told.phases
    assert head.score == accuracies[0]
    assert every.score == max(accuracies[1:])
    assert every.gain == pytest.approx(max(accuracies[1:]) - accuracies[0])
    assert (head.first_step, head.last_step, every.first_step, every.last_step) == (0, 6, 7, 20)


def test_classes_and_mistakes_are_those_of_the_data(table, told):
    with table.open(newline="") as stream:
        label_of = {row["text"]: row["label"] for row in csv.DictReader(stream)}
    assert [one.name for one in told.classes] == ["billing", "bug", "praise"]
    assert sum(one.num_right for one in told.classes) == round(told.value * 24)
    assert len(told.mistakes) == min(12, 24 - round(told.value * 24))
    assert [one.confidence for one in told.mistakes] == sorted((m.confidence for m in told.mistakes), reverse=True)
    for one in told.mistakes:
        assert one.true != one.predicted
        assert label_of[one.text] == one.true or list(label_of.values()).count(one.true)


def test_of_more_rows_than_the_bound_some_are_taken_evenly(run):
    from lightning_ft.report.evaluation import evaluate
    from lightning_ft.run.finished_run import finished_run

    again = finished_run(run)
    found = evaluate(again.model, again.data, torch.device("cpu"), most=10)
    assert (found.num_samples, found.num_all) == (10, 24)
    assert sorted(found.rows) == [0, 2, 4, 7, 9, 12, 14, 16, 19, 21]


def test_a_block_moved_by_what_its_weights_changed_relative_to_what_they_were(run, told, tiny_bert):
    from transformers import AutoModel

    start = AutoModel.from_pretrained(tiny_bert).state_dict()
    end = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for one in told.movements:
        inside = one.block.removeprefix("backbone.")
        names = [name for name in start if name.startswith(f"{inside}.") and f"backbone.model.{name}" in end]
        names = [name for name in names if start[name].is_floating_point()]
        before = torch.cat([start[name].flatten() for name in names])
        after = torch.cat([end[f"backbone.model.{name}"].flatten() for name in names])
        assert one.distance == pytest.approx(((after - before).norm() / before.norm()).item(), rel=1e-4)
        assert one.distance > 0


def test_what_did_not_change_did_not_move(tiny_bert):
    from lightning_ft import TransformersBackbone

    start, end = (TransformersBackbone(str(tiny_bert)) for _ in range(2))
    with torch.no_grad():
        next(end.model.encoder.layer[1].parameters()).add_(1.0)
    assert [one.distance > 0 for one in movements(start, end)] == [False, False, True]


def test_adapters_count_by_what_they_do_to_the_weights(tiny_bert, table, tmp_path):
    recipe = text_recipe(tiny_bert, table, epochs=1)
    recipe["model"]["backbone"]["init_args"]["lora"] = {"r": 2}
    recipe["trainer"]["callbacks"] = []
    told = story(fit(recipe, tmp_path, "--report.at_end", "false"))
    assert [one.distance > 0 for one in told.movements] == [False, True, True]


def test_a_run_whose_data_and_model_are_gone_still_has_a_report(run, table, tiny_bert, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace(str(table), "/gone/x.csv").replace(str(tiny_bert), "/gone/bert"))
    (copy / "record.json").unlink()
    told = story(copy)
    assert "data cannot be read any more" in told.not_evaluated
    assert "pretrained weights cannot be had any more" in told.not_compared
    text = report([copy]).read_text(encoding="utf-8")
    assert "/gone" not in text
    assert "has no record.json" in text


def test_random_weights_are_no_start_to_compare_with(image_run):
    told = story(image_run)
    assert "did not start from pretrained weights" in told.not_compared
    assert told.mistakes
    assert all(one.image and one.text is None for one in told.mistakes)


def test_several_runs_are_compared_in_the_working_folder(runs, command: Callable, tmp_path):
    result = command("report", *runs)
    assert result.code == 0
    assert result.out == "report: report.html\n"
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "2 runs side by side" in text
    assert "model.lr" in text  # differs
    assert "model.weight_decay" not in text  # does not
    assert all(run.name in text for run in runs)


def test_wrong_input_is_one_sentence_and_writes_nothing(run, command: Callable, tmp_path):
    near = tmp_path / "near"
    near.mkdir()
    (tmp_path / "empty").mkdir()
    for arguments, said in (
        (["report"], "expected RUN_FOLDER"),
        (["report", run, "--outptu", "x.html"], "--outptu"),
        (["report", tmp_path / "nera"], f"no such run: '{tmp_path / 'nera'}'; did you mean '{near}'?"),
        (["report", tmp_path / "empty"], "is no run's folder"),
        (["report", run.parent], f"{str(run.parent)!r} is no run's folder, but the folder of"),
        (["report", run.parent], f"did you mean {run.parent}/*?"),
        (["report", run, run], "is given twice"),
        (["report", run, "--output", "x.pdf"], "written as .html, but the file is 'x.pdf'"),
        (["report", run, "--output", "gone/x.html"], "output: no such folder: 'gone'"),
    ):
        result = command(*arguments)
        assert result.code == 2
        (line,) = [line for line in result.err.splitlines() if line.startswith("lightning-ft: ")]
        assert said in line, line
        assert "Traceback" not in result.err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["empty", "near"]


def test_a_report_that_cannot_be_written_leaves_the_one_before(run, tmp_path, monkeypatch):
    file = tmp_path / "report.html"
    file.write_text("before")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        report([run], file)
    assert file.read_text() == "before"
    assert [one.name for one in tmp_path.iterdir()] == ["report.html"]
