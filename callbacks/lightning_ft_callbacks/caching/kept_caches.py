"""Stores that a fit leaves for later ones: finished whole or not at all, checked, gone on from, and merged."""

import json
import os
import shutil
import zlib
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_ft_callbacks.caching.sample_shapes import SampleShape
from lightning_ft_callbacks.caching.sample_store import INDEX, SEGMENT, open_index
from lightning_ft_callbacks.caching.storage import NUM_SEGMENTS, writer_of
from lightning_ft_callbacks.whole_file import sync, write_whole

MANIFEST = "manifest.json"


def finished_stores(root: Path, fingerprint: str, described: dict[str, Any]) -> list[Path]:
    """Return the folders of finished stores of a fingerprint, that with the most samples first, bytes unchecked.

    Several hold other values under one fingerprint where code has changed that it cannot tell.

    Args:
        root: Where they are.
        fingerprint: Their fingerprint.
        described: What they must be.
    """
    found = [(_manifest(folder), folder) for folder in sorted(root.glob(f"{fingerprint}-*"))]
    fitting = [(int(manifest["num_held"]), folder) for manifest, folder in found if manifest.get("store") == described]
    return [folder for _, folder in sorted(fitting, key=lambda one: -one[0])]


def is_whole(folder: Path, described: dict[str, Any]) -> bool:
    """Tell whether a folder holds a finished store of a description, and not a byte in it has changed.

    Args:
        folder: The folder.
        described: What the store must be.
    """
    manifest = _manifest(folder)
    try:
        files = manifest.get("files", {})
        return manifest.get("store") == described and all(_checksum(folder / name) == files[name] for name in files)
    except OSError:
        return False


def num_held(folder: Path, described: dict[str, Any]) -> int:
    """Return how many samples a finished store of a description holds; 0 where there is none, or it has changed.

    Args:
        folder: The store's folder.
        described: What the store must be.
    """
    return int(_manifest(folder)["num_held"]) if is_whole(folder, described) else 0


def is_complete(folder: Path, num_samples: int) -> bool:
    """Tell whether a store that is not finished yet holds all samples of its data set.

    Args:
        folder: The store's folder.
        num_samples: How many there are.
    """
    return (folder / INDEX).exists() and _num_in(folder, num_samples) == num_samples


def _num_in(folder: Path, num_samples: int) -> int:
    return int(open_index(num_samples, folder / INDEX)[:, SEGMENT].count_nonzero())


def take_over(kept: Path, folder: Path) -> int:
    """Begin a store with all that a finished one holds, which itself is not changed.

    What becomes of the finished one meanwhile, because another fit puts a larger one in its place, does not matter.

    Args:
        kept: The finished one's folder.
        folder: The new one's.

    Returns:
        A number of a writer whose segments are none of these.

    Raises:
        OSError: If it is gone, or there is no room.
    """
    folder.mkdir(parents=True)
    for name in (MANIFEST, INDEX):
        shutil.copyfile(kept / name, folder / name)
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


def finish(
    folder: Path, described: dict[str, Any], root: Path, fingerprint: str, num_samples: int, kept: Path | None
) -> Path | None:
    """Make a store one that later fits use: its files synced, their checksums beside them, and the folder renamed.

    Args:
        folder: The store's folder.
        described: What it is.
        root: Where finished ones are.
        fingerprint: Its fingerprint.
        num_samples: Samples of the data set.
        kept: A finished one of the same values, whose place this one takes, with what both hold, where that is more.

    Returns:
        The folder that holds these values now; None if nothing does.

    Raises:
        OSError: If there is no room.
    """
    before = 0 if kept is None else num_held(kept, described)
    if kept is not None and before:
        merge(kept, folder, num_samples)
    held = _num_in(folder, num_samples)
    if held <= before:
        return kept
    files = {path.name: _checksum(path) for path in sorted(folder.glob("*.bin"))}
    for name in files:
        sync(folder / name)
    write_whole(folder / MANIFEST, json.dumps({"store": described, "num_held": held, "files": files}))
    if kept is not None and before:
        with suppress(OSError):  # another fit has done so in the meantime
            kept.rename(folder.with_name(f"{folder.name}-before"))  # which goes with the fit's folder
    return _put_in_place(folder, root, fingerprint)


def _put_in_place(folder: Path, root: Path, fingerprint: str) -> Path:
    """Rename a finished store to the first name of its fingerprint that no other one has."""
    for number in count():
        target = root / f"{fingerprint}-{number}"
        try:
            return folder.rename(target)
        except OSError:
            if not target.exists():
                raise
    raise AssertionError("there are always more numbers")


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


def described_modules(modules: Sequence[nn.Module]) -> list[Any]:
    """Return what some modules are beside their weights: the types of all their parts, and plain attributes of these.

    So other activations or numbers of heads have another fingerprint.

    Args:
        modules: The modules.
    """
    return [
        (name, f"{type(part).__module__}.{type(part).__qualname__}", _plain_attributes(part))
        for module in modules
        for name, part in module.named_modules()
    ]


def _plain_attributes(part: nn.Module) -> dict[str, Any]:
    found = {name: _plain(value) for name, value in vars(part).items() if name[0] != "_" and name != "training"}
    return {name: found[name] for name in sorted(found) if found[name] is not None}


def _plain(value: Any) -> Any:
    """Return a value that says the same in every process; None for others."""
    if isinstance(value, bool | int | float | str | torch.dtype | torch.Size):
        return value
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return getattr(value, "__qualname__", None)  # an activation that is a function


def description(num_samples: int, shapes: Sequence[SampleShape], dtype: torch.dtype | None) -> dict[str, Any]:
    """Return what a store is, as its manifest has it.

    Args:
        num_samples: Samples of the data set.
        shapes: Shapes of its tensors.
        dtype: The type of floating-point numbers in it; None for their own.
    """
    kinds = [f"{dtype if dtype and shape.dtype.is_floating_point else shape.dtype}" for shape in shapes]
    rows = [[list(shape.of_sample(1)), list(shape.token_dims)] for shape in shapes]
    return {"format": 3, "num_samples": num_samples, "types": kinds, "shapes": rows}


def _manifest(folder: Path) -> dict[str, Any]:
    """Return what a finished store says of itself; nothing where there is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) and {"store", "num_held", "files"} <= manifest.keys() else {}


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while piece := file.read(2**22):
            value = zlib.crc32(piece, value)
    return value
