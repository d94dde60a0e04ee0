"""PrefixCut: where a module's frozen prefix ends, and what crosses that line."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten

from lightning_ft_callbacks.blocks import BlockMap
from lightning_ft_callbacks.caching.prefix_guard import PrefixModules
from lightning_ft_callbacks.caching.sample_shapes import CannotCacheError, Samples, SampleShape
from lightning_ft_callbacks.caching.trees import flatten, is_cache

# the number of a lower module's call in a step, and that of a leaf of its output or its arguments
Leaf = tuple[int, int]
TOLD = int | float | str | None | torch.Size | torch.dtype | torch.device  # what an output may hold beside tensors


class PrefixCut:
    """The line below a block.

    Lower modules hold parameters of lower blocks only, upper modules none of these; both are taken as large as can
    be. What lower modules made and anything else reads crosses the line: that is what a cache keeps.

    Args:
        block_map: The module's blocks.
        block: The name of the lowest block above the line.

    Attributes:
        lower: The lower modules.
        upper: The upper modules.
        crossings: What crosses the line, leaves of lower modules' outputs; found by ``PrefixWatch``.
        shapes: The shapes of these, in their order.
        inputs: What lower modules read that comes from outside, leaves of their arguments, and its shapes.
        keys: Made of what is done between lower modules, by the call before which it is done.
        placeholders: What lower modules give, by call.
        num_running: Calls of lower modules that run in each step all the same.
        differentiable: Those crossings that have a gradient, which ends in a lower module.
        is_written_to: Whether the step writes into what crosses.
    """

    def __init__(self, block_map: BlockMap, block: str) -> None:
        self.block = block
        self.lower, self.upper = _sides(block_map, block)
        self.crossings: list[Leaf] = []
        self.shapes: list[SampleShape] = []
        self.inputs: dict[Leaf, SampleShape] = {}
        self.keys: dict[int, int] = {}
        self.placeholders: dict[int, Placeholder] = {}
        self.num_running = 0
        self.is_written_to = False
        self.differentiable: set[Leaf] = set()
        self._root = block_map.root
        self._look_below()

    def open(self, called: Collection[nn.Module]) -> bool:
        """Go down to the modules that a step calls: of a network whose blocks somebody calls one by one, to these.

        Args:
            called: The modules that a step has called.

        Returns:
            Whether any had to be opened.
        """
        lower, upper = _called(self.lower, called), _called(self.upper, called)
        opened = lower != self.lower or upper != self.upper
        self.lower, self.upper = lower, upper
        self._look_below()
        return opened

    def _look_below(self) -> None:
        self._modules = PrefixModules(self.lower)
        self._sensitive = [part for module in self.lower for part in module.modules() if _changes_in_training(part)]

    @property
    def device(self) -> torch.device:
        """Where the lower modules are."""
        return next(self.lower[0].parameters()).device

    def check(self) -> None:
        """Make sure that nothing in the prefix is random or changes with what it sees, and no hook would be missed.

        Raises:
            CannotCacheError: If something is, with what to change.
        """
        self._check_modes()
        self._check_hooks()

    def check_again(self) -> None:
        """Make sure that it is still so, and that no module has been replaced: what is asked before each step.

        Raises:
            CannotCacheError: If it is not, with what to change.
        """
        self._check_modes()
        if self._modules.replaced():
            raise CannotCacheError(f"somebody has replaced a module below {self.block}")
        if self._modules.hooked():
            self._check_hooks()

    def _check_modes(self) -> None:
        for part in self._sensitive:
            if part.training:
                raise CannotCacheError(
                    f"{type(part).__name__} {self._path(part)!r} below {self.block} is in train mode; freeze it with "
                    "GradualUnfreezing, or call eval(); set the p of a dropout to 0 that is in no frozen block"
                )

    def _check_hooks(self) -> None:
        for module in self.lower:
            for part in module.modules():
                hooks = [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
                if strange := [hook for hook in hooks if not _is_known(hook)]:
                    raise CannotCacheError(
                        f"{type(part).__name__} {self._path(part)!r} below {self.block} has a hook, {strange[0]}, "
                        "which would not be called; remove it"
                    )

    def _path(self, part: nn.Module) -> str:
        return next(path for path, module in self._root.named_modules() if module is part)


class Placeholder:
    """The structure of a lower module's output, for runs in which it is not there yet.

    Args:
        module: The module.
        output: An output that was seen.
        samples: Its samples.

    Raises:
        CannotCacheError: If it holds something of which nobody knows what it depends on.
    """

    def __init__(self, module: nn.Module, output: Any, samples: Samples) -> None:
        self.module = module
        leaves, self._spec = flatten(output)
        if strange := [leaf for leaf in leaves if not (isinstance(leaf, Tensor | TOLD) or is_cache(leaf))]:
            raise CannotCacheError(
                f"the output of {type(module).__name__} holds a {type(strange[0]).__name__}, of which nobody knows "
                "what it depends on; give tensors, in tuples, lists or dictionaries"
            )
        self._leaves = [SampleShape(leaf, samples) if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def see(self, module: nn.Module, output: Any, samples: Samples) -> None:
        """Learn from another output.

        Raises:
            CannotCacheError: If it follows no rule that the others follow.
        """
        leaves, spec = flatten(output)
        what = f"the output of {type(module).__name__}"
        if module is not self.module:
            raise CannotCacheError(f"frozen blocks are called in another order: {type(module).__name__}")
        if spec != self._spec:
            raise CannotCacheError(f"{what} has another structure from batch to batch")
        for shape, leaf in zip(self._leaves, leaves, strict=True):
            if isinstance(shape, SampleShape) and isinstance(leaf, Tensor):
                shape.see(leaf, samples, what)
            elif isinstance(shape, SampleShape) or isinstance(leaf, Tensor) or not (shape == leaf or is_cache(leaf)):
                raise CannotCacheError(f"{what} holds {leaf!r} instead of {shape!r}; give numbers as tensors")

    def output(self, make: Callable[[int, SampleShape], Tensor]) -> Any:
        """Return an output.

        Args:
            make: Returns its leaf of a number, of a shape.
        """
        leaves = [
            make(number, leaf) if isinstance(leaf, SampleShape) else leaf for number, leaf in enumerate(self._leaves)
        ]
        return tree_unflatten(leaves, self._spec)


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


def _called(modules: Sequence[nn.Module], called: Collection[nn.Module]) -> list[nn.Module]:
    """Return modules, or those in them that were called where they were not; all of one in which none was."""
    found: list[nn.Module] = []
    for module in modules:
        if module in called or not any(part in called for part in module.modules()):
            found.append(module)
        else:
            found += _called([*module.children()], called)
    return list(dict.fromkeys(found))


def _changes_in_training(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return module.track_running_stats
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0


def _is_known(hook: Any) -> bool:
    """Tell whether a hook is a library's own, which only looks, or one of ours."""
    while isinstance(hook, partial):
        hook = hook.func
    home = getattr(hook, "__module__", None) or type(hook).__module__
    return home.partition(".")[0] in ("lightning_ft_callbacks", "transformers", "torch")
