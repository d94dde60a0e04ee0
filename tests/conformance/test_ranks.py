"""Law 5: ranks agree after any change of phase, and are together one process with the doubled batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("two_ranks.py")
Weights = dict[str, torch.Tensor]


def weights(strategy: str, folder: Path) -> list[Weights]:
    """Train under a strategy, and return each rank's weights."""
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), strategy, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return written(folder)


def written(folder: Path) -> list[Weights]:
    return [torch.load(file, weights_only=True) for file in sorted(folder.glob("rank*.pt"))]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Weights]:
    folder = tmp_path_factory.mktemp("one")
    return {
        strategy: weights(strategy, folder / strategy)[0]
        for strategy in ("one", "one_two_optimizers", "one_lr_finder", "one_best")
    }


@pytest.mark.parametrize(
    "strategy", ["ddp", "ddp_spawn", "find_unused", "bucket_view", "static_graph", "fsdp2", "two_optimizers"]
)
def test_two_ranks_agree_bitwise_and_equal_one_process(
    strategy: str, one_process: dict[str, Weights], tmp_path: Path
) -> None:
    first, second = weights(strategy, tmp_path / "out")
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name, tensor in one_process["one_two_optimizers" if "optimizers" in strategy else "one"].items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strategy", ["best", "best_fsdp2"])
def test_two_ranks_end_each_phase_with_the_best_weights_of_one_process(
    strategy: str, one_process: dict[str, Weights], tmp_path: Path
) -> None:
    first, second = weights(strategy, tmp_path / "out")
    assert first["phase"] == 2
    for name, tensor in one_process["one_best"].items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-5)


def test_ranks_whose_metrics_differ_change_phase_together_by_that_of_the_first(tmp_path: Path) -> None:
    first, second = weights("disputed", tmp_path / "out")
    assert first["phase"] == second["phase"] == 1
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_statistics_of_frozen_norms_stay_as_they_were_on_each_rank(tmp_path: Path) -> None:
    first, second = weights("norms", tmp_path / "out")
    for rank in (first, second):
        for layer in (0, 1):
            assert torch.all(rank[f"layers.{layer}.1.running_mean"] == 0)
            assert torch.all(rank[f"layers.{layer}.1.running_var"] == 1)
            assert rank[f"layers.{layer}.1.num_batches_tracked"] == 0
        assert rank["layers.2.1.num_batches_tracked"] == 4 * 4  # of six epochs the last four
    assert all(torch.equal(first[name], second[name]) for name in first if "running_" not in name)


@pytest.mark.parametrize("strategy", ["lr_finder", "lr_finder_fsdp2"])
def test_two_ranks_test_learning_rates_as_one_process(
    strategy: str, one_process: dict[str, Weights], tmp_path: Path
) -> None:
    first, second = weights(strategy, tmp_path / "out")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(first["curve"]) > 10
    assert len(first["found"]) == 4  # of as many phases
    assert first["found"][0] > 0
    assert len(first["tried"]) > 1
    for name, tensor in one_process["one_lr_finder"].items():
        torch.testing.assert_close(first[name], tensor, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(("strategy", "without"), [("lr_finder_only_tells", "ddp"), ("lr_finder_powersgd", "powersgd")])
def test_a_test_on_two_ranks_leaves_no_trace(strategy: str, without: str, tmp_path: Path) -> None:
    tested, alone = weights(strategy, tmp_path / "tested"), weights(without, tmp_path / "alone")
    assert len(tested[0]["curve"]) > 10
    for mine, theirs in zip(tested, alone, strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_ranks_agree_bitwise_with_compressed_gradients(one_process: dict[str, Weights], tmp_path: Path) -> None:
    first, second = weights("powersgd", tmp_path / "out")
    assert all(torch.equal(first[name], second[name]) for name in first)
    alone = one_process["one"]
    assert any(not torch.allclose(first[name], alone[name], atol=1e-5) for name in alone)  # compressed, indeed
    # none is in a phase's first two steps, the first of which a new wrapper makes its final buckets after
    steps = first["compressions"].tolist()
    assert [step for step, count in enumerate(steps) if count == 0] == [0, 3, 8, 12]
    assert all(steps[begin + 1] == 1 for begin in (0, 3, 8, 12))


def test_two_ranks_resumed_after_any_batch_and_any_epoch_end_as_ranks_never_stopped(tmp_path: Path) -> None:
    whole = weights("saved", tmp_path / "out")
    resumed = {folder.name: written(folder) for folder in sorted((tmp_path / "out").iterdir()) if folder.is_dir()}
    # saved between an epoch's last batch and its validation, Lightning resumes without that validation
    skipped = {f"step{step}" for step in (4, 8, 12, 16, 20)}
    assert len(resumed) == 24 + 6 - 2
    for name, ranks in resumed.items():
        for mine, theirs in zip(whole, ranks, strict=True):
            assert name in skipped or all(torch.equal(mine[key], theirs[key]) for key in mine), name


@pytest.mark.parametrize("strategy", ["saved_fsdp2", "saved_best", "saved_best_fsdp2"])
def test_ranks_resumed_end_as_ranks_never_stopped_though_best_weights_and_shards_are_restored(
    strategy: str, tmp_path: Path
) -> None:
    whole = weights(strategy, tmp_path / "out")
    resumed = {name: written(tmp_path / "out" / name) for name in ("step5", "step7", "step18")}
    for name, ranks in resumed.items():
        for mine, theirs in zip(whole, ranks, strict=True):
            assert all(torch.equal(mine[key], theirs[key]) for key in mine), name
