"""How the tests run recipes: by the command, in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def run(*arguments: str, cwd: Path) -> str:
    # one thread, as the tests beside it have: two that wait for a third are slower than one
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, "-m", "lightning_ft", *arguments], cwd=cwd, env=environment, check=True, capture_output=True
    )
    return finished.stdout.decode()
