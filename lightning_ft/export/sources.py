"""What a run was made of, as others may know it: names of hubs and packages, never a place on this machine."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_ft.data.tables import READERS
from lightning_ft.extras import require
from lightning_ft.hub import in_hub_cache
from lightning_ft.resources import SCHEME, resolve
from lightning_ft.run.finished_run import FinishedRun

ON_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")


def base_model(run: FinishedRun) -> str | None:
    """Return the name of the backbone's weights on the model hub; None where they came from elsewhere."""
    arguments = _arguments(run, "backbone")
    name, backbone = str(arguments.get("name", "")), run.model.backbone
    if not arguments.get("pretrained", True) or arguments.get("checkpoint") is not None:
        return None
    if hasattr(backbone, "pyramid"):
        name = name.removeprefix("hf-hub:") if ":" in name else backbone.model.pretrained_cfg.get("hf_hub_id") or ""
    # a folder may have such a name too; what the hub's cache holds is the hub's
    there = bool(ON_HUB.fullmatch(name)) and not Path(name).exists()
    return name if there and in_hub_cache(name, "config.json", "model.safetensors") else None


def license_of(run: FinishedRun) -> str | None:
    """Return the licence that the backbone's own model card states; None where there is none to be read."""
    hub = require("huggingface_hub", extra="export", needed_by="export")
    try:
        file = Path(resolve(str(_arguments(run, "backbone").get("name", "")))) / "README.md"
    except FileNotFoundError:
        return None
    if not file.is_file():
        return None
    try:
        said = hub.ModelCard.load(file).data.to_dict().get("license")
    except Exception:  # whatever is wrong with somebody else's card
        return None
    return said if isinstance(said, str) and re.fullmatch(r"[\w.+-]+", said) else None


def data_source(run: FinishedRun, part: str) -> str:
    """Return where a part's rows came from: a file's name, an address in a package, or a data set of the hub."""
    arguments = _arguments(run, "data")
    source = arguments.get(f"{part}_file") or arguments.get("train_file") or ""
    if str(source).startswith(SCHEME) or _on_hub(str(source)):
        return str(source)
    return Path(str(source)).name or "not known"


def hub_datasets(run: FinishedRun) -> list[str]:
    """Return the data sets of the hub that the run was trained on."""
    source = str(_arguments(run, "data").get("train_file") or "")
    # the run's own rows have been read by now, so that what is no file was a name
    read = getattr(run.data, "files", {}).get("predict") is None
    return [source.partition(":")[0]] if read and _on_hub(source) else []


def _on_hub(source: str) -> bool:
    name, path = source.partition(":")[0], Path(source)
    return bool(ON_HUB.fullmatch(name)) and not path.exists() and path.suffix not in (*READERS, ".txt", ".conll")


def _arguments(run: FinishedRun, part: str) -> Mapping[str, Any]:
    config = run.config["data"] if part == "data" else run.config["model"][part]
    return config.get("init_args") or {}
