"""Each task on two real processes: their weights stay the same, and their scores are those of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from task_fits import QUIET
from two_rank_tasks import TASKS, write

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def two_ranks(tiny_bert: Path, tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write(folder)
    subprocess.run(
        [sys.executable, str(HERE / "two_rank_tasks.py"), str(folder), str(tiny_bert), str(tiny_gpt2)],
        check=True,
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "LIGHTNING_FT_CACHE": str(folder)},
        timeout=600,
    )
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_ranks_agree_and_score_as_one_process_does(
    task: str, two_ranks: Path, tiny_bert: Path, tiny_gpt2: Path
) -> None:
    first, second = (torch.load(two_ranks / f"{task}-{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, value in first["weights"].items():
        # statistics of batch norm are each rank's own, and those of rank 0 are saved
        if "running_" not in name:
            assert value.equal(second["weights"][name]), name
    assert first["scores"] == second["scores"]
    module, data = TASKS[task](two_ranks, str(tiny_bert), str(tiny_gpt2))
    module.load_state_dict(first["weights"])
    (scores,) = Trainer(**QUIET).validate(module, datamodule=data, verbose=False)
    assert scores.keys() == first["scores"].keys()
    for name, value in scores.items():
        assert first["scores"][name] == pytest.approx(value, rel=1e-6, abs=2e-5), name
    for name, table in module.tables.items():
        torch.testing.assert_close(first["tables"][name], table, atol=2e-5, rtol=1e-4)
