"""The command with the callbacks: plan, fit, a resumed fit, and what wrong schedules are told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

STOPPING = """
from lightning.pytorch import Callback

class Stop(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 7:
            raise ValueError("stopped at step 7")
"""


@pytest.fixture
def recipe(tiny_bert: Path, reviews: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a recipe whose callback has the given arguments."""

    def write(schedule: Any, **init_args: Any) -> Path:
        unfreezing = {"class_path": "GradualUnfreezing", "init_args": {"schedule": schedule, **init_args}}
        content = {
            "seed_everything": 1,
            "model": {
                "backbone": {"class_path": "TransformersBackbone", "init_args": {"name": str(tiny_bert)}},
                "head": "SequenceClassificationHead",
                "lr_schedule": "constant",
            },
            "data": {
                "class_path": "TextClassificationData",
                "init_args": {"train_file": str(reviews()), "batch_size": 8},
            },
            "trainer": {"max_epochs": 3, "log_every_n_steps": 1, "callbacks": [unfreezing, "DiscriminativeLR"]},
        }
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    return write


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_plan_says_what_fit_would_do_and_leaves_nothing_behind(command: Any, recipe: Any, tmp_path: Path) -> None:
    result = command("plan", "--config", recipe("gradual"))
    assert result.code == 0, result.err
    for number, block in enumerate(["head", "backbone.encoder.layer.1", "backbone.encoder.layer.0", "all"]):
        assert f"│ {number} " in result.out, block
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_plan_without_unfreezing_is_one_phase_of_all(command: Any, recipe: Any) -> None:
    result = command("plan", "--config", recipe("gradual"), "--trainer.callbacks", "null")
    assert result.code == 0, result.err
    assert "│ 0     │ all" in result.out


def test_plan_takes_a_schedule_from_a_file_and_says_the_line_that_is_broken(
    command: Any, recipe: Any, tmp_path: Path
) -> None:
    file = tmp_path / "slow.yaml"
    file.write_text("- train: [head]\n  epochs: 2\n- train: [backbone.encoder.layer.1, head]\n")
    result = command("plan", "--config", recipe(str(file)))
    assert result.code == 0, result.err
    rows = [line.split("│")[1:3] for line in result.out.splitlines() if line.startswith("│")]
    assert [number.strip() for number, _ in rows if number.strip()] == ["0", "1"]
    trained = "".join(blocks.strip() for _, blocks in rows)  # folded where the terminal is narrow
    assert trained.replace(" ", "") == "headbackbone.encoder.layer.1,head"
    file.write_text("- train: [head]\n  epochs: 2\n- train: [head\n  epochs: 1\n")
    result = command("plan", "--config", recipe(str(file)))
    assert result.code == 2
    (line,) = (line for line in result.err.splitlines() if line.startswith("lightning-ft: "))
    assert "slow.yaml, line 4" in line


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("gradul", "no schedule 'gradul'; did you mean 'gradual'?"),
        ([{"train": ["haed"], "epochs": 2}, {"train": ["*"]}], "no block of FineTuner matches 'haed'; did you mean"),
        (
            [{"train": ["head"], "epochs": 2, "steps": 3}, {"train": ["*"]}],
            "a phase ends by one of epochs, steps, plateau, but epochs and steps were given",
        ),
        (
            [{"train": ["head"]}, {"train": ["*"]}],
            "schedule: phase 0 (train: head) can never end, but phases follow it",
        ),
        ([{"train": ["head"], "epochs": 99}, {"train": ["*"]}], "phase 1 is never reached"),
    ],
)
@pytest.mark.parametrize("name", ["plan", "fit"])
def test_a_wrong_schedule_is_one_sentence(
    command: Any, recipe: Any, name: str, schedule: Any, message: str, tmp_path: Path
) -> None:
    result = command(name, "--config", recipe(schedule))
    assert result.code == 2
    (line,) = (line for line in result.err.splitlines() if line.startswith("lightning-ft: "))
    assert line.startswith(f"lightning-ft: {message}")
    assert not list((tmp_path / "runs").glob("*/*.ckpt"))


def test_fit_trains_by_the_schedule_and_logs_rates_and_phase(command: Any, recipe: Any, tmp_path: Path) -> None:
    result = command("fit", "--config", recipe("lp_ft"))
    assert result.code == 0, result.err
    (run,) = (tmp_path / "runs").iterdir()
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    names = header.split(",")
    assert {"lr/head", "lr/backbone.encoder.layer.0", "lr/backbone.embeddings", "phase"} <= set(names)
    phases = [row.split(",")[names.index("phase")] for row in rows]
    assert [phase for phase in dict.fromkeys(phases) if phase] == ["0.0", "1.0"]
    assert (run / "phases.png").stat().st_size > 1000


def test_a_fit_stopped_in_a_phase_and_resumed_ends_as_one_never_stopped(
    command: Any, recipe: Any, tmp_path: Path
) -> None:
    schedule = [{"train": ["head"], "steps": 3}, {"train": ["backbone.encoder.layer.1", "head"], "epochs": 1}]
    file = recipe([*schedule, {"train": ["*"]}], ramp_steps=4)
    options = ("--last_checkpoint.every_n_train_steps", 1)
    assert command("fit", "--config", file, *options, "--trainer.default_root_dir", "whole").code == 0
    (tmp_path / "stopping.py").write_text(STOPPING)
    parts = ("fit", *options, "--trainer.default_root_dir", "parts")
    stopped = command(*parts, "--config", file, "--trainer.callbacks+", "stopping.Stop")
    assert "stopped at step 7" in stopped.err
    resumed = command(*parts, "--config", file, "--ckpt_path", "last")
    assert resumed.code == 0, resumed.err
    whole, parts = (weights(next((tmp_path / name).iterdir())) for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize(
    ("schedule", "sentence"),
    [
        ("gradul", "no schedule 'gradul'; did you mean 'gradual'?"),
        ([{"train": ["haed"]}], "no block of FineTuner matches 'haed'; did you mean 'head'?"),
        ([{"train": ["head"]}, {"train": ["*"]}], "can never end"),
        ([{"train": ["head"], "epochs": 5}, {"train": ["*"]}], "never reached"),
        ("missing.yaml", "no schedule file 'missing.yaml'"),
    ],
)
def test_a_wrong_schedule_is_one_sentence_before_the_first_step(
    command: Any, recipe: Any, schedule: Any, sentence: str
) -> None:
    result = command("fit", "--config", recipe(schedule))
    assert result.code == 2
    (line,) = (line for line in result.err.splitlines() if line.startswith("lightning-ft: "))
    assert sentence in line


def test_a_run_with_phases_of_its_own_is_repeated_and_resumed_by_its_config_alone(
    command: Any, recipe: Any, tmp_path: Path
) -> None:
    plateau = {"monitor": "val/loss", "patience": 1}
    phases = [{"train": ["head"], "epochs": 1}, {"train": ["head", "*.layer.1"], "plateau": plateau}]
    file = recipe(phases)

    def fit(root: str, *options: object) -> Path:
        # without a warm-up, a share of a run that is cut short, the rate is the same at each step
        result = command("fit", *options, "--model.warmup", 0, "--trainer.default_root_dir", tmp_path / root)
        assert result.code == 0, result.err
        (run,) = (tmp_path / root).iterdir()
        return run

    first = fit("first", "--config", file)
    again = fit("again", "--config", first / "config.yaml")
    assert all(value.equal(weights(again)[name]) for name, value in weights(first).items())
    kept = yaml.safe_load((first / "config.yaml").read_text())["trainer"]["callbacks"][0]["init_args"]["schedule"]
    assert [phase["train"] for phase in kept] == [phase["train"] for phase in phases]
    cut = fit("cut", "--config", file, "--trainer.max_epochs", 2)
    result = command("fit", "--ckpt_path", cut / "checkpoints" / "last.ckpt", "--trainer.max_epochs", 3)
    assert result.code == 0, result.err
    assert all(value.equal(weights(cut)[name]) for name, value in weights(first).items())
