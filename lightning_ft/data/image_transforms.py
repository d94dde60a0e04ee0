"""Image transforms: timm's, for the size, mean and standard deviation that a backbone was trained with."""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_ft.extras import require

if TYPE_CHECKING:
    from PIL import Image

# timm's own smallest crop, 0.08 of the area, is meant for hundreds of epochs from scratch
FINE_TUNING = {"scale": (0.35, 1.0), "ratio": (3 / 4, 4 / 3), "hflip": 0.5, "color_jitter": 0.2}
OF_BACKBONE = ("input_size", "mean", "std")
NO_AUGMENTATION = {
    *OF_BACKBONE, "is_training", "no_aug", "crop_pct", "crop_mode", "crop_border_pixels", "tf_preprocessing",
    "use_prefetcher", "normalize", "separate", "re_num_splits", "naflex", "patch_size", "max_seq_len", "patchify",
    "patchify_channels_last", "patchify_flatten",
}  # fmt: skip


def image_transform(
    config: Mapping[str, Any], *, image_size: int | None, augment: bool | Mapping[str, Any]
) -> Callable[["Image.Image"], Tensor]:
    """Return the transform of an RGB image to a normalised tensor (3, height, width).

    Args:
        config: A backbone's data config as timm has it: ``input_size`` (channel, height, width), ``mean``, ``std``,
            and where known ``interpolation``, ``crop_pct``, ``crop_mode``.
        image_size: Height and width [pixel] instead of the backbone's.
        augment: True for the training transform, a mapping to change its settings, False for the evaluation's.

    Raises:
        ValueError: If the config lacks a key or is not for RGB, or a key of ``augment`` is no augmentation.
    """
    size = size_of(config, "ImageClassificationData")
    timm_data = require("timm.data", extra="vision", needed_by="ImageClassificationData")
    settings = {
        "input_size": (image_size, image_size) if image_size else size,
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
        "interpolation": config.get("interpolation") or "bicubic",
    }
    if augment is False:
        crop = {key: config[key] for key in ("crop_pct", "crop_mode") if config.get(key)}
        return timm_data.create_transform(**settings, **crop)
    changes = {} if augment is True else dict(augment)
    _refuse_unknown(changes, timm_data.create_transform)
    try:
        return timm_data.create_transform(is_training=True, **settings | FINE_TUNING | changes)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        why = f": {error}" if str(error) else ""
        raise ValueError(f"augment={changes}: timm's create_transform does not take it{why}") from error


def size_of(config: Mapping[str, Any], owner: str) -> tuple[int, int]:
    """Return the height and width [pixel] of a backbone's own images.

    Args:
        config: Its data config.
        owner: Who makes the images, for the message.

    Raises:
        ValueError: If the config lacks a key or is not for RGB.
    """
    missing = [key for key in OF_BACKBONE if key not in config]
    if missing:
        raise ValueError(f"the backbone's data_config has no {missing[0]!r}; it has {', '.join(map(repr, config))}")
    num_channels, height, width = config["input_size"]
    if num_channels != 3:
        raise ValueError(f"the backbone takes images of {num_channels} channels, but {owner} makes RGB")
    return height, width


def data_config_of(module: Any, owner: str) -> Mapping[str, Any]:
    """Return what a module's backbone says of its images: ``backbone.data_config``.

    Args:
        module: The module that is trained; None where there is none.
        owner: Who asks, for the message.

    Raises:
        ValueError: If there is no module, or it says nothing.
    """
    config = getattr(getattr(module, "backbone", None), "data_config", None)
    if config is not None:
        return config
    without = "there is no trainer with a module" if module is None else f"{type(module).__name__} has none"
    raise ValueError(
        f"{owner} takes size, mean and std from the module's backbone.data_config, but {without}; "
        "train a FineTuner with a TimmBackbone, or give your backbone such a dict with timm's keys"
    )


def _refuse_unknown(changes: Mapping[str, Any], create_transform: Callable[..., Any]) -> None:
    known = [key for key in inspect.signature(create_transform).parameters if key not in NO_AUGMENTATION]
    for key in changes:
        if key in NO_AUGMENTATION:
            raise ValueError(
                f"augment: {key!r} is no augmentation; the size is set by image_size, the rest by the backbone"
            )
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"augment: timm's create_transform has no key {key!r}; {hint}")
