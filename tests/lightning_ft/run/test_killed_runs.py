"""A run that is killed, stopped or interrupted at any moment, and resumed, ends as one that never was.

One that fails says in a sentence what to change.
"""

import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

NUM_KILLS = 20
STATES = ("state_dict", "optimizer_states", "lr_schedulers", "rng", "epoch", "global_step", "metrics_csv", "callbacks")

# imports take longer than the runs: one process makes them, and each run is a fork of it
FORKS = multiprocessing.get_context("forkserver")


def fit(folder: Path, log: Path, arguments: list[str], more_memory: int | None = None) -> None:
    """Run the command in this process, in a folder, with no more memory [byte] than it has and that."""
    from lightning_ft.__main__ import main

    if more_memory is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + more_memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.chdir(folder)
    stream = log.open("a")
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    torch.set_num_threads(1)
    sys.exit(main(arguments))


@pytest.fixture(scope="module")
def model(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model whose checkpoints are small, because they are written and synced often."""
    from transformers import AutoConfig, BertModel

    folder = Path(shutil.copytree(tiny_bert, tmp_path_factory.mktemp("model") / "bert"))
    size = {"num_hidden_layers": 1, "hidden_size": 4, "num_attention_heads": 1, "intermediate_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(AutoConfig.from_pretrained(tiny_bert, **size)).save_pretrained(folder)
    return folder


@pytest.fixture
def start(tmp_path: Path, model: Path, reviews: Callable[..., Path]) -> Callable[..., multiprocessing.Process]:
    """Return a function that starts or resumes a run below a root, with a checkpoint after each second step."""
    FORKS.set_forkserver_preload(["lightning_ft.cli", "transformers.models.bert.modeling_bert", "datasets"])
    table = reviews(num_rows=44)

    def run(root: str, *options: str, more_memory: int | None = None) -> multiprocessing.Process:
        resumed = ["--ckpt_path", "last"] if any((tmp_path / root).rglob("*.ckpt")) else []
        arguments = [
            *("fit", "--seed_everything", "3", "--trainer.default_root_dir", root, "--trainer.max_epochs", "4"),
            *("--model.backbone", "TransformersBackbone", "--model.backbone.name", str(model)),
            *("--model.head", "SequenceClassificationHead", "--model.lr", "0.01"),
            *("--data", "TextClassificationData", "--data.train_file", str(table), "--data.batch_size", "4"),
            *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
            *("--trainer.log_every_n_steps", "1", "--last_checkpoint.every_n_train_steps", "2"),
            *("--trainer.accelerator", "cpu", *options, *resumed),
        ]
        process = FORKS.Process(target=fit, args=(tmp_path, tmp_path / "log.txt", arguments, more_memory))
        process.start()
        return process

    return run


def same(one: object, other: object) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run))
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if name != "hp_metric"]
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}


def assert_the_same_run(root: Path, whole: Path) -> None:
    """Compare the only run below a root with one that was left in peace."""
    (run,), (other,) = ([one for one in path.iterdir() if (one / "checkpoints").exists()] for path in (root, whole))
    assert (run / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    for name in ("last", "best"):
        ours, theirs = (torch.load(path / "checkpoints" / f"{name}.ckpt", weights_only=True) for path in (run, other))
        for checkpoint in (ours, theirs):
            del checkpoint["callbacks"]["RunReport"]  # times and memory, which no two runs share
        for key in STATES:
            assert same(ours[key], theirs[key]), f"{name}.ckpt, {key}"
    assert not list(run.rglob(".*.partial"))
    assert (run / "plan.txt").read_text() == (other / "plan.txt").read_text()


def finish(process: multiprocessing.Process, log: Path) -> None:
    process.join(120)
    assert process.exitcode == 0, log.read_text()


def test_a_run_killed_twenty_times_at_random_moments_ends_as_if_never_killed(
    start: Callable[..., multiprocessing.Process], tmp_path: Path
) -> None:
    log = tmp_path / "log.txt"
    finish(start("warm", "--trainer.max_epochs", "1"), log)
    begun = time.monotonic()
    finish(start("whole"), log)
    duration = time.monotonic() - begun
    draw = random.Random(5)
    killed, root = 0, 0
    while killed < NUM_KILLS:
        process = start(f"killed_{root}")
        process.join(draw.uniform(0.3, 1) * duration)
        if process.is_alive():
            process.kill()
            process.join()
            killed += 1
        else:
            finish(process, log)
            assert_the_same_run(tmp_path / f"killed_{root}", tmp_path / "whole")
            root += 1
    finish(start(f"killed_{root}"), log)
    assert_the_same_run(tmp_path / f"killed_{root}", tmp_path / "whole")


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_saves_and_says_how_to_go_on(
    start: Callable[..., multiprocessing.Process], tmp_path: Path, asked: signal.Signals
) -> None:
    log = tmp_path / "log.txt"
    # a step is three batches, and no checkpoint is due before the first epoch's end
    options = ("--last_checkpoint.every_n_train_steps", "1000", "--trainer.accumulate_grad_batches", "3")
    finish(start("whole", *options), log)
    log.write_text("")
    process = start("stopped", *options)
    while "metrics.csv" not in {file.name for file in (tmp_path / "stopped").rglob("*")}:
        time.sleep(0.005)
    os.kill(process.pid, asked)
    process.join(60)
    said = log.read_text()
    assert process.exitcode == 128 + asked, said
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("lightning-ft: ")]
    (run,) = (tmp_path / "stopped").iterdir()
    assert f"stopped by {asked.name} behind step" in line
    assert line.endswith(f"go on with: lightning-ft fit --ckpt_path stopped/{run.name}/checkpoints/last.ckpt")
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 0
    finish(start("stopped", *options), log)
    assert_the_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_run_without_enough_memory_says_what_to_lower(
    start: Callable[..., multiprocessing.Process], tmp_path: Path, reviews: Callable[..., Path]
) -> None:
    rows = [("a very long film " * 200, ("good", "bad")[row % 2]) for row in range(200)]
    table = ("--data.train_file", str(reviews("long.csv", rows=rows)), "--data.batch_size", "160")
    process = start("large", *table, more_memory=300 * 2**20)
    process.join(120)
    said = (tmp_path / "log.txt").read_text()
    assert process.exitcode == 1, said
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("lightning-ft: ")]
    assert "out of memory at step 0 with batches of 160, at a peak of " in line
    for key in ("data.batch_size", "trainer.accumulate_grad_batches", "data.max_length", "bf16-mixed"):
        assert key in line
    assert "model.backbone.gradient_checkpointing" in line


def test_a_run_whose_loss_is_no_number_names_the_batch_and_the_last_good_checkpoint(
    start: Callable[..., multiprocessing.Process], tmp_path: Path
) -> None:
    process = start("nan", "--model.lr", "1e30", "--model.lr_schedule", "constant", "--trainer.max_epochs", "9")
    process.join(120)
    said = (tmp_path / "log.txt").read_text()
    assert process.exitcode == 1, said
    (line,) = [line for line in said.splitlines() if line.startswith("lightning-ft: ")]
    assert re.search(r"at step \d+ \(epoch 0, batch \d+, rows \d+, \d+, \d+, \d+ of the training data: '", line)
    assert re.search(r"whose output is no number is backbone\.|backward pass is |weights of ", line)
    for file in (tmp_path / "nan").rglob("*.ckpt"):
        state = torch.load(file, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in state.values())
