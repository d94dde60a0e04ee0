"""A folder of timm, for ``timm.create_model``."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ft.export.format import Format, label_names
from lightning_ft.export.layouts import Classifier
from lightning_ft.export.preprocessing import check_images, image_config
from lightning_ft.export.rows import Batch
from lightning_ft.extras import require

WEIGHTS = "model.safetensors"
OF_OTHER_WEIGHTS = ("tag", "hf_hub_id", "url", "license", "origin_url", "paper_ids", "paper_name")


class TimmFolder(Format):
    """Weights and ``config.json`` as timm's folders on the hub have them."""

    name = "timm"
    dtypes = (torch.float32, torch.float16, torch.bfloat16)

    def refusal(self) -> str | None:
        """Return why timm has no place for this model."""
        backbone, head = self.run.model.backbone, self.run.model.head
        if not hasattr(backbone, "pyramid"):
            return f"{type(backbone).__name__} is no model of timm"
        if backbone.pyramid or not hasattr(head, "layers") or not hasattr(head, "pool"):
            return f"timm's models end in a classifier of the whole image, and {type(head).__name__} is none"
        if Classifier.of(head).hidden is not None:
            return "timm's classifiers are one linear layer, and this head has a hidden layer before it"
        return None

    def write(self, folder: Path, batches: Sequence[Batch], wanted: Sequence[Tensor], dtype: torch.dtype) -> None:  # noqa: ARG002
        """Write the weights and the configuration."""
        timm = require("timm", extra="vision", needed_by="export")
        from timm.models import save_for_hf

        classifier = Classifier.of(self.run.model.head)
        model = timm.create_model(self._architecture, pretrained=False, num_classes=len(classifier.bias))
        model.load_state_dict(self.run.model.backbone.model.state_dict(), strict=False)
        last = model.get_classifier()
        if not isinstance(last, nn.Linear | nn.Conv2d):
            raise ValueError(f"timm's {self._architecture} has no classifier of one layer: {type(last).__name__}")
        with torch.no_grad():
            last.weight.copy_(classifier.weight.view_as(last.weight))
            assert last.bias is not None
            last.bias.copy_(classifier.bias)
        config = image_config(self.run)
        assert config is not None
        # neither the name nor the licence of weights that these are not
        model.pretrained_cfg = {**model.pretrained_cfg, **config, **dict.fromkeys(OF_OTHER_WEIGHTS)}
        save_for_hf(
            model.to(dtype),
            str(folder),
            model_config={"label_names": label_names(self.run)},
            safe_serialization=True,
            data_config=config,
        )

    def reader(self, folder: Path) -> Callable[[Batch], Tensor]:
        """Load the weights by ``checkpoint_path``, and see that ``local-dir:`` gives the same."""
        timm = require("timm", extra="vision", needed_by="export")
        number = self.run.model.head.num_classes
        model = timm.create_model(self._architecture, num_classes=number, checkpoint_path=str(folder / WEIGHTS)).eval()
        other = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        dtype = next(other.parameters()).dtype
        check_images(self.run, timm.data.create_transform(**timm.data.resolve_model_data_config(other)), at_most=0.0)

        def predict(batch: Batch) -> Tensor:
            images = batch["pixel_values"]
            ours, theirs = model(images), other(images.to(dtype)).float()
            # both are checked: an error in one is that of the pair
            return torch.where((ours - theirs).abs() <= self.exact * ours.abs().max().clamp(min=1), ours, theirs)

        return predict

    def usage(self, folder: str) -> str:
        """Return lines that load it."""
        return (
            "import timm\nfrom PIL import Image\n\n"
            f"model = timm.create_model({f'local-dir:{folder}'!r}, pretrained=True).eval()\n"
            f"# the weights alone: timm.create_model({self._architecture!r}, "
            f"num_classes={self.run.model.head.num_classes}, checkpoint_path={f'{folder}/{WEIGHTS}'!r})\n"
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
            'image = Image.new("RGB", (64, 64))  # yours\n'
            'print(model.pretrained_cfg["label_names"][model(transform(image)[None]).argmax(-1).item()])'
        )

    def requirements(self) -> str:
        """Return timm."""
        return "timm safetensors"

    @property
    def _architecture(self) -> str:
        backbone: Any = self.run.model.backbone
        return backbone.model.pretrained_cfg["architecture"]
