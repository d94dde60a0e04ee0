"""What a prediction is of: its weights, its input and its options, so that only its own parts are taken up."""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_ft.resources import resolve

HEAD = 1 << 20  # bytes of a file that are read to know it again
# what changes nothing in a prediction
INDIFFERENT = ("num_workers", "batch_size", "training", "prepare_data_per_node")


def job_of(trainer: Trainer, module: LightningModule, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes a prediction this one, as plain data.

    Args:
        trainer: The trainer that predicts.
        module: The module, with its weights.
        options: What was asked of the writer.
    """
    data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    plain = {"data": _plain(data), "head": _plain(module.head), "options": dict(options)}
    plain |= {"precision": str(trainer.precision), "torch": torch.__version__, "head_class": type(module.head).__name__}
    return {
        "weights": _weights(trainer.ckpt_path, module),
        "input": input_state(data),
        "options": json.loads(json.dumps(plain, sort_keys=True, default=str)),
    }


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return what two predictions differ in, in words."""
    names = {"weights": "other weights", "input": "another input", "options": "other options"}
    return [words for name, words in names.items() if ours.get(name) != theirs.get(name)]


def input_state(data: Any) -> str:
    """Return what changes when the file to predict, or one in its folder, does: names, sizes, times, how it begins."""
    source: str | None = data.files["predict"] or data.files["train"]
    digest = hashlib.sha256(str(source).encode())
    path = Path(resolve(source or "")).expanduser()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if source and path.is_dir() else [path]
    for file in files:
        if source is None or not file.is_file():  # a name of the hub
            continue
        status = file.stat()
        digest.update(f"\0{file}\0{status.st_size} {status.st_mtime_ns}".encode("utf-8", "surrogateescape"))
        if len(files) == 1:
            with file.open("rb") as stream:
                digest.update(stream.read(HEAD))
    return digest.hexdigest()


def _weights(checkpoint: Any, module: LightningModule) -> str:
    """Return a digest of the weights; of a checkpoint's file that of the checksums in it, which takes no time."""
    digest = hashlib.sha256()
    if checkpoint is not None and zipfile.is_zipfile(checkpoint):
        with zipfile.ZipFile(checkpoint) as archive:
            for entry in archive.infolist():
                digest.update(f"{entry.filename} {entry.file_size} {entry.CRC}\n".encode())
        return digest.hexdigest()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return digest.hexdigest()


def _plain(owner: Any) -> dict[str, Any]:
    """Return the attributes of an object that are plain data: what its user chose."""
    return {
        name: value
        for name, value in vars(owner).items()
        if not name.startswith("_") and name not in (*INDIFFERENT, "files") and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return _all_plain(value.values())
    if isinstance(value, list | tuple):
        return _all_plain(value)
    return value is None or isinstance(value, str | int | float | bool)


def _all_plain(values: Iterable[Any]) -> bool:
    return all(map(_is_plain, values))
