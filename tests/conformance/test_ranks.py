"""Law 5: ranks agree after any change of phase, and are together one process with the doubled batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("two_ranks.py")


def weights(strategy: str, folder: Path) -> list[dict[str, torch.Tensor]]:
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
    return [torch.load(file, weights_only=True) for file in sorted(folder.glob("rank*.pt"))]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    (alone,) = weights("one", tmp_path_factory.mktemp("one") / "out")
    return alone


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn", "find_unused", "bucket_view", "static_graph", "fsdp2"])
def test_two_ranks_agree_bitwise_and_equal_one_process(
    strategy: str, one_process: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    first, second = weights(strategy, tmp_path / "out")
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name, tensor in one_process.items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-5)
