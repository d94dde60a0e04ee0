"""AdaptedBase: the weights under adapters, which a checkpoint leaves out while they are those of their source."""

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

KEY = "base"  # in a checkpoint: the fingerprint and type of each tensor that was left out
TYPES = (torch.float32, torch.bfloat16, torch.float16)  # those that a trainer's precision may turn them into


class AdaptedBase:
    """What a network's weights were when they came from their source.

    A checkpoint of a run with adapters holds the adapters and what else was trained; the rest is read from its source
    again. A tensor is left out only while it is, to the bit, what the source has: one that was trained in spite of the
    adapters is kept.

    Args:
        weights: The tensors of the network by name; peft's adapters among them are passed over.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._prints = {
            name: {type_: fingerprint(value, type_) for type_ in TYPES}
            for name, value in weights.items()
            if value.is_floating_point() and "lora_" not in name
        }

    def leave_out(self, checkpoint: dict[str, Any], prefix: str) -> None:
        """Take the tensors of the source out of a checkpoint, and those of other names that share their memory.

        Args:
            checkpoint: The checkpoint, changed in place.
            prefix: What stands before the network's names in it.
        """
        state: dict[str, Tensor] = checkpoint["state_dict"]
        same = {
            prefix + name: prints
            for name, prints in self._prints.items()
            if (value := state.get(prefix + name)) is not None
            and type(value) is Tensor  # not a part of one that is spread over processes
            and value.numel() > 0
            and prints.get(value.dtype) == fingerprint(value, value.dtype)
        }
        memory = {state[name].data_ptr(): name for name in same}
        left_out = {name: memory[value.data_ptr()] for name, value in state.items() if value.data_ptr() in memory}
        # a new mapping: the old one may be the module's own, or that of another callback
        checkpoint["state_dict"] = {name: value for name, value in state.items() if name not in left_out}
        checkpoint[KEY] = {
            name: [same[owner][state[name].dtype], str(state[name].dtype).removeprefix("torch.")]
            for name, owner in left_out.items()
        }


def put_back(checkpoint: dict[str, Any], ours: Mapping[str, Tensor]) -> None:
    """Give a checkpoint the tensors that were left out of it.

    Args:
        checkpoint: The checkpoint, changed in place.
        ours: Those of a model that was built from the same source.

    Raises:
        ValueError: If the source has others than it had, with their number and the first.
    """
    left_out: Mapping[str, Any] = checkpoint.pop(KEY, None) or {}
    known = {name: entry for name, entry in left_out.items() if name in ours}  # names that differ are said elsewhere
    changed = [name for name, (was, kind) in known.items() if fingerprint(ours[name], getattr(torch, kind)) != was]
    if changed:
        raise ValueError(
            "the checkpoint holds adapters, and the weights that they were trained on are others now: "
            f"{len(changed)} of {len(left_out)} tensors differ, the first is {changed[0]!r}"
        )
    checkpoint["state_dict"] = {**checkpoint["state_dict"], **{name: ours[name] for name in known}}


def fingerprint(value: Tensor, type_: torch.dtype) -> int:
    """Return the CRC-32 of a tensor's values.

    Args:
        value: The tensor.
        type_: The type whose values are meant: a model that was rounded to 16 bits is that of 32 still.
    """
    values = value.detach().to("cpu", type_).contiguous()
    return zlib.crc32(values.reshape(-1).view(torch.uint8).numpy().data)
