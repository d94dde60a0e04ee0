"""The model card: ``README.md`` with metadata as model hubs read it, written from what was measured and set."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from lightning_ft.export.format import Format, label_names, max_length
from lightning_ft.export.preprocessing import image_config, task_of
from lightning_ft.export.scores import Score, scores_of
from lightning_ft.export.sources import base_model, data_source, hub_datasets, license_of
from lightning_ft.extras import require
from lightning_ft.run.finished_run import FinishedRun

CARD = "README.md"
PIPELINES = {
    "multiclass": "text-classification",
    "multilabel": "text-classification",
    "regression": "text-classification",
    "entities": "token-classification",
    "tags": "token-classification",
    "causal": "text-generation",
    "masked": "fill-mask",
    "segmentation": "image-segmentation",
    "detection": "object-detection",
}
LIBRARIES = {"safetensors": "lightning-ft", "torch": "pytorch"}
TASKS = {
    "multiclass": "one class a sample",
    "multilabel": "any number of classes a sample",
    "regression": "a number a sample",
    "entities": "named entities",
    "tags": "a class a word",
    "causal": "the next token of a text",
    "masked": "hidden tokens of a text",
    "segmentation": "a class a pixel",
    "detection": "boxes around objects, and their classes",
    "recommendation": "what a user wants next",
}
SETTINGS = ("lr", "weight_decay", "lr_schedule", "warmup", "optimizer")
TRAINER = ("max_epochs", "max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val")
MOST_LABELS = 100


def write_card(one: Format, folder: Path, *, name: str, difference: float, num_rows: int, dtype: torch.dtype) -> None:
    """Write a folder's model card.

    Args:
        one: The format that the folder has.
        folder: The folder.
        name: The name that it will have, which the lines that load it use.
        difference: The largest difference from the run's model that was seen.
        num_rows: The real rows that it was seen on.
        dtype: The numbers that weights are written as.
    """
    hub = require("huggingface_hub", extra="export", needed_by="export")
    body = "\n\n".join(_sections(one, name, difference, num_rows, dtype))
    card = hub.ModelCard(f"---\n{_metadata(hub, one, name).to_yaml()}\n---\n\n{body}\n")
    (folder / CARD).write_text(str(card), encoding="utf-8")


def _metadata(hub: Any, one: Format, name: str) -> Any:
    """Return what hubs read: only what is known."""
    run = one.run
    task, images = task_of(run), image_config(run) is not None
    pipeline = PIPELINES.get(task)
    if images and pipeline == "text-classification":
        pipeline = "image-classification"
    scores = [score for score in scores_of(run) if score.value is not None]
    results = [
        hub.EvalResult(
            task_type=pipeline or "other",
            dataset_type="local",
            dataset_name=data_source(run, score.stage),
            dataset_split={"val": "validation"}.get(score.stage, score.stage),
            metric_type=score.metric,
            metric_name=score.metric,
            metric_value=score.value,
        )
        for score in scores
    ]
    given = {
        "license": license_of(run) or "unknown",
        "library_name": LIBRARIES.get(one.name, one.name),
        "pipeline_tag": pipeline,
        "base_model": base_model(run),
        "tags": ["lightning-ft"],
        "datasets": hub_datasets(run) or None,
        "metrics": sorted({score.metric for score in scores}) or None,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if results:
        given |= {"model_name": name, "eval_results": results}
    return hub.ModelCardData(**given)


def _sections(one: Format, name: str, difference: float, num_rows: int, dtype: torch.dtype) -> Iterator[str]:
    run = one.run
    yield f"# {code(name)}"
    yield (
        f"{code(_model(run))}, fine-tuned by lightning-ft to predict {TASKS.get(task_of(run), task_of(run))}, and "
        f"exported as {one.name}. This card was written by the export from the run's own files."
    )
    yield f"## How to use\n\n{code(f'pip install {one.requirements()}')}\n\n{fenced(one.usage(name), 'python')}"
    about = list(_about_inputs(run))
    if about:
        yield "## Inputs and outputs\n\n" + "\n".join(f"- {line}" for line in about)
    yield "## Training\n\n" + "\n".join(f"- {line}" for line in _training(run))
    scores = scores_of(run)
    if scores:
        yield _results(run, scores)
    digits = str(dtype).removeprefix("torch.")
    exact = (
        f"On {num_rows} real rows its outputs differ from those of the run's model, in float32, by {difference:.1g} of "
        f"the largest output at most. Weights are {digits}."
    )
    yield "## The export\n\n" + "\n".join(f"- {line}" for line in [exact, *one.notes])


def _model(run: FinishedRun) -> str:
    backbone = run.model.backbone
    name = getattr(backbone, "name", None) or getattr(getattr(backbone.model, "config", None), "model_type", None)
    return f"{name or type(backbone.model).__name__} with {type(run.model.head).__name__}"


def _about_inputs(run: FinishedRun) -> Iterator[str]:
    limit, config = max_length(run), image_config(run)
    if config is not None:
        size, mean, std = ([*map(float, config[key])] for key in ("input_size", "mean", "std"))
        yield f"Images of {size[1]:.0f} x {size[2]:.0f} pixels, RGB, mean {mean} and standard deviation {std}."
    elif limit is not None:
        yield f"Texts of up to {limit} tokens; the run cut longer ones or read them in windows."
    if getattr(run.data, "text_pair_column", None):
        yield "Pairs of texts."
    names = label_names(run)
    if names is not None and run.model.label_names and len(names) <= MOST_LABELS:
        yield f"Classes, in the order of the outputs: {', '.join(map(code, names))}. It knows no other."
    elif names is not None and run.model.label_names:
        yield f"{len(names)} classes, named in the folder's files. It knows no other."


def _training(run: FinishedRun) -> Iterator[str]:
    state = next(
        (run.saved[kind.__qualname__] for kind in type(run.data).__mro__ if kind.__qualname__ in run.saved), {}
    )
    rows = state.get("num_rows")
    yield f"Data: {code(data_source(run, 'train'))}" + ("" if rows is None else f", {rows} rows to train on") + "."
    epochs, steps = run.saved["epoch"] + 1, run.saved["global_step"]
    yield f"The checkpoint is that of epoch {epochs}, after {steps} optimizer steps ({code(run.checkpoint.name)})."
    model, trainer = run.config["model"], run.config.get("trainer") or {}
    settings = {key: _plain(model.get(key)) for key in SETTINGS}
    settings |= {"batch_size": _plain((run.config["data"].get("init_args") or {}).get("batch_size"))}
    settings |= {key: _plain(trainer.get(key)) for key in TRAINER}
    settings |= {"seed": _plain(run.config.get("seed_everything"))}
    settings = {key: value for key, value in settings.items() if value not in (None, "", "-1")}
    yield "Settings: " + ", ".join(f"{key} {code(value)}" for key, value in settings.items()) + "."
    callbacks = trainer.get("callbacks") or []
    names = [_plain(callback) for callback in (callbacks if isinstance(callbacks, list) else [callbacks])]
    if any(names):
        yield f"Callbacks: {', '.join(code(name) for name in names if name)}."
    lora = (model["backbone"].get("init_args") or {}).get("lora")
    if lora is not None:
        yield f"LoRA by peft: {code(', '.join(f'{key} {value}' for key, value in lora.items()) or 'its defaults')}."


def _results(run: FinishedRun, scores: list[Score]) -> str:
    lines = ["| metric | value | measured on |", "|---|---|---|"]
    lines += [
        f"| {cell(score.metric)} | {'not a number' if score.value is None else f'{score.value:.4f}'} | "
        f"{cell(score.place(data_source(run, score.stage)))} |"
        for score in scores
    ]
    said = "## Results\n\n" + "\n".join(lines)
    own = (run.config["data"].get("init_args") or {}).get
    held = sorted({score.stage for score in scores if own(f"{score.stage}_file") is None})
    if held:
        said += (
            "\n\nThe rows were held out of the file that it was trained on: what comes from elsewhere may score "
            "differently."
        )
    return said


def _plain(value: Any) -> str | None:
    """Return a setting as a word: a number, a name, or the class of a part; nothing that might be a path."""
    if isinstance(value, Mapping):
        value = str(value.get("class_path", "")).rpartition(".")[2]
    return None if value is None or (isinstance(value, str) and "/" in value) else str(value)


def code(text: str) -> str:
    """Return text as code in a line of Markdown, in which nothing else is read."""
    line = " ".join(str(text).split()) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"


def cell(text: str) -> str:
    """Return text as code in a cell of a table, where a bar would end it."""
    return code(text).replace("|", "\\|")


def fenced(text: str, language: str) -> str:
    """Return lines of code as a block, whatever backticks are in them."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"
