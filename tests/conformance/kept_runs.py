"""Train with a cache that is kept in a folder: ``kept_runs.py FOLDER OUTPUT [OPTION]``."""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from prefix_nets import Foreign, fit, images
from torch.utils.data import DataLoader, TensorDataset

from lightning_ft_callbacks import FrozenPrefixCache


class Named(TensorDataset):
    """Images with a fingerprint."""

    fingerprint = "noise"


class Slow(Callback):
    """Takes its time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        time.sleep(self.seconds)


def named_loaders(**options: Any) -> tuple[DataLoader, DataLoader]:
    """Return loaders of images with a fingerprint."""
    data = images()
    named = Named(torch.stack([image for image, _ in data]), torch.tensor([label for _, label in data]))
    return DataLoader(named, 4, shuffle=True, **options), DataLoader(named, 4, **options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("output")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--logs", action="store_true", help="files in the run's folder, not to be kept")
    asked = parser.parse_args()
    options = {"logger": CSVLogger(asked.folder)} if asked.logs else {}
    cache = FrozenPrefixCache(max_bytes=0) if asked.logs else FrozenPrefixCache(directory=asked.folder, keep=True)
    strategy = {"devices": asked.devices, "strategy": "ddp"} if asked.devices > 1 else {}
    run = fit(Foreign("timm resnet"), Slow(asked.slow), cache, loaders=named_loaders(), epochs=2, **strategy, **options)
    rank = os.environ.get("LOCAL_RANK", "0")
    Path(f"{asked.output}.{rank}").write_text(json.dumps({"losses": run.losses, "val": run.val, "calls": run.calls}))
