"""A folder of safetensors that any run can be exported to, and ``load_exported``, which reads it."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_ft.backbones.base import Backbone
from lightning_ft.export.format import Format, write_json
from lightning_ft.export.preprocessing import description, write_tokenizer
from lightning_ft.export.rows import Batch
from lightning_ft.extras import import_class, require
from lightning_ft.heads.base import Head
from lightning_ft.module import FineTuner

WEIGHTS, CONFIG, BACKBONE = "model.safetensors", "config.json", "backbone"


class TensorsFolder(Format):
    """All weights under a FineTuner's names, and what rebuilds it: ``load_exported`` returns the module."""

    name = "safetensors"
    exact = 0.0  # the same module, with the same numbers
    dtypes = (torch.float32, torch.float16, torch.bfloat16)

    def refusal(self) -> str | None:
        """Return None: any backbone and any head can be written."""
        return None

    def write(self, folder: Path, batches: Sequence[Batch], wanted: Sequence[Tensor], dtype: torch.dtype) -> None:  # noqa: ARG002
        """Write the weights, their configuration, and the tokenizer."""
        safetensors = require("safetensors.torch", extra="export", needed_by="export --format safetensors")
        model = self.run.model
        kept = {name: value.clone() for name, value in model.state_dict().items()} if dtype != torch.float32 else {}
        safetensors.save_model(model.to(dtype), str(folder / WEIGHTS), {"format": "pt"})
        if kept:  # the run's model goes on as it was
            model.float().load_state_dict(kept)
        own = model.backbone.description()
        for name, content in own.get("files", {}).items():
            (folder / BACKBONE).mkdir(exist_ok=True)
            (folder / BACKBONE / Path(name).name).write_bytes(content.numpy().tobytes())
        head = self.run.config["model"]["head"]
        content = {
            "format": "lightning-ft",
            "version": 1,
            "backbone": {
                "class_path": _class_path(model.backbone),
                "init_args": _without_source(self.run.config["model"]["backbone"].get("init_args") or {}),
                "data_config": getattr(model.backbone, "data_config", None),
            },
            "head": {"class_path": _class_path(model.head), "init_args": dict(head.get("init_args") or {})},
            **description(self.run),
        }
        write_json(folder / CONFIG, content)
        write_tokenizer(self.run, folder)

    def reader(self, folder: Path) -> Callable[[Batch], Tensor]:
        """Load the folder by ``load_exported``."""
        return load_exported(folder)

    def usage(self, folder: str) -> str:
        """Return lines that load it."""
        lines = f"from lightning_ft import load_exported\n\nmodel = load_exported({folder!r})\n"
        if (self.run.model.backbone.__dict__.get("tokenizer")) is None:
            return f"{lines}print(type(model.backbone).__name__, type(model.head).__name__, model.label_names)"
        return (
            f'{lines}inputs = model.backbone.tokenizer(["A text"], return_tensors="pt")\n'
            "print(model.label_names, model(inputs).shape)"
        )

    def requirements(self) -> str:
        """Return lightning-ft."""
        return "lightning-ft safetensors"


def load_exported(folder: str | Path) -> FineTuner:
    """Load what ``lightning-ft export --format safetensors`` wrote.

    Args:
        folder: The folder.

    Returns:
        The module, in 32 bits and in eval mode, with its label names.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the folder holds another format, a part that is no backbone or no head, or weights that do not
            fit it.
    """
    folder = Path(folder)
    safetensors = require("safetensors.torch", extra="export", needed_by="load_exported")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{str(folder)!r} is no exported folder: it has no {name}")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(folder / CONFIG)!r} is no JSON: {error}") from error
    if config.get("format") != "lightning-ft":
        raise ValueError(f"{str(folder)!r} is of another format: load it with the library that it is for")
    part = config["backbone"]
    arguments = part["init_args"]
    if (folder / BACKBONE).is_dir():
        arguments |= {"name": str(folder / BACKBONE)}
    with torch.random.fork_rng(devices=[]):  # weights drawn here are replaced
        backbone = _class(part["class_path"], Backbone)(**arguments)
        if part["data_config"] is not None:
            backbone.data_config = part["data_config"]
        head = _class(config["head"]["class_path"], Head)
        model = FineTuner(backbone, lambda features: head(features, **config["head"]["init_args"]))
    try:
        missing, strange = safetensors.load_model(model, str(folder / WEIGHTS), strict=False)
    except (RuntimeError, OSError, ValueError) as error:
        raise ValueError(f"{str(folder / WEIGHTS)!r} does not fit the model: {str(error).splitlines()[0]}") from error
    except Exception as error:  # safetensors' own, which derives from nothing else
        raise ValueError(f"{str(folder / WEIGHTS)!r} is cut short or no safetensors file ({error})") from error
    if missing or strange:
        raise ValueError(
            f"{str(folder / WEIGHTS)!r} does not fit the model: {[*missing, *strange][0]!r} is in one of them only"
        )
    names = config["label_names"]
    model.label_names = None if names is None else tuple(names)
    return model.float().eval()


def _class(path: str, base: type) -> Any:
    found = import_class(path)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{path} is no {base.__name__}")
    return found


def _class_path(part: object) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"


def _without_source(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a backbone's arguments for weights that are in the folder: none to load, no adapters, nothing to trace."""
    changed = {"pretrained": False, "checkpoint": None, "lora": None, "gradient_checkpointing": False}
    return {name: changed.get(name, value) for name, value in arguments.items()}
