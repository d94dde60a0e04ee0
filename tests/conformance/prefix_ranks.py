"""Train on two processes without and with a cache, and write what each has at the end: ``prefix_ranks.py FOLDER``."""

import os
import resource
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from prefix_nets import Foreign, Run, StopsAt, fit, upper_half
from torch.utils.data import DataLoader

from lightning_ft_callbacks import FrozenPrefixCache

NETS = ("bert", "gpt2", "vit", "timm vit", "timm resnet", "timm efficientnet")
RESUMED = ("gpt2", "timm resnet")
STEPS = (2, 5, 8)  # of 3 an epoch: in mid-fill, in the second epoch, in the second phase
FULL = ("one", "both")  # which ranks' disks are


class Named(list):
    """Samples with a fingerprint."""

    fingerprint = "samples"


class Folders(Callback):
    """Notes which stores of training data there are at the end of each epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stores: list[list[str]] = []

    def on_train_epoch_end(self, *_: Any) -> None:
        """Note them."""
        found = [path.name for path in self.folder.glob("fit-*/training-*") if path.is_dir()]
        self.stores.append(sorted(found))


def main() -> None:
    """Train all cases, in the same order on both ranks."""
    folder, rank = Path(sys.argv[1]), os.environ.get("LOCAL_RANK", "0")
    torch.set_num_threads(1)

    def write(name: str, run: Run, told: list[str], stores: list[list[str]] | None = None) -> None:
        torch.save({"run": asdict(run), "told": told, "stores": stores}, folder / f"{name}.{rank}.pt")

    def caches(name: str) -> dict[str, Callable[[], list[Callback]]]:
        files = {"directory": str(folder / f"files-{name}"), "max_bytes": 0}
        kept = {"directory": str(folder / f"kept-{name}"), "keep": True}
        return {
            "without": list,
            "memory": lambda: [FrozenPrefixCache()],
            "files": lambda: [FrozenPrefixCache(**files)],
            "kept": lambda: [FrozenPrefixCache(**kept)],
        }

    for net in NETS:
        for where in ("without", "memory", "files"):
            folders = Folders(folder / f"files-{net}")
            write(f"{net}-{where}", *train(net, *caches(net)[where](), folders), folders.stores)
    for net in RESUMED:
        for step in STEPS:
            for where in ("without", "memory", "kept"):
                callbacks, file = caches(f"{net}-{step}")[where], folder / f"{net}-{where}-{step}.ckpt"
                try:
                    train(net, *callbacks(), StopsAt(file, step))
                except InterruptedError:
                    write(f"{net}-{where}-{step}", *train(net, *callbacks(), ckpt_path=file))
    for who in FULL:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if who == "both" or rank == "1":
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
        run = train("timm resnet", *caches(f"full-{who}")["files"]())
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        write(f"full-{who}", *run)
    if torch.distributed.is_initialized():
        # the threads of gloo end before the interpreter does; else it aborts now and then, when all is done
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def train(net: str, *callbacks: Callback, **options: Any) -> tuple[Run, list[str]]:
    """Train the head for two epochs, then the upper half, and return what was told too."""
    module = Foreign(net)
    loaders = [
        DataLoader(Named(old.dataset), 4, shuffle=not n, collate_fn=old.collate_fn)
        for n, old in enumerate(module.loaders())
    ]
    options |= {"schedule": [{"train": ["head"], "epochs": 2}, {"train": upper_half(net)}], "loaders": loaders}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = fit(module, *callbacks, epochs=4, devices=2, strategy="ddp", **options)
    return run, [str(warning.message) for warning in caught]


if __name__ == "__main__":
    main()
