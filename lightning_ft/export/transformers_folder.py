"""A folder of transformers, for ``AutoModelFor...from_pretrained``."""

import inspect
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_ft.export.check import NotEqualError, difference
from lightning_ft.export.format import Format, inputs_of, label_names
from lightning_ft.export.layouts import Classifier, layouts
from lightning_ft.export.preprocessing import (
    check_images,
    task_of,
    tokenizer_of,
    write_image_processor,
    write_tokenizer,
)
from lightning_ft.export.rows import Batch
from lightning_ft.extras import require

CLASSES = {
    "causal": "CausalLM",
    "masked": "MaskedLM",
    "entities": "TokenClassification",
    "tags": "TokenClassification",
    "multiclass": "SequenceClassification",
    "multilabel": "SequenceClassification",
    "regression": "SequenceClassification",
}
PROBLEMS = {
    "multiclass": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}

PIXELS = 0.1  # in units of normalised pixels: image libraries round and filter differently


class TransformersFolder(Format):
    """Config, weights, and tokenizer or image processor, as ``save_pretrained`` writes them."""

    name = "transformers"
    dtypes = (torch.float32, torch.float16, torch.bfloat16)

    @property
    def auto_class(self) -> str:
        """The class of transformers that loads it."""
        return f"AutoModelFor{self._kind}"

    @property
    def _kind(self) -> str:
        images = getattr(self.run.model.backbone, "data_config", None) is not None
        kind = CLASSES.get(task_of(self.run), "")
        return "ImageClassification" if images and kind == "SequenceClassification" else kind

    def refusal(self) -> str | None:
        """Return why transformers has no place for this model."""
        backbone, head = self.run.model.backbone, self.run.model.head
        config = getattr(backbone.model, "config", None)
        if config is None or not hasattr(config, "model_type"):
            return f"{type(backbone).__name__} is no model of transformers"
        if not self._kind:
            return f"transformers has no class with the layers of {type(head).__name__}"
        if not hasattr(head, "language_model") and not hasattr(head, "layers"):
            return f"transformers has no class with the layers of {type(head).__name__}"
        if getattr(head, "crf", None) is not None:
            return "transformers' classes for tokens have no CRF, which decides this head's classes"
        if getattr(config, "is_encoder_decoder", False):
            return f"the run has the encoder of {config.model_type} alone, and its class has a decoder too"
        if not hasattr(head, "language_model") and type(config) not in self._mapping():
            return f"transformers has no {self.auto_class} of {config.model_type}"
        return None

    def write(self, folder: Path, batches: Sequence[Batch], wanted: Sequence[Tensor], dtype: torch.dtype) -> None:
        """Write the model, its tokenizer or image processor, and the label names."""
        whole = self._whole(batches, wanted)
        whole.to(dtype).save_pretrained(folder)
        if not write_tokenizer(self.run, folder):
            write_image_processor(self.run, folder)

    def reader(self, folder: Path) -> Callable[[Batch], Tensor]:
        """Load the folder by its Auto class."""
        transformers = require("transformers", extra="text", needed_by="export")
        model = getattr(transformers, self.auto_class).from_pretrained(folder, local_files_only=True).eval()
        if self._kind == "ImageClassification":
            make = transformers.AutoImageProcessor.from_pretrained(folder)
            apart = check_images(
                self.run, lambda image: make(images=image, return_tensors="pt")["pixel_values"][0], at_most=PIXELS
            )
            self.notes.append(f"Pixels of its image processor differ by {apart:.1g} at most from those of the run's.")

        def predict(batch: Batch) -> Tensor:
            inputs = inputs_of(self.run, batch)
            if "pixel_values" in inputs:
                return model(pixel_values=inputs["pixel_values"].to(model.dtype)).logits
            taken = inspect.signature(model.forward).parameters
            return model(**{name: value for name, value in inputs.items() if name in taken}).logits

        return predict

    def usage(self, folder: str) -> str:
        """Return lines that load it."""
        images = self._kind == "ImageClassification"
        maker = "AutoImageProcessor" if images else "AutoTokenizer"
        call = 'make(images=image, return_tensors="pt")' if images else 'make("A text", return_tensors="pt")'
        opened = 'image = Image.new("RGB", (64, 64))  # yours\n' if images else ""
        imported = "from PIL import Image\n" if images else ""
        if self._kind in ("CausalLM", "MaskedLM"):
            last = "print(make.decode(model(**inputs).logits[0, -1].argmax()))"
        elif self._kind == "TokenClassification":
            last = "print([model.config.id2label[number] for number in model(**inputs).logits[0].argmax(-1).tolist()])"
        elif task_of(self.run) == "multiclass":
            last = "print(model.config.id2label[model(**inputs).logits.argmax(-1).item()])"
        else:
            last = "print(model(**inputs).logits" + (".sigmoid()" if task_of(self.run) == "multilabel" else "") + ")"
        return (
            f"{imported}from transformers import {self.auto_class}, {maker}\n\n"
            f"make = {maker}.from_pretrained({folder!r})\n"
            f"model = {self.auto_class}.from_pretrained({folder!r})\n"
            f"{opened}inputs = {call}\n{last}"
        )

    def requirements(self) -> str:
        """Return transformers."""
        return "transformers torch"

    def _mapping(self) -> Any:
        transformers = require("transformers", extra="text", needed_by="export")
        kind = {
            "SequenceClassification": "SEQUENCE_CLASSIFICATION",
            "TokenClassification": "TOKEN_CLASSIFICATION",
            "ImageClassification": "IMAGE_CLASSIFICATION",
        }[self._kind]
        return getattr(transformers, f"MODEL_FOR_{kind}_MAPPING")

    def _whole(self, batches: Sequence[Batch], wanted: Sequence[Tensor]) -> Any:
        """Return the model of transformers that is the run's."""
        backbone, head = self.run.model.backbone, self.run.model.head
        if hasattr(head, "language_model"):
            own: Any = head.language_model
            whole = deepcopy(own.model)  # without its trunk
            setattr(whole, own._place, backbone.model)
            whole.tie_weights()
            return whole.eval()
        whole = self._classifier()
        trunk = whole.base_model_prefix
        getattr(whole, trunk).load_state_dict(backbone.model.state_dict(), strict=False)
        before = deepcopy(whole.state_dict())
        classifier, least = Classifier.of(head), float("inf")
        for note, write in layouts(whole, trunk, classifier):
            whole.load_state_dict(before)
            write()
            apart = difference(lambda batch: self._logits(whole, batch), batches, wanted)
            if apart <= self.exact:
                self.notes += [note] * bool(note)
                return whole
            least = min(least, apart)
        raise NotEqualError(self._no_place(whole, least))

    def _classifier(self) -> Any:
        """Return a model with the classes of the run, whose classification layers are new."""
        config = deepcopy(self.run.model.backbone.model.config)
        names = label_names(self.run) or []
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
        if (problem := PROBLEMS.get(task_of(self.run))) is not None:
            config.problem_type = problem
        if getattr(config, "classifier_activation", None) is True:
            config.classifier_activation = False  # MobileBERT's first token as it is, without dense layer and tanh
        tokenizer = tokenizer_of(self.run)
        if tokenizer is not None and getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = tokenizer.pad_token_id
        return self._mapping()[type(config)]._from_config(config).eval()

    @torch.no_grad()
    def _logits(self, whole: Any, batch: Batch) -> Tensor:
        taken = inspect.signature(whole.forward).parameters
        return whole(**{name: value for name, value in inputs_of(self.run, batch).items() if name in taken}).logits

    def _no_place(self, whole: Any, least: float) -> str:
        head = self.run.model.head
        parts = [f"pooling={head.pooling!r}"] if hasattr(head, "pooling") else []
        parts += ["a hidden layer"] if Classifier.of(head).hidden is not None else []
        with_them = f" with {' and '.join(parts)}" if parts else ""
        apart = "" if least == float("inf") else f" (what comes nearest differs by {least:.2g})"
        return (
            f"{type(whole).__name__} cannot be this run's model: no weights of its classification layers give what "
            f"{type(head).__name__}{with_them} does{apart}"
        )
