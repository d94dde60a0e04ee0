"""FinishedRun: a run's model and data, built again from its folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

from lightning_ft.config_errors import explain
from lightning_ft.module import FineTuner
from lightning_ft.recipe import build_data, rebuild_from
from lightning_ft.run.arguments import RUNS
from lightning_ft.run.checkpoint_io import load_checkpoint
from lightning_ft.run.folder import CONFIG, best_checkpoint, newest_checkpoint, run_folder_of
from lightning_ft.trusted_code import trusting


@dataclass(frozen=True, slots=True, eq=False)
class FinishedRun:
    """What a run was and became.

    Attributes:
        folder: The run's folder.
        config: Its ``config.yaml``, as it stands there.
        checkpoint: Its best checkpoint, or its newest whole one where no best was kept.
        saved: What that checkpoint holds.
        model: The module with the checkpoint's weights, on the CPU, in eval mode.
        data: The data module, which has read nothing yet.
    """

    folder: Path
    config: Mapping[str, Any]
    checkpoint: Path
    saved: Mapping[str, Any]
    model: FineTuner
    data: Any


def find_run(run: str | Path, root: str | Path = RUNS) -> Path:
    """Return the folder of a run.

    Args:
        run: A run's folder, or ``last`` for the newest one with a whole checkpoint.
        root: The folder that holds the runs.

    Raises:
        FileNotFoundError: If there is no such run, or none that kept a checkpoint.
    """
    if str(run) != "last":
        return Path(run)
    folder = run_folder_of(newest_checkpoint(root))
    assert folder is not None
    return folder


def finished_run(
    folder: str | Path, *, merge: bool = False, data: Mapping[str, Any] | None = None, safe: bool | None = None
) -> FinishedRun:
    """Build a run's model and data again, from nothing but its folder.

    Args:
        folder: The run's folder.
        merge: Whether the adapters of a run with ``lora`` are merged into the weights.
        data: Arguments of the data module that replace the run's: ``{"predict_file": "new.csv"}``.
        safe: Whether to refuse other people's classes in its configuration, instead of naming them; None to trust them.

    Raises:
        FileNotFoundError: If there is no such folder, configuration or checkpoint.
        ValueError: If the configuration is none of a run, or the checkpoint is of another model, cut short, or holds
            more than tensors and plain data.
    """
    folder = Path(folder)
    checkpoint = best_checkpoint(folder)
    config = read_config(folder)
    saved = load_checkpoint(checkpoint)
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(FineTuner, "model")
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    try:
        content = {key: config[key] for key in ("model", "data")}
        if safe is None:
            parts = parser.parse_object(content)
        else:
            parts = trusting(lambda: parser.parse_object(content), safe=safe)
    except ValueError as error:
        raise ValueError(f"{str(folder / CONFIG)!r}: {explain(str(error), parser, ())}") from error
    backbone = parts.model.backbone.get("init_args") or Namespace()
    merged = merge and backbone.get("lora") is not None
    rebuild_from(Namespace(ckpt_path=str(checkpoint), model=parts.model, data=parts.data), saved, merge=merged)
    for name, value in (data or {}).items():
        parts.data.init_args[name] = value
    built = build_data(parts.data)
    model = _build(parser, parts.model)
    whole = dict(saved)
    if merged:  # the backbone took its weights from the checkpoint
        head = {name: value for name, value in saved["state_dict"].items() if name in _head(model)}
        whole = {"state_dict": {**model.state_dict(), **head}}
    model.check_fits(whole)
    model.load_state_dict(whole["state_dict"])
    names = saved.get("label_names")
    model.label_names = None if names is None else tuple(names)
    return FinishedRun(folder, config, checkpoint, saved, model.eval(), built)


def read_config(folder: Path) -> dict[str, Any]:
    """Return a run's configuration.

    Raises:
        FileNotFoundError: If the folder has none.
        ValueError: If it is no mapping with a model and data.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"{str(folder)!r} is no run's folder: it has no {CONFIG}")
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(file)!r} is no YAML: {str(error).splitlines()[0]}") from error
    missing = [key for key in ("model", "data") if not isinstance(config, dict) or not config.get(key)]
    if missing:
        raise ValueError(f"{str(file)!r} is no configuration of a run: it has no {missing[0]}")
    return config


def _head(model: FineTuner) -> set[str]:
    return {f"head.{name}" for name in model.head.state_dict()}


def _build(parser: LightningArgumentParser, config: Namespace) -> FineTuner:
    """Build the module; what the data had filled in stands in the run's configuration."""
    config.compile = False
    with torch.random.fork_rng(devices=[]):  # weights drawn here are replaced by the checkpoint's
        return parser.instantiate(Namespace(model=config))["model"]
