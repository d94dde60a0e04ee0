"""What turns a text or an image into a model's input, as an exported folder holds it."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lightning_ft.data.image_transforms import image_transform
from lightning_ft.export.check import NotEqualError
from lightning_ft.export.format import label_names, max_length
from lightning_ft.export.rows import Batch
from lightning_ft.extras import require
from lightning_ft.run.finished_run import FinishedRun


def write_tokenizer(run: FinishedRun, folder: Path) -> bool:
    """Write the tokenizer's files, with the length after which the run cut texts; tell whether there is one."""
    tokenizer = tokenizer_of(run)
    if tokenizer is None:
        return False
    own = deepcopy(tokenizer)
    if (limit := max_length(run)) is not None:
        own.model_max_length = min(limit, own.model_max_length)
    own.save_pretrained(folder)
    return True


def tokenizer_of(run: FinishedRun) -> Any:
    """Return the tokenizer that the run's texts went through; None for images."""
    chosen = getattr(run.data, "tokenizer", None)
    if chosen is not None:
        return run.data._tokenizer()
    return getattr(run.model.backbone, "tokenizer", None)


def image_config(run: FinishedRun) -> dict[str, Any] | None:
    """Return what the run's images were made to be, in timm's words; None for texts."""
    config: Mapping[str, Any] | None = getattr(run.model.backbone, "data_config", None)
    if config is None:
        return None
    size = getattr(run.data, "image_size", None)
    changed = {"input_size": (config["input_size"][0], size, size)} if size else {}
    return {**config, **changed}


def check_tokenizer(run: FinishedRun, folder: Path, batches: Sequence[Batch]) -> None:
    """Raise unless a folder's tokenizer makes of texts what the run's does.

    Args:
        run: The run.
        folder: The folder, with a tokenizer.
        batches: Real batches; their tokens are the texts.

    Raises:
        NotEqualError: If it makes other tokens, with the first text.
    """
    transformers = require("transformers", extra="text", needed_by="export")
    tokenizer, limit = tokenizer_of(run), max_length(run)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in (text for batch in batches for text in tokenizer.batch_decode(batch["input_ids"])):
        cut = tokenizer(text, truncation=limit is not None, max_length=limit)["input_ids"]
        if cut != theirs(text, truncation=limit is not None)["input_ids"]:
            raise NotEqualError(f"the folder's tokenizer makes other tokens than the run's of {text!r}")


def write_image_processor(run: FinishedRun, folder: Path) -> None:
    """Write ``preprocessor_config.json`` for transformers: resize, crop, scale and normalise as the run did."""
    config = image_config(run)
    assert config is not None
    transformers = require("transformers", extra="text", needed_by="export")
    height, width = config["input_size"][1:]
    processor = transformers.CLIPImageProcessor(  # the shorter side is scaled, and the middle taken
        size={"shortest_edge": int(height / (config.get("crop_pct") or 1.0))},
        crop_size={"height": height, "width": width},
        image_mean=list(config["mean"]),
        image_std=list(config["std"]),
        resample={"nearest": 0, "bicubic": 3}.get(config.get("interpolation") or "bicubic", 2),
        do_convert_rgb=True,
    )
    processor.save_pretrained(folder)


def check_images(run: FinishedRun, transform: Callable[[Any], Tensor], *, at_most: float) -> float:
    """Return how far an exported folder's transform is from the run's, on an image of noise.

    Args:
        run: The run.
        transform: From an RGB image to a tensor, shape (3, height, width).
        at_most: The largest difference that is allowed, in units of the normalised pixels.

    Raises:
        NotEqualError: If they differ by more.
    """
    from PIL import Image

    config = image_config(run)
    assert config is not None
    height, width = config["input_size"][1:]
    noise = np.random.default_rng(0).integers(0, 256, (height + 37, 2 * width + 11, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    ours, theirs = image_transform(config, image_size=None, augment=False)(image), transform(image)
    apart = (ours - theirs).abs().max().item() if ours.shape == theirs.shape else float("inf")
    if not apart <= at_most:
        raise NotEqualError(f"what the folder makes of an image differs from what the run made of it by {apart:.2g}")
    return apart


def description(run: FinishedRun) -> dict[str, Any]:
    """Return what a folder's ``config.json`` says of inputs and labels beside the model itself."""
    found: dict[str, Any] = {"task": task_of(run), "label_names": label_names(run)}
    if tokenizer_of(run) is not None:
        found["max_length"] = max_length(run)
    elif (config := image_config(run)) is not None:
        found["image"] = {**config, "input_size": list(config["input_size"])}
    return found


def task_of(run: FinishedRun) -> str:
    """Return what the run learnt, as ``Labels.task`` names it."""
    head = run.model.head
    return getattr(head, "task", None) or next(iter(head.tasks), type(head).__name__)
