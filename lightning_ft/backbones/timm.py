"""TimmBackbone: any image model of timm."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_ft.backbones.base import Backbone
from lightning_ft.backbones.lora import Adapters, load_adapted, with_base
from lightning_ft.extras import require
from lightning_ft.features import FeatureInfo, MapFeatures
from lightning_ft.hub import hub_answers, hub_host, in_hub_cache
from lightning_ft.resources import existing, resolve
from lightning_ft.run.adapted_base import AdaptedBase
from lightning_ft.run.checkpoint_io import backbone_of, load_checkpoint, load_tensors
from lightning_ft.run.folder import checkpoint_of


class TimmBackbone(Backbone):
    """A pretrained image model of timm without its classifier, pooled or as a pyramid.

    Args:
        name: The model's name in timm: ``"resnet50"``, ``"resnet50.a1_in1k"``, ``"hf-hub:owner/model"``.
        pretrained: Whether to load timm's weights; not where ``checkpoint`` is given.
        checkpoint: Where the weights come from instead: a file of tensors (safetensors, or a torch file of tensors
            alone), or a run's folder or checkpoint, whose backbone it starts from. Tensors under other names are
            taken in order, where there are as many and their shapes agree one by one.
        pyramid: Whether features are the maps of all stages; otherwise the model's own pooled features, as one map
            of a single pixel.
        drop_rate: Dropout before the classifier's place, where the model has it.
        drop_path_rate: Stochastic depth.
        gradient_checkpointing: Whether to compute activations again in the backward pass instead of keeping them.
        lora: Options of adapters by peft, as ``{r: 8}``, which are trained instead of the model's own weights; ``{}``
            for peft's defaults, None for no adapters. From a run that had some, None merges them into the weights.

    Attributes:
        model: The timm model.
        data_config: What its images must be: timm's keys input_size, mean, std, interpolation, crop_pct, crop_mode.

    Raises:
        ModuleNotFoundError: If timm is not installed.
        FileNotFoundError: If the checkpoint is not there, or pretrained weights cannot be had.
        ValueError: If timm has no such model, or the checkpoint's tensors do not fit it.

    Source: https://huggingface.co/docs/timm
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = True,
        checkpoint: str | None = None,
        pyramid: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float | None = None,
        gradient_checkpointing: bool = False,
        lora: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        timm = require("timm", extra="vision", needed_by="TimmBackbone")
        options: dict[str, Any] = {"drop_rate": drop_rate}
        if drop_path_rate is not None:
            options["drop_path_rate"] = drop_path_rate
        if ":" not in name and not timm.is_model(name.partition(".")[0]):
            near = timm.list_models(f"*{name}*") or timm.list_models()
            from difflib import get_close_matches

            hint = get_close_matches(name, near, n=1, cutoff=0.3)
            raise ValueError(f"timm has no model {name!r}" + (f"; did you mean {hint[0]!r}?" if hint else ""))
        self.name = name
        run = None if checkpoint is None else checkpoint_of(resolve(checkpoint))
        if pretrained and checkpoint is None:
            _look_up(timm, name)
        try:
            self.model = timm.create_model(name, pretrained=pretrained and checkpoint is None, **options)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"cannot load timm's weights of {name!r} ({str(error).splitlines()[0]}); set pretrained: false, or "
                "give a checkpoint"
            ) from error
        self.data_config: dict[str, Any] = timm.data.resolve_model_data_config(self.model)
        if checkpoint is not None and run is None:
            load_named_or_ordered(self.model, existing(checkpoint, "checkpoint"))
        self.model.reset_classifier(0)
        self.pyramid = pyramid
        if pyramid:
            self._levels = _stages(self.model)
            self.model.prune_intermediate_layers(self._levels, prune_norm=True, prune_head=True)
        if run is not None:
            content = load_checkpoint(run)
            description, weights = backbone_of(content, run)
            if "name" not in description:
                raise ValueError(f"{str(run)!r} holds no TimmBackbone")
            if description["name"] != name:
                raise ValueError(f"{str(run)!r} holds a backbone {description.get('name')!r}, not {name!r}")
            weights = with_base(TimmBackbone, content, weights, str(run))
            # a pyramid of a pooled run leaves its last layers out
            missing = load_adapted(self, weights, description.get("lora"), lora)
            if missing:
                raise ValueError(
                    f"{str(run)!r} holds a pyramid of {name!r}, which lacks {missing[0]!r} of a pooled one"
                )
            self.data_config = description["data_config"]
        elif lora is not None:
            Adapters(self.model, lora, type(self).__name__)
        self.lora = None if lora is None else dict(lora)
        self._source = {"name": name, "pretrained": pretrained, "checkpoint": checkpoint, "pyramid": pyramid}
        if lora is not None and (pretrained or checkpoint is not None):
            self.base = AdaptedBase(self.state_dict())
        if gradient_checkpointing:
            self.model.set_grad_checkpointing(True)
        self.features = self._feature_info()

    def forward(self, inputs: Mapping[str, Tensor]) -> MapFeatures:
        """Return the maps of all stages, or one map of a single pixel that holds the pooled features.

        Args:
            inputs: ``pixel_values``, shape (batch, channel, height, width).
        """
        images = inputs["pixel_values"]
        if self.pyramid:
            return MapFeatures(
                tuple(self.model.forward_intermediates(images, indices=self._levels, intermediates_only=True))
            )
        return MapFeatures((self.model(images)[:, :, None, None],))

    def description(self) -> dict[str, Any]:
        """Return timm's name of the model, and what its images must be."""
        return {"name": self.name, "data_config": self.data_config, "lora": self.lora, "source": self._source}

    @classmethod
    def rebuilt_from(cls, checkpoint: Path, init_args: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments that build this backbone from a run's checkpoint, reading nothing else."""
        return {**init_args, "checkpoint": str(checkpoint)}

    def _feature_info(self) -> FeatureInfo:
        if not self.pyramid:
            width = getattr(self.model, "head_hidden_size", None) or self.model.num_features
            return FeatureInfo(width, "maps", (width,))
        infos = [self.model.feature_info[level] for level in self._levels]
        channels = tuple(info["num_chs"] for info in infos)
        return FeatureInfo(channels[-1], "maps", channels, tuple(info["reduction"] for info in infos))


def load_named_or_ordered(model: nn.Module, file: Path) -> None:
    """Load a file of tensors into a model, by name, or by order where all shapes agree one by one.

    A classifier in the file that the model lacks, or the other way round, is left out.

    Args:
        model: The whole model, with its classifier.
        file: A safetensors file, or a torch file of tensors, alone or under ``state_dict`` or ``model``.

    Raises:
        ValueError: If the tensors do not fit, with the counts and the first that differs.
    """
    content = load_tensors(file)
    for key in ("state_dict", "model", "model_state_dict"):
        content = content.get(key, content)
    theirs = {name.removeprefix("module."): value for name, value in content.items() if isinstance(value, Tensor)}
    ours = model.state_dict()
    classifier = tuple(f"{name}." for name in _classifier_names(model))
    trunk = {name: value for name, value in ours.items() if not name.startswith(classifier)}
    strange = [name for name in theirs if name not in ours and not name.startswith(classifier)]
    if (
        not strange
        and trunk.keys() <= theirs.keys()
        and all(theirs[name].shape == value.shape for name, value in trunk.items())
    ):
        model.load_state_dict({name: theirs[name] for name in trunk}, strict=False)
        return
    for expected in (ours, trunk):
        if len(expected) == len(theirs):
            pairs = list(zip(expected.items(), theirs.items(), strict=True))
            if all(a.shape == b.shape for (_, a), (_, b) in pairs):
                model.load_state_dict({name: b for (name, _), (_, b) in pairs}, strict=False)
                return
    where = f"{str(file)!r} does not fit {type(model).__name__}: it has {len(theirs)} tensors, the model {len(ours)}"
    for (name, a), (other, b) in zip(ours.items(), theirs.items(), strict=False):
        if a.shape != b.shape:
            raise ValueError(
                f"{where}; the first that differs is {other!r} {tuple(b.shape)} for {name!r} {tuple(a.shape)}"
            )
    raise ValueError(f"{where}, and their names differ")


def _look_up(timm: Any, name: str) -> None:
    """Tell at once where pretrained weights cannot be had, instead of after half a minute of retries."""
    source = timm.models.get_pretrained_cfg_value(name, "hf_hub_id") if ":" not in name else name.partition(":")[2]
    files = ("model.safetensors", "pytorch_model.bin")
    if hub_answers() or (source and in_hub_cache(source, *files)):
        return
    raise FileNotFoundError(
        f"cannot load timm's weights of {name!r}: the model hub {hub_host()} cannot be reached; set pretrained: false, "
        "or give a checkpoint"
    )


def _classifier_names(model: nn.Module) -> tuple[str, ...]:
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _stages(model: nn.Module) -> list[int]:
    """Return the levels of the pyramid: the last map of each stride."""
    reductions = [info["reduction"] for info in model.feature_info]  # pyright: ignore[reportGeneralTypeIssues]
    return [i for i, stride in enumerate(reductions) if i + 1 == len(reductions) or reductions[i + 1] != stride]
