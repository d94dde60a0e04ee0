"""A run's folder: what it holds, what it never tells, and other loggers beside it."""

import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from lightning_ft.generations import drop_later

USER, HOST = "zaphodbeeblebrox", "heartofgold"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """Return the home of a user whose name nothing else has; the model is in a package installed below it."""
    home = tmp_path_factory.mktemp("home") / USER
    package = home / "site" / "my_models"
    shutil.copytree(tiny_bert, package / "bert")
    (package / "__init__.py").touch()
    (home / "work").mkdir()
    (home / "data").mkdir()
    rows = [f"{'good ' * (row % 7 + 1)}film,praise\n{'bad ' * (row % 5 + 1)}film,blame\n" for row in range(24)]
    (home / "work" / "reviews.csv").write_text("text,label\n" + "".join(rows))
    content = {
        "seed_everything": 1,
        "model": {
            "backbone": {"class_path": "TransformersBackbone", "init_args": {"name": "package://my_models/bert"}},
            "head": "SequenceClassificationHead",
        },
        "data": {"class_path": "TextClassificationData", "init_args": {"train_file": "reviews.csv", "batch_size": 4}},
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
            "callbacks": [
                {"class_path": "GradualUnfreezing", "init_args": {"schedule": "lp_ft"}},
                {"class_path": "LRFinder", "init_args": {"num_steps": 10, "trial_steps": 2}},
            ],
        },
    }
    (home / "work" / "recipe.yaml").write_text(yaml.safe_dump(content))
    return home


def run(home: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command as that user, on that host where this may be pretended."""
    line = [sys.executable, "-m", "lightning_ft", *arguments]
    rename = ["unshare", "--uts", "--user", "--map-root-user", "sh", "-c", f'hostname {HOST}; exec "$@"', "sh"]
    try:
        renamed = subprocess.run([*rename, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        renamed = False
    paths = [str(home / "site"), str(Path.cwd()), str(Path.cwd() / "callbacks")]
    environment = os.environ | {"HOME": str(home), "USER": USER, "LOGNAME": USER, "PYTHONPATH": ":".join(paths)}
    return subprocess.run(
        [*(rename if renamed else []), *line],
        cwd=home / "work",
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )


@pytest.fixture(scope="module")
def finished(home: Path) -> tuple[Path, str]:
    """Return the folder of a run that was gone on with once, and what the first start printed."""
    recipe = str(home / "work" / "recipe.yaml")
    printed = run(home, "fit", "--config", recipe).stdout
    run(home, "fit", "--ckpt_path", "last", "--trainer.max_epochs", "3")
    (folder,) = (home / "work" / "runs").iterdir()
    return folder, printed


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each file in a folder, and of each in a checkpoint."""
    for file in folder.rglob("*"):
        if file.is_file():
            yield file.name, file.read_bytes()
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    yield from ((f"{file.name}: {name}", archive.read(name)) for name in archive.namelist())


def test_a_run_folder_names_neither_its_user_nor_its_host(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    told = [
        (name, word)
        for name, content in contents(folder)
        for word in (USER, HOST)
        if word.encode() in content or word in name
    ]
    assert told == []


def test_a_run_folder_holds_all_that_was_promised_and_its_path_is_said_first_and_last(
    finished: tuple[Path, str],
) -> None:
    folder, printed = finished
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    events = {name for name in files if name.startswith("events.out.tfevents")}
    assert len(events) == 2  # one a start
    assert files - events == {
        *("config.yaml", "metrics.csv", "plan.txt", "environment.txt", "phases.png", "lr_finder.png"),
        *("lr_finder.json", "record.json", "report.html", "checkpoints/best.ckpt", "checkpoints/last.ckpt"),
    }
    lines = [line for line in printed.splitlines() if line.strip()]
    assert lines[0] == lines[-1] == f"run folder: runs/{folder.name}"


def test_environment_txt_has_a_section_a_start_with_versions_device_seed_and_short_command(
    finished: tuple[Path, str],
) -> None:
    folder, _ = finished
    first, second = (folder / "environment.txt").read_text().split("\n\n")
    facts, later = (dict(line.split(": ", 1) for line in text.splitlines()) for text in (first, second))
    assert facts["command"] == "lightning-ft fit --config recipe.yaml"
    assert facts["torch"] == version("torch")
    assert facts["seed"] == "1"
    assert facts["device"].startswith("1 x cpu, ")
    assert {"python", "platform", "lightning", "lightning-ft", "transformers"} <= facts.keys()
    assert facts["from"] == "step 0, epoch 0"
    assert later["from"] == "step 20, epoch 2"
    assert later["command"].endswith(f"--ckpt_path runs/{folder.name}/checkpoints/best.ckpt") or later[
        "command"
    ].endswith(f"--ckpt_path runs/{folder.name}/checkpoints/last.ckpt")


def test_plan_txt_is_the_plan_that_was_printed(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    plan = (folder / "plan.txt").read_text().splitlines()
    assert [line.split()[:2] for line in plan[1:3]] == [["0", "head"], ["1", "all"]]
    assert plan[-1] in " ".join(line.strip() for line in printed.splitlines())


def test_arguments_are_told_without_the_folders_above(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lightning_ft.run.environment import shortened

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ford")
    given = [f"{tmp_path}/a/b.yaml", "--x=/home/ford/c.csv", "~/d.csv", "package://p/e.csv", "{f: /g/h.csv, i: 1/2}"]
    short = ["a/b.yaml", "--x=.../c.csv", ".../d.csv", "package://p/e.csv", "{f: .../h.csv, i: 1/2}"]
    assert shortened(given) == short
    assert shortened(["https://host/a", "runs/x", "--lr", "1e-3"]) == ["https://host/a", "runs/x", "--lr", "1e-3"]


@pytest.fixture
def short(tmp_path: Path) -> tuple[str, ...]:
    """Return a short fit without callbacks, below a folder of its own."""
    (tmp_path / "runs").mkdir()
    root = ("--trainer.default_root_dir", str(tmp_path / "runs"))
    return ("fit", "--config", "recipe.yaml", "--trainer.callbacks", "null", "--trainer.max_epochs", "1", *root)


def losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as stream:
        return [float(row["train/loss"]) for row in csv.DictReader(stream) if row.get("train/loss")]


def test_mlflow_has_the_metrics_of_the_run_beside_the_folders_own(
    home: Path, tmp_path: Path, short: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = f"[{{class_path: MLFlowLogger, init_args: {{tracking_uri: 'file:{tmp_path}/mlruns'}}}}]"
    run(home, *short, "--trainer.logger", logger)
    (folder,) = (tmp_path / "runs").iterdir()
    client = mlflow.tracking.MlflowClient(f"file:{tmp_path}/mlruns")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (found,) = client.search_runs(experiments)
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert [entry.value for entry in history] == losses(folder)
    assert found.info.status == "FINISHED"


def test_weights_and_biases_keeps_an_offline_run_beside_the_folders_own(
    home: Path, tmp_path: Path, short: tuple[str, ...]
) -> None:
    pytest.importorskip("wandb")
    logger = f"[{{class_path: WandbLogger, init_args: {{offline: true, save_dir: '{tmp_path}'}}}}]"
    run(home, *short, "--trainer.logger", logger, WANDB_SILENT="true")
    (folder,) = (tmp_path / "runs").iterdir()
    assert losses(folder)
    (kept,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"train/loss" in kept.read_bytes()


def test_rows_that_a_resumed_run_writes_again_are_dropped_with_one_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    drop_later(file, 3)
    rows = [json.dumps({"step": step, "text": "é"}, ensure_ascii=False) + "\n" for step in (1, 3, 3, 4)]
    file.write_bytes("".join(rows).encode() + '{"step": 2, "text": "é'.encode()[:-1])
    drop_later(file, 3)
    assert file.read_text(encoding="utf-8") == "".join(rows[:3])
    assert [one.name for one in tmp_path.iterdir()] == ["rows.jsonl"]
