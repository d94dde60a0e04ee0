"""Law 9 on two real processes: with a cache each ends as it does without, resumed or on a full disk too."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from prefix_nets import Run
from prefix_ranks import FULL, NETS, RESUMED, STEPS

SCRIPT = Path(__file__).with_name("prefix_ranks.py")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train all that is tested here on two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def written(trained: Path, name: str) -> list[dict[str, Any]]:
    return [torch.load(trained / f"{name}.{rank}.pt", weights_only=True) for rank in (0, 1)]


def runs(trained: Path, name: str) -> list[Run]:
    """Return what each rank did."""
    return [Run(**rank["run"]) for rank in written(trained, name)]


@pytest.mark.parametrize("where", ["memory", "files"])
@pytest.mark.parametrize("net", NETS)
def test_each_rank_ends_as_without_it_and_runs_the_prefix_once(net: str, where: str, trained: Path) -> None:
    pairs = zip(runs(trained, f"{net}-{where}"), runs(trained, f"{net}-without"), strict=True)
    for cached, without in pairs:
        cached.same_as(without)
        assert without.calls[1:] == [4, 4, 4]  # 3 batches and 1 of validation
        # files are kept below one block at a time: all is filled anew for the second phase, after two tries of a part
        assert cached.calls[1:] == [0, 4 + 2 * 2 if where == "files" else 0, 0]


@pytest.mark.parametrize("net", NETS)
def test_files_go_when_both_ranks_are_done_with_them(net: str, trained: Path) -> None:
    for rank in written(trained, f"{net}-files"):
        first, second, third, fourth = rank["stores"]
        assert first == second
        assert third == fourth
        assert [len(first), len(third)] == [1, 1]
        assert first != third
    assert not list((trained / f"files-{net}").iterdir())


@pytest.mark.parametrize("where", ["memory", "kept"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("net", RESUMED)
def test_each_rank_resumed_ends_as_one_resumed_without_it(net: str, step: int, where: str, trained: Path) -> None:
    pairs = zip(runs(trained, f"{net}-{where}-{step}"), runs(trained, f"{net}-without-{step}"), strict=True)
    for cached, without in pairs:
        cached.same_as(without)
        assert len(cached.losses) == 12 - step
        assert sum(cached.calls[1:]) < sum(without.calls[1:])
    if where == "kept":
        assert list((trained / f"kept-{net}-{step}").glob("*-0"))
    if where == "kept" and step == 5:  # the first phase's was complete
        begun_with, begun_anew = (sum(runs(trained, f"{net}-{kind}-{step}")[0].calls) for kind in ("kept", "memory"))
        assert begun_with < begun_anew


@pytest.mark.parametrize("who", FULL)
def test_on_a_full_disk_of_one_rank_or_of_both_all_go_on_without_it(who: str, trained: Path) -> None:
    pairs = zip(runs(trained, f"full-{who}"), runs(trained, "timm resnet-without"), strict=True)
    for rank, (full, without) in enumerate(pairs):
        full.same_as(without)
        assert full.calls[1] > 0
        told = written(trained, f"full-{who}")[rank]["told"]
        notices = [message for message in told if f"on rank {rank}: no more training samples are kept" in message]
        assert len(notices) == (who == "both" or rank == 1)
    assert not list((trained / f"files-full-{who}").iterdir())
