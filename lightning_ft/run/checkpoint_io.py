"""Checkpoints on disk: written whole or not at all, read without running anything in them."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO
from torch import Tensor

from lightning_ft.bounds import check_archive
from lightning_ft_callbacks.whole_file import reason_of, whole_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, syncs it to the disk, and renames it.

    Lightning writes local checkpoints to the system's temporary folder and moves them, which copies where that is
    another disk: a full disk or a kill in that moment leaves half a file in place of the last good one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save a checkpoint; where that fails the file that stood there before is untouched.

        Raises:
            OSError: If it cannot be written, naming the place and, on a full disk, the need.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(target) as partial, partial.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            # torch reports a failed write as a RuntimeError of its zip writer, raised while handling the OSError
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            kept = "; the one saved there before is kept" if target.exists() else ""
            raise OSError(
                cause.errno, f"cannot save the checkpoint {str(target)!r}: {reason_of(cause)}{kept}"
            ) from error

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Load a checkpoint, tensors and plain data only unless ``weights_only=False`` is asked for."""
        if weights_only is False or "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only)
        return load_checkpoint(path)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of tensors and plain data onto the CPU; nothing pickled in it is ever run.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is cut short, no checkpoint of a LightningModule, or holds anything but plain data.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no such checkpoint: {str(path)!r}")
    checkpoint = load_tensors(file)
    if "state_dict" not in checkpoint or "pytorch-lightning_version" not in checkpoint:
        raise ValueError(f"{str(path)!r} is no checkpoint of a Lightning run: its keys are {sorted(checkpoint)[:5]}")
    return checkpoint


def load_tensors(file: Path) -> dict[str, Any]:
    """Read a file of tensors: safetensors, or a torch file of tensors and plain data.

    Raises:
        ValueError: If it is cut short, holds anything but plain data, or is no mapping.
    """
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(file))
        except SafetensorError as error:
            raise ValueError(f"{str(file)!r} is cut short or no safetensors file ({error})") from error
    check_archive(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{str(file)!r} holds more than tensors and plain data; loading it could run code, so it is refused"
        ) from error
    except (RuntimeError, OSError, EOFError, zipfile.BadZipFile, ValueError, KeyError) as error:
        raise ValueError(f"{str(file)!r} is cut short or no torch file") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{str(file)!r} holds a {type(content).__name__}, not a mapping from names to tensors")
    return dict(content)


def is_whole(file: Path) -> bool:
    """Tell whether a checkpoint file was written to its end; the directory of a zip file stands there."""
    try:
        with zipfile.ZipFile(file) as archive:
            return bool(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def backbone_of(checkpoint: Mapping[str, Any], source: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the description and the weights of the backbone in a FineTuner's checkpoint.

    Args:
        checkpoint: The checkpoint.
        source: Its file, for the message.

    Raises:
        ValueError: If it is not a FineTuner's.
    """
    if "backbone" not in checkpoint:
        raise ValueError(f"{str(source)!r} is no checkpoint of a FineTuner: it describes no backbone")
    weights = {
        name.removeprefix("backbone."): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith("backbone.")
    }
    return checkpoint["backbone"], weights


def check_same_model(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Raise unless a checkpoint's tensors have the names and shapes of a model's.

    Args:
        ours: The model's ``state_dict``.
        theirs: The checkpoint's.

    Raises:
        ValueError: If they differ, with their number and the first.
    """
    differing = sorted(ours.keys() ^ theirs.keys())
    differing += [name for name in ours.keys() & theirs.keys() if ours[name].shape != theirs[name].shape]
    if differing:
        name = differing[0]
        shape = {
            key: tuple(state[name].shape) if name in state else "absent"
            for key, state in (("checkpoint", theirs), ("model", ours))
        }
        raise ValueError(
            f"the checkpoint is of another model: {len(differing)} tensors differ, the first is {name!r} "
            f"(checkpoint: {shape['checkpoint']}, model: {shape['model']})"
        )
