"""Real rows of a run's data, on which an export is compared with the model that it is of."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_ft.run.finished_run import FinishedRun

Batch = dict[str, Tensor]

SIZES = (3, 1, 8)  # samples a batch: several, because an export may hold for one size alone
NUM_BATCHES = 2  # of each size
LONGEST = 128  # tokens of a row that a language model is compared on: each has a vocabulary of logits


def real_batches(run: FinishedRun) -> list[Batch]:
    """Return small batches of the rows that the run was validated on, else of those it was trained on.

    Where the data was given a ``predict_file``, they are of its rows.

    Args:
        run: The run; its data is set up for it.

    Raises:
        FileNotFoundError: If the data's files are gone.
    """
    data = run.data
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.strategy.connect(run.model)  # the data asks the trainer's module for its tokenizer and image size
    data.trainer = trainer
    own = getattr(data, "files", {}).get("predict") is not None
    data.setup("predict" if own else "validate")
    batches = list(_batches(data, "predict" if own else "val"))
    if not batches:  # nothing was held out
        data.setup("fit")
        batches = list(_batches(data, "train"))
    if hasattr(run.model.head, "language_model"):
        batches = [
            {name: value[:, :LONGEST] for name, value in batch.items() if name != "position_ids"} for batch in batches
        ]
    return batches


def _batches(data: Any, part: str) -> Iterator[Batch]:
    size = getattr(data, "batch_size", None)
    for number in SIZES:
        if size is not None:
            data.batch_size = number
        with torch.random.fork_rng(devices=[]):
            yield from islice(getattr(data, f"{part}_dataloader")(), NUM_BATCHES)
    if size is not None:
        data.batch_size = size
