"""Stores that a fit leaves for later ones: finished whole or not at all, checked, gone on from, and merged."""

import json
import os
import shutil
import zlib
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from lightning_ft_callbacks.caching.sample_shapes import SampleShape
from lightning_ft_callbacks.caching.sample_store import INDEX, SEGMENT, open_index
from lightning_ft_callbacks.caching.storage import NUM_SEGMENTS, writer_of
from lightning_ft_callbacks.whole_file import sync, write_whole

MANIFEST = "manifest.json"


def is_whole(folder: Path, described: dict[str, Any]) -> bool:
    """Tell whether a folder holds a finished store of a description, and not a byte in it has changed.

    Args:
        folder: The folder.
        described: What the store must be.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = manifest["files"]
        return manifest["store"] == described and all(_checksum(folder / name) == files[name] for name in files)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def num_held(folder: Path, described: dict[str, Any]) -> int:
    """Return how many samples a finished store of a description holds; 0 where there is none, or it has changed.

    Args:
        folder: The store's folder.
        described: What the store must be.
    """
    if not is_whole(folder, described):
        return 0
    return int(json.loads((folder / MANIFEST).read_text())["num_held"])


def take_over(kept: Path, folder: Path) -> int:
    """Begin a store with all that a finished one holds, which itself is not changed.

    Args:
        kept: The finished one's folder.
        folder: The new one's.

    Returns:
        A number of a writer whose segments are none of these.
    """
    folder.mkdir(parents=True)
    shutil.copyfile(kept / INDEX, folder / INDEX)
    segments = sorted(kept.glob("segment-*.bin"))
    for segment in segments:
        _link(segment, folder / segment.name)
    return 1 + max((writer_of(segment) for segment in segments), default=-1)


def merge(kept: Path, folder: Path, num_samples: int) -> None:
    """Add to a store what a finished one holds beside it.

    Args:
        kept: The finished one's folder.
        folder: The store's.
        num_samples: Samples of the data set.
    """
    theirs, ours = open_index(num_samples, kept / INDEX), open_index(num_samples, folder / INDEX)
    missing = (ours[:, SEGMENT] == 0) & (theirs[:, SEGMENT] != 0)
    if not missing.any():
        return
    shift = NUM_SEGMENTS * (1 + max((writer_of(segment) for segment in folder.glob("segment-*.bin")), default=-1))
    for number in theirs[missing, SEGMENT].unique().tolist():
        _link(kept / f"segment-{number}.bin", folder / f"segment-{number + shift}.bin")
    rows = theirs[missing]
    rows[:, SEGMENT] += shift
    ours[missing] = rows


def _link(file: Path, name: Path) -> None:
    """Give a file that is never written again another name, or copy it where the disk has no links."""
    try:
        os.link(file, name)
    except OSError:
        shutil.copyfile(file, name)


def finish(folder: Path, described: dict[str, Any], target: Path, num_samples: int) -> None:
    """Make a store one that later fits use: its files synced, their checksums beside them, and the folder renamed.

    If there is one already, this one takes its place with what both hold, where that is more.

    Args:
        folder: The store's folder.
        described: What it is.
        target: Its folder from now on.
        num_samples: Samples of the data set.
    """
    before = num_held(target, described)
    if before:
        merge(target, folder, num_samples)
    held = int(open_index(num_samples, folder / INDEX)[:, SEGMENT].count_nonzero())
    if held <= before:
        return
    files = {path.name: _checksum(path) for path in sorted(folder.glob("*.bin"))}
    for name in files:
        sync(folder / name)
    write_whole(folder / MANIFEST, json.dumps({"store": described, "num_held": held, "files": files}))
    try:
        if target.exists():
            target.rename(folder.with_name(f"{folder.name}-before"))  # which goes with the fit's folder
        folder.rename(target)
    except OSError:  # another fit has kept the same in the meantime
        return


def digest(*parts: Any) -> str:
    """Return a name for texts and tensors: two that differ have different ones."""
    found = sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            data = part.detach().cpu().contiguous()
            found.update(f"{data.dtype}{tuple(data.shape)}".encode())
            found.update(data.reshape(-1).view(torch.uint8).numpy().data)
        else:
            found.update(f"{part!r};".encode())
    return found.hexdigest()[:32]


def description(num_samples: int, shapes: Sequence[SampleShape], dtype: torch.dtype | None) -> dict[str, Any]:
    """Return what a store is, as its manifest has it.

    Args:
        num_samples: Samples of the data set.
        shapes: Shapes of its tensors.
        dtype: The type of floating-point numbers in it; None for their own.
    """
    kinds = [f"{dtype if dtype and shape.dtype.is_floating_point else shape.dtype}" for shape in shapes]
    rows = [[list(shape.of_sample(1)), list(shape.token_dims)] for shape in shapes]
    return {"format": 2, "num_samples": num_samples, "types": kinds, "shapes": rows}


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while piece := file.read(2**22):
            value = zlib.crc32(piece, value)
    return value
