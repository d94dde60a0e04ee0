"""What a run was computed with: versions, devices, seed, commit and command, without the names of user and host."""

import os
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from lightning.pytorch import Trainer

PACKAGES = (
    *("lightning-ft", "torch", "lightning", "torchmetrics", "transformers", "tokenizers", "safetensors", "timm"),
    *("torchvision", "datasets", "peft", "numpy"),
)
# a path from the root, at the beginning of a word: not the end of package://name/path or of an address
ABSOLUTE = re.compile(r"(?<![\w.~:/-])(?:~|/)[^\s,;:\"'{}\[\]=]*")


def environment(trainer: Trainer, arguments: Sequence[str]) -> str:
    """Return one line a fact.

    Args:
        trainer: The trainer of the run.
        arguments: The command line without the program.
    """
    facts = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "from": f"step {trainer.global_step}, epoch {trainer.current_epoch}",
        "command": shlex.join(["lightning-ft", *shortened(arguments)]),
        "commit": commit(),
        "seed": os.environ.get("PL_GLOBAL_SEED"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "device": _device(trainer),
        **{name: installed(name) for name in PACKAGES},
    }
    return "".join(f"{name}: {value}\n" for name, value in facts.items() if value is not None)


def shortened(arguments: Sequence[str]) -> list[str]:
    """Return a command line whose absolute paths are told by what is below the working folder, or by their ends.

    Args:
        arguments: The command line.
    """
    return [ABSOLUTE.sub(_short, argument) for argument in arguments]


def commit() -> str | None:
    """Return the commit that the working folder is at, and whether files differ from it; None where there is none."""
    # a repository may name a program to be run for its file system's changes
    git = ["git", "-c", "core.fsmonitor=false"]
    try:
        run = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
        changed = subprocess.run([*git, "diff-index", "--quiet", "HEAD"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if run.returncode != 0:
        return None
    return run.stdout.strip() + (" with changes" if changed.returncode == 1 else "")


def installed(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _short(match: re.Match[str]) -> str:
    path = Path(match[0]).expanduser()
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return f".../{path.name}" if path.name else match[0]


def _device(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return f"{trainer.world_size} x {device.type}, {name}, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
