"""LoRA: small matrices beside a backbone's own, which alone are trained (Hu et al. 2021, arXiv:2106.09685)."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from lightning_ft.extras import require
from lightning_ft.run.adapted_base import KEY, put_back


class Adapters:
    """The adapters of a network, by the library peft.

    Linear layers get a product of two small matrices added to theirs, convolutions where there is no linear layer. The
    network's own parameters are frozen; they stay frozen whatever a phase of unfreezing names.

    Args:
        model: The network, changed in place.
        options: Keys of peft's ``LoraConfig``: ``r``, the rank; ``lora_alpha``; ``lora_dropout``; ``target_modules``,
            names of layers or a pattern, None for all; and others.
        needed_by: The backbone, for messages.

    Raises:
        ModuleNotFoundError: If peft is not installed.
        ValueError: If there is no such option or layer, or nothing to adapt.

    Source: https://huggingface.co/docs/peft/package_reference/lora
    """

    def __init__(self, model: nn.Module, options: Mapping[str, Any], needed_by: str) -> None:
        peft = require("peft", extra="peft", needed_by=f"{needed_by} with lora")
        known = [field.name for field in fields(peft.LoraConfig)]
        for key in options:
            if key not in known:
                near = get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"{needed_by}: lora has no option {key!r}{hint}")
        targets = options.get("target_modules") or _layers(model)
        if not targets:
            raise ValueError(f"{needed_by}: {type(model).__name__} has no linear layer and no convolution to adapt")
        try:
            config = peft.LoraConfig(**{**options, "target_modules": targets})
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # GPT-2's layers are transposed, which peft finds out, and says
                self._tuner = peft.LoraModel(model, config, "default")
        except (TypeError, ValueError) as error:
            raise ValueError(f"{needed_by}: lora: {str(error).splitlines()[0]}") from error

    def merge(self) -> None:
        """Add the adapters' products to the network's own matrices, and take the adapters away."""
        self._tuner.merge_and_unload()


def load_adapted(
    backbone: Any, weights: Mapping[str, Tensor], saved: Mapping[str, Any] | None, lora: Mapping[str, Any] | None
) -> list[str]:
    """Load the weights of another run's backbone, with its adapters if it had some.

    The same adapters go on; other ones, or none, begin with theirs merged into the weights.

    Args:
        backbone: The backbone, whose ``model`` has no adapters yet.
        weights: The other backbone's weights.
        saved: The options of its adapters; None if it had none.
        lora: Those that are wanted now.

    Returns:
        Names of weights that are not there, sorted.
    """
    name = type(backbone).__name__
    adapters = None if saved is None else Adapters(backbone.model, saved, name)
    missing = sorted(backbone.state_dict().keys() - weights.keys())
    backbone.load_state_dict(weights, strict=False)
    same = saved is not None and lora is not None and dict(saved) == dict(lora)
    if adapters is not None and not same:
        adapters.merge()
        backbone.model.requires_grad_(True)
    if lora is not None and not same:
        Adapters(backbone.model, lora, name)
    return missing


def with_base(
    kind: Callable[..., Any], checkpoint: Mapping[str, Any], weights: dict[str, Tensor], place: str
) -> dict[str, Tensor]:
    """Return the weights of another run's backbone; what its checkpoint left out comes from where that run had it.

    Args:
        kind: The backbone's class.
        checkpoint: The other run's checkpoint.
        weights: The backbone's weights in it.
        place: Its file, for messages.

    Raises:
        ValueError: If the source has other weights than it had.
    """
    description = checkpoint["backbone"]
    if KEY not in checkpoint:
        return weights
    source = kind(**description["source"], lora=description["lora"])
    state = {f"backbone.{name}": value for name, value in source.state_dict().items()}
    content = {"state_dict": {}, KEY: checkpoint[KEY]}
    try:
        put_back(content, state)
    except ValueError as error:
        raise ValueError(f"{place!r}: {error}") from error
    return weights | {name.removeprefix("backbone."): value for name, value in content["state_dict"].items()}


def _layers(model: nn.Module) -> list[str]:
    """Return the names of all linear layers, transformers' Conv1D among them; of convolutions where there is none."""
    named = list(model.named_modules())
    linear = [name for name, part in named if isinstance(part, nn.Linear) or type(part).__name__ == "Conv1D"]
    return linear or [name for name, part in named if isinstance(part, nn.Conv2d) and part.groups == 1]
