"""TransformersBackbone: any AutoModel of Hugging Face transformers."""

import inspect
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_ft.backbones.base import Backbone
from lightning_ft.backbones.language_model import own_language_model, quiet
from lightning_ft.backbones.lora import Adapters, load_adapted, with_base
from lightning_ft.extras import require
from lightning_ft.features import FeatureInfo, Features, MapFeatures, TokenFeatures
from lightning_ft.hub import hub_answers, hub_host, in_hub_cache
from lightning_ft.resources import nearest_path, resolve
from lightning_ft.run.adapted_base import AdaptedBase
from lightning_ft.run.checkpoint_io import backbone_of, load_checkpoint
from lightning_ft.run.folder import checkpoint_of
from lightning_ft.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class TransformersBackbone(Backbone):
    """A pretrained encoder, decoder or vision model of transformers, without its task head and pooler.

    Of an encoder-decoder model it is the encoder.

    Args:
        name: A model's name on the Hugging Face hub, a local folder, a ``.gguf`` file, ``package://name/path``, or a
            run's folder or checkpoint: then it starts from the backbone of that run.
        pretrained: Whether to load weights; False draws them anew for the model's config.
        gradient_checkpointing: Whether to compute activations again in the backward pass instead of keeping them.
        attn_implementation: transformers' attention, as in ``"sdpa"``; None for its default.
        lora: Options of adapters by peft, as ``{r: 8}``, which are trained instead of the model's own weights; ``{}``
            for peft's defaults, None for no adapters. From a run that had some, None merges them into the weights.

    Attributes:
        model: The transformers model.
        tokenizer: Its tokenizer; None for a vision model.
        max_length: Tokens of the longest text it takes; None where it knows no limit.
        data_config: Of a vision model what its images must be: timm's keys input_size, mean, std, interpolation and
            crop_pct; None for texts.

    Raises:
        ModuleNotFoundError: If transformers is not installed.
        FileNotFoundError: If the model is neither here nor to be had from the hub.

    Source: https://huggingface.co/docs/transformers/model_doc/auto
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = True,
        gradient_checkpointing: bool = False,
        attn_implementation: str | None = None,
        lora: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model: Any
        transformers = require("transformers", extra="text", needed_by="TransformersBackbone")
        from safetensors import SafetensorError

        options: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
        source = resolve(name)
        checkpoint = checkpoint_of(source)
        self._origin: dict[str, Any] = {"name": name, "checkpoint": checkpoint, "options": options}
        if checkpoint is not None:
            content = load_checkpoint(checkpoint)
            description, weights = backbone_of(content, checkpoint)
            if "files" not in description:
                raise ValueError(f"{str(checkpoint)!r} holds no TransformersBackbone")
            weights = with_base(TransformersBackbone, content, weights, str(checkpoint))
            with tempfile.TemporaryDirectory() as folder:
                for file, content in description["files"].items():
                    (Path(folder) / Path(file).name).write_bytes(content.numpy().tobytes())
                config = transformers.AutoConfig.from_pretrained(folder)
                self.tokenizer, _ = _preprocessing(transformers, folder, config)
            self.data_config = description["data_config"]
            self.model = _model(transformers, config, None, options, {})
            missing = load_adapted(self, weights, description.get("lora"), lora)
            if missing:
                raise ValueError(f"{str(checkpoint)!r} lacks {missing[0]!r} of its backbone")
        else:
            source, local = _look_up(source, name)
            self._origin |= {"source": source if pretrained else None, "local": local}
            try:
                config = transformers.AutoConfig.from_pretrained(source, **local)
                self.model = _model(transformers, config, source if pretrained else None, options, local)
                self.tokenizer, self.data_config = _preprocessing(transformers, source, config, **local)
            except UnpicklingError as error:
                raise ValueError(
                    f"cannot load the backbone {name!r}: its weights hold more than tensors, which could run code"
                ) from error
            except (OSError, ValueError, SafetensorError) as error:
                kind = FileNotFoundError if isinstance(error, OSError) else ValueError
                raise kind(f"cannot load the backbone {name!r}: {str(error).splitlines()[0]}") from error
        if lora is not None and checkpoint is None:
            Adapters(self.model, lora, type(self).__name__)
        self.lora = None if lora is None else dict(lora)
        self._source = {"name": name, "pretrained": pretrained, "attn_implementation": attn_implementation}
        if lora is not None and (pretrained or checkpoint is not None):
            self.base = AdaptedBase(self.state_dict())
        if gradient_checkpointing:
            # the other kind, reentrant, loses gradients where its input needs none: above a frozen part
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.max_length = _max_length(config)
        self._accepted = frozenset(inspect.signature(self.model.forward).parameters)
        self.train()  # transformers hands models over in eval mode, without dropout
        self.features = self._feature_info(config)
        self._files: dict[str, Tensor] | None = None
        self._keeps_packed_apart: bool | None = None

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        """Return the last hidden states of a batch.

        Args:
            inputs: ``input_ids`` and ``attention_mask``, shape (batch, token), or ``pixel_values``, shape
                (batch, channel, height, width); what the model does not take is left out. ``position_ids`` that begin
                with 0 again in a row tell texts apart that are packed into it.

        Raises:
            ValueError: If texts are packed, and the model would let them see one another.
        """
        taken: dict[str, Any] = {key: value for key, value in inputs.items() if key in self._accepted}
        if "position_ids" in inputs:
            if not self._keeps_apart():
                raise ValueError(
                    f"{type(self.model).__name__} does not keep texts apart that are packed into a row: set the data's "
                    "packing to false"
                )
            # transformers tells packed texts apart by their positions where it gets no mask and keeps no cache
            taken.pop("attention_mask", None)
        if "use_cache" in self._accepted:
            taken["use_cache"] = False
        states = self.model(**taken).last_hidden_state
        if states.ndim == 4:
            return MapFeatures((states,))
        mask = inputs.get("attention_mask")
        return TokenFeatures(states, torch.ones_like(states[..., 0]) if mask is None else mask)

    def description(self) -> dict[str, Any]:
        """Return the config's, tokenizer's and image processor's files as tensors of bytes."""
        if self._files is None:
            with tempfile.TemporaryDirectory() as folder:
                self.model.config.save_pretrained(folder)
                if self.tokenizer is not None:
                    self.tokenizer.save_pretrained(folder)
                self._files = {
                    file.name: torch.from_numpy(np.frombuffer(file.read_bytes(), dtype=np.uint8).copy())
                    for file in sorted(Path(folder).iterdir())
                }
        return {"files": self._files, "data_config": self.data_config, "lora": self.lora, "source": self._source}

    @classmethod
    def rebuilt_from(cls, checkpoint: Path, init_args: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments that build this backbone from a run's checkpoint, reading nothing else."""
        return {**init_args, "name": str(checkpoint)}

    def _language_model(self, kind: str) -> nn.Module:
        """Return what a language model does behind its last hidden states, see FeatureInfo."""
        transformers = require("transformers", extra="text", needed_by="TransformersBackbone")
        if kind == "causal":
            if self._sees_ahead():
                raise ValueError(f"{self._origin['name']!r} is no causal language model: its tokens see what follows")
            self._keeps_apart()  # now, and not within a pass that somebody watches
        return own_language_model(transformers, self.model, kind, **self._origin)

    @torch.no_grad()
    def _sees_ahead(self) -> bool:
        """Find out whether the states of tokens change with the one behind them."""
        options = {"use_cache": False} if "use_cache" in self._accepted else {}
        device, training = next(self.model.parameters()).device, self.model.training
        self.model.eval()
        first, second = (
            self.model(input_ids=torch.tensor([[4, 5, last]], device=device), **options).last_hidden_state[:, :2]
            for last in (6, 7)
        )
        self.model.train(training)
        return not torch.equal(first, second)

    @torch.no_grad()
    def _keeps_apart(self) -> bool:
        """Find out, once, whether the model keeps texts apart that are packed into a row: the second is read twice."""
        if "position_ids" not in self._accepted:
            return False
        if self._keeps_packed_apart is None:
            device = next(self.model.parameters()).device
            options = {"use_cache": False} if "use_cache" in self._accepted else {}
            places = torch.tensor([0, 1, 2, 0, 1, 2], device=device).expand(2, 6)
            training = self.model.training
            self.model.eval()
            # each time behind another text, which must leave no trace
            second_texts = [
                self.model(
                    input_ids=torch.tensor([*first, 7, 8, 9], device=device).expand(2, 6),
                    position_ids=places,
                    **options,
                ).last_hidden_state[:, 3:]
                for first in ([4, 5, 6], [6, 4, 5])
            ]
            self.model.train(training)
            self._keeps_packed_apart = torch.equal(*second_texts)
        return self._keeps_packed_apart

    def _feature_info(self, config: "PretrainedConfig") -> FeatureInfo:
        if self.data_config is None:
            width = config.get_text_config().hidden_size
            return FeatureInfo(width, "tokens", language_model=self._language_model)
        size = self.data_config["input_size"]
        training = self.model.training
        with torch.no_grad():
            features = self.eval()({"pixel_values": torch.zeros(1, *size)})
        self.train(training)
        if isinstance(features, TokenFeatures):
            return FeatureInfo(features.states.shape[-1], "tokens")
        (last,) = features.maps
        return FeatureInfo(last.shape[1], "maps", (last.shape[1],), (size[-1] // last.shape[-1],))


def _model(
    transformers: Any,
    config: "PretrainedConfig",
    source: str | None,
    options: dict[str, Any],
    local: dict[str, Any],
) -> nn.Module:
    """Load a model, or make one of its config where there is no source; without the pooler, which no head reads."""
    try:
        classes = transformers.MODEL_MAPPING[type(config)]
    except KeyError:
        raise ValueError(f"transformers has no AutoModel for {type(config).__name__}") from None
    model_class = classes[0] if isinstance(classes, tuple) else classes
    if "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
        options = options | {"add_pooling_layer": False}
    with quiet(transformers):  # it would list the weights of the dropped task head
        if source is None:
            model = transformers.AutoModel.from_config(config, **options)
        else:
            model, info = transformers.AutoModel.from_pretrained(
                source, config=config, dtype=torch.float32, output_loading_info=True, **options, **local
            )
            if missing := sorted(info["missing_keys"]):
                rank_zero_info(
                    f"{source}: {len(missing)} tensors are not in its file and start at random: {missing[:3]}"
                )
    if "gguf_file" in local:
        vars(model.config).pop("quantization_config", None)  # its weights are numbers of 32 bits by now
    return model.get_encoder() if getattr(config, "is_encoder_decoder", False) else model


def _preprocessing(transformers: Any, source: str, config: "PretrainedConfig", **local: Any) -> tuple[Any, Any]:
    """Return a text model's tokenizer and None, or None and a vision model's image size, mean and std."""
    if type(config) not in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        return load_tokenizer(source, "TransformersBackbone", **local), None
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(source, **local).to_dict()
    except OSError:
        processor = {}
    size = processor.get("crop_size") or processor.get("size") or {}
    edge = size.get("height") or size.get("shortest_edge") or getattr(config, "image_size", 224)
    whole = (processor.get("size") or {}).get("shortest_edge") or edge
    return None, {
        "input_size": (3, edge, edge),
        "mean": tuple(processor.get("image_mean") or (0.5, 0.5, 0.5)),
        "std": tuple(processor.get("image_std") or (0.5, 0.5, 0.5)),
        "interpolation": {0: "nearest", 3: "bicubic"}.get(processor.get("resample", 2), "bilinear"),
        "crop_pct": edge / whole,
    }


def _max_length(config: "PretrainedConfig") -> int | None:
    """Return the number of a text model's position embeddings, less those that RoBERTa's kind leaves for padding."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    return positions - config.pad_token_id - 1 if "roberta" in config.model_type else positions


def _look_up(source: str, name: str) -> tuple[str, dict[str, Any]]:
    """Tell at once where a model cannot be had, instead of after transformers' half minute of retries.

    Returns:
        The folder or name of the model, and options for ``from_pretrained``: the file in the folder where the model is
        one; the hub's cache alone is asked where the hub cannot be reached.
    """
    path = Path(source)
    if path.is_dir():
        return source, {"local_files_only": True}
    if path.suffix == ".gguf" and path.is_file():
        require("gguf", extra="gguf", needed_by="TransformersBackbone of a .gguf file")
        return str(path.parent), {"local_files_only": True, "gguf_file": path.name}
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or Path(source).exists():
        raise FileNotFoundError(f"no backbone {name!r}: no such folder{nearest_path(Path(source).absolute())}")
    if hub_answers() or os.environ.get("HF_HUB_OFFLINE"):
        return source, {}
    if in_hub_cache(source, "config.json"):
        return source, {"local_files_only": True}
    raise FileNotFoundError(
        f"no backbone {name!r}: there is no such folder here{nearest_path(Path(source).absolute())}, and the model hub "
        f"{hub_host()} cannot be reached; give a local folder or package://name/path"
    )
