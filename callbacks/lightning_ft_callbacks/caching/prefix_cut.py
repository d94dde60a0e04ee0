"""PrefixCut: where a module's frozen prefix ends, and what crosses that line."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from lightning_ft_callbacks.blocks import BlockMap
from lightning_ft_callbacks.caching.sample_shapes import CannotCacheError, Samples, SampleShape

# what crosses: a leaf of the arguments of an upper module's call, or of the output of a lower one's
Crossing = tuple[Literal["upper", "lower"], int, int]


class PrefixCut:
    """The line below a block.

    Lower modules hold parameters of lower blocks only, upper modules none of these; both are taken as large as can
    be. What upper modules read and lower ones made crosses the line: that is what a cache keeps. Where something random
    stands between the two, a dropout before a head, it is what the lower ones made.

    Args:
        block_map: The module's blocks.
        block: The name of the lowest block above the line.

    Attributes:
        lower: The lower modules.
        upper: The upper modules.
        crossings: What crosses the line; found by ``PrefixWatch``.
        shapes: The shapes of these, in their order.
    """

    def __init__(self, block_map: BlockMap, block: str) -> None:
        self.block = block
        self.lower, self.upper = _sides(block_map, block)
        self.crossings: list[Crossing] = []
        self.shapes: list[SampleShape] = []
        self.placeholders: dict[int, Placeholder] = {}
        self._sensitive = [part for module in self.lower for part in module.modules() if _changes_in_training(part)]

    def check(self) -> None:
        """Make sure that nothing in the prefix is random or changes with what it sees, and no hook would be missed.

        Raises:
            CannotCacheError: If something is, with what to change.
        """
        self.check_modes()
        for module in self.lower:
            for name, part in module.named_modules():
                hooks = [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
                if strange := [hook for hook in hooks if not _is_known(hook)]:
                    raise CannotCacheError(
                        f"{type(part).__name__} {name!r} below {self.block} has a hook, {strange[0]}, which would not "
                        "be called; remove it"
                    )

    def check_modes(self) -> None:
        """Make sure that no dropout and no norm with statistics is in train mode.

        Raises:
            CannotCacheError: If one is, with what to change.
        """
        for part in self._sensitive:
            if part.training:
                raise CannotCacheError(
                    f"{type(part).__name__} below {self.block} is in train mode; freeze it with GradualUnfreezing, or "
                    "call eval()"
                )


class Placeholder:
    """The structure of a lower module's output, for runs in which its values do not matter.

    Args:
        output: An output that was seen.
        samples: Its samples.
    """

    def __init__(self, output: Any, samples: Samples) -> None:
        leaves, self._spec = flatten(output)
        self._leaves = [SampleShape(leaf, samples) if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def see(self, output: Any, samples: Samples, what: str) -> None:
        """Learn from another output.

        Raises:
            CannotCacheError: If it follows no rule that the others follow.
        """
        leaves, spec = flatten(output)
        if spec != self._spec:
            raise CannotCacheError(f"the output of {what} has another structure from batch to batch")
        for shape, leaf in zip(self._leaves, leaves, strict=True):
            if isinstance(shape, SampleShape) and isinstance(leaf, Tensor):
                shape.see(leaf, samples, f"the output of {what}")

    def output(self, samples: Samples, zeros: "Zeros", kept: Mapping[int, Tensor]) -> Any:
        """Return an output for some samples: leaves that were kept, and zeros.

        Args:
            samples: The samples.
            zeros: Where zeros come from.
            kept: Leaves by their number.
        """
        leaves = [
            kept[number] if number in kept else zeros.of(leaf, samples) if isinstance(leaf, SampleShape) else leaf
            for number, leaf in enumerate(self._leaves)
        ]
        return tree_unflatten(leaves, self._spec)


class Zeros:
    """Tensors of zeros that are used again and again; what is written into them does not matter."""

    def __init__(self) -> None:
        self._kept: dict[Any, Tensor] = {}

    def of(self, shape: SampleShape, samples: Samples) -> Tensor:
        """Return zeros of a shape."""
        key = shape.size(samples), shape.dtype, shape.device
        if key not in self._kept:
            if len(self._kept) > 64:
                self._kept.clear()
            self._kept[key] = torch.zeros(key[0], dtype=shape.dtype, device=shape.device)
        return self._kept[key]


def flatten(tree: Any) -> tuple[list[Any], TreeSpec]:
    """Return the leaves and the structure of arguments; a model's cache of keys and values is a leaf."""
    return tree_flatten(tree, is_leaf=lambda part: type(part).__name__.endswith("Cache"))


def _sides(block_map: BlockMap, block: str) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the largest modules whose parameters are all below a block, and those that have none of these."""
    order = {name: position for position, name in enumerate(block_map.names)}
    line, owners = order[block], block_map.owners()
    lower: list[nn.Module] = []
    upper: list[nn.Module] = []

    def divide(module: nn.Module) -> None:
        positions = {order[owners[id(parameter)]] for parameter in module.parameters()}
        mixed = positions and min(positions) < line <= max(positions)
        if not positions:
            return
        if mixed or module is block_map.root or module.forward.__name__ == "_forward_unimplemented":
            for child in module.children():
                divide(child)
        else:
            (lower if max(positions) < line else upper).append(module)

    divide(block_map.root)
    return list(dict.fromkeys(lower)), list(dict.fromkeys(upper))


def _changes_in_training(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return module.track_running_stats
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0


def _is_known(hook: Any) -> bool:
    """Tell whether a hook is a library's own, which only looks, or one of ours."""
    home = getattr(hook, "__module__", None) or type(hook).__module__
    return home.partition(".")[0] in ("lightning_ft_callbacks", "transformers", "torch", "functools")
