"""An adapter of peft, without the model that it adapts."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ft.export.format import Format, write_json
from lightning_ft.export.preprocessing import description, write_tokenizer
from lightning_ft.export.rows import Batch
from lightning_ft.extras import import_class, require

HEAD, CONFIG = "head.safetensors", "lightning_ft.json"


class PeftAdapter(Format):
    """``adapter_config.json`` and ``adapter_model.safetensors`` for the backbone, and beside them the head."""

    name = "peft"
    merges = False

    def refusal(self) -> str | None:
        """Return why there is no adapter."""
        return None if self._options is not None else "the run trained no adapters: its backbone has no lora"

    def write(self, folder: Path, batches: Sequence[Batch], wanted: Sequence[Tensor], dtype: torch.dtype) -> None:  # noqa: ARG002
        """Write the adapter, the head and the tokenizer."""
        peft = require("peft", extra="peft", needed_by="export --format peft")
        safetensors = require("safetensors.torch", extra="export", needed_by="export --format peft")
        backbone, head = self.run.model.backbone, self.run.model.head
        (own,) = {id(part): part for part in _configs(backbone.model)}.values()
        config = peft.LoraConfig(
            **{**(self._options or {}), "target_modules": own.target_modules, "inference_mode": True},
            base_model_name_or_path=self._base,
        )
        weights = {
            f"base_model.model.{name.replace('.default', '')}": value.contiguous()
            for name, value in backbone.model.state_dict().items()
            if "lora_" in name
        }
        safetensors.save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
        config.save_pretrained(folder)
        tied = {id(value) for value in backbone.parameters()}
        parts = {
            name: value.contiguous() for name, value in head.state_dict(keep_vars=True).items() if id(value) not in tied
        }
        if parts:
            safetensors.save_file({name: value.detach() for name, value in parts.items()}, folder / HEAD)
        write_json(folder / CONFIG, {"head": type(head).__name__, **description(self.run)})
        write_tokenizer(self.run, folder)

    def reader(self, folder: Path) -> Callable[[Batch], Tensor]:
        """Load the backbone from where the run took it, and the adapter onto it, by peft."""
        peft = require("peft", extra="peft", needed_by="export --format peft")
        adapted = self.run.model.backbone
        part = self.run.config["model"]["backbone"]
        arguments = {**part["init_args"], "lora": None, "gradient_checkpointing": False}
        base = import_class(part["class_path"])(**arguments)
        loaded = peft.PeftModel.from_pretrained(base.model, str(folder)).eval()

        def predict(batch: Batch) -> Tensor:
            mine, adapted.model = adapted.model, loaded.base_model.model
            try:
                return self.run.model(batch)
            finally:
                adapted.model = mine

        return predict

    def usage(self, folder: str) -> str:
        """Return lines that load it."""
        backbone = self.run.model.backbone
        arguments = repr(self._base or "the folder or run that this one began with")
        if hasattr(backbone, "pyramid"):
            arguments += f", pyramid={backbone.pyramid}"
        return (
            f"from lightning_ft import {type(backbone).__name__}\nfrom peft import PeftModel\n\n"
            f"base = {type(backbone).__name__}({arguments}).model\n"
            f"model = PeftModel.from_pretrained(base, {folder!r})"
        )

    def requirements(self) -> str:
        """Return peft."""
        return "peft transformers"

    @property
    def _options(self) -> Mapping[str, Any] | None:
        return getattr(self.run.model.backbone, "lora", None)

    @property
    def _base(self) -> str | None:
        """The backbone's address in a package or name on a hub; None for a file or folder of this machine."""
        name = str((self.run.config["model"]["backbone"].get("init_args") or {}).get("name", ""))
        local = name.startswith((".", "~", "/")) or Path(name).exists()
        return None if local else name


def _configs(model: nn.Module) -> list[Any]:
    """Return peft's configuration, which it keeps at the model."""
    return list(getattr(model, "peft_config", {}).values())
