"""Freezer: which blocks of a module are trained now, and that the others are left alone."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import LBFGS, Optimizer

from lightning_ft_callbacks.blocks import BlockMap


@dataclass(frozen=True, slots=True)
class _Statistic:
    """A running statistic of a frozen norm: where it is, and what it must stay."""

    module: nn.Module
    name: str
    buffer: Tensor
    version: int
    value: Tensor

    def restore(self, *, surely: bool) -> "_Statistic":
        """Put the statistic back where somebody has changed it.

        Args:
            surely: Whether its norm may have learnt, which leaves no trace in the buffer's version.
        """
        now = getattr(self.module, self.name)
        if not surely and now is self.buffer and now._version == self.version:
            return self
        with torch.no_grad():
            self.buffer.copy_(self.value)
        setattr(self.module, self.name, self.buffer)
        return _Statistic(self.module, self.name, self.buffer, self.buffer._version, self.value)


class Freezer:
    """Freezes and thaws blocks by ``requires_grad``, and their modules by their mode.

    A frozen block has no gradients, no optimizer state and no dropout, and its norms' statistics stand still.
    Parameters that did not require a gradient when it was made stay so, but with ``thaw_frozen``.

    Args:
        block_map: The blocks.
        optimizers: Whose state of frozen parameters is dropped.
        thaw_frozen: Whether parameters that the user has frozen are thawed with their block.
    """

    def __init__(self, block_map: BlockMap, optimizers: Collection[Optimizer], *, thaw_frozen: bool = False) -> None:
        self.block_map = block_map
        self._optimizers = optimizers
        self._thaw_frozen = thaw_frozen
        # by all names of a tied parameter, of which the blocks know another than the module
        self._found_flags = {
            name: parameter.requires_grad for name, parameter in block_map.root.named_parameters(remove_duplicate=False)
        }
        self._found_modes = {module: module.training for module in block_map.root.modules()}
        self._frozen: list[nn.Module] = []
        self._statistics: list[_Statistic] = []

    def train_only(self, blocks: Collection[str]) -> bool:
        """Train some blocks, freeze all others, and tell whether anything changed.

        Args:
            blocks: The names of the blocks that are trained.
        """
        changed = False
        trained: set[str] = set()
        for block in self.block_map:
            learning = {name for name, _ in self.to_be_trained(block.name)} if block.name in blocks else set()
            if learning:
                trained.add(block.name)
            for name, parameter in self.block_map.named_parameters(block.name):
                wanted = name in learning
                if parameter.requires_grad != wanted:
                    parameter.requires_grad_(wanted)
                    changed = True
                if not wanted:
                    parameter.grad = None
        self.drop_states()
        if changed:
            self._drop_histories()
        self._set_modes(trained)
        return changed

    def drop_states(self) -> None:
        """Let go of what optimizers keep for frozen parameters."""
        for parameter in self.block_map.root.parameters():
            if not parameter.requires_grad:
                for optimizer in self._optimizers:
                    optimizer.state.pop(parameter, None)

    def _drop_histories(self) -> None:
        """Let go of what LBFGS keeps, in one place for all parameters: it would go on moving those that are frozen."""
        for optimizer in self._optimizers:
            if isinstance(optimizer, LBFGS):
                optimizer.state.clear()

    def check_trainable(self, phases: Sequence[Collection[str]]) -> None:
        """Make sure that each phase trains something.

        Raises:
            ValueError: If all parameters of one's blocks were frozen before.
        """
        for number, blocks in enumerate(phases):
            if not any(self.to_be_trained(name) for name in blocks):
                raise ValueError(
                    f"phase {number} trains {', '.join(blocks)}, whose parameters were all frozen before fit; "
                    "thaw_frozen=True thaws them too"
                )

    def check_held(self, blocks: Collection[str]) -> None:
        """Make sure that an optimizer holds everything that is to be trained.

        Raises:
            ValueError: If none does, with the first parameter that none holds, and the remedy.
        """
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        held = {id(parameter) for group in groups for parameter in group["params"]}
        for block in blocks:
            left_out = [path for path, parameter in self.to_be_trained(block) if id(parameter) not in held]
            if left_out:
                raise ValueError(
                    f"{block} is to be trained, but no optimizer holds {left_out[0]}; give configure_optimizers all "
                    "parameters, frozen ones too (self.parameters())"
                )

    def to_be_trained(self, block: str) -> list[tuple[str, nn.Parameter]]:
        """Return the parameters of a block that are trained with it, with their names."""
        named = self.block_map.named_parameters(block)
        return [(n, p) for n, p in named if self._found_flags[n] or (self._thaw_frozen and _can_learn(p))]

    def may_change(self, blocks: Collection[str]) -> set[str]:
        """Return the names of parameters and buffers that training some blocks may change."""
        owned = self.block_map.module_owners()
        modules = {module for module, block in owned if block in blocks}
        names = {
            f"{path}.{name}" if path else name
            for path, module in self.block_map.root.named_modules()
            if module in modules
            for name, _ in module.named_buffers(recurse=False)
        }
        for block in blocks:
            names |= {name for name, _ in self.to_be_trained(block)}
        return names

    def found_in_eval(self, blocks: Collection[str]) -> int:
        """Return how many modules of some blocks were in eval mode when it was made."""
        inside = {module for module, block in self.block_map.module_owners() if block in blocks}
        return sum(not self._found_modes.get(module, True) for module in inside)

    def learning(self, blocks: Collection[str]) -> tuple[str, ...]:
        """Return those of some blocks of which anything is trained with them: not those that the user has frozen."""
        return tuple(name for name in blocks if self.to_be_trained(name))

    @property
    def found_frozen(self) -> bool:
        """Whether any parameter was frozen before."""
        return not all(self._found_flags.values())

    def enforce(self) -> None:
        """Put modes and statistics of frozen blocks right again, where validation or another callback changed them."""
        training = {module for module in self._frozen if module.training}
        for module in training:
            module.training = False
        self._statistics = [statistic.restore(surely=statistic.module in training) for statistic in self._statistics]

    @property
    def disturbed(self) -> str | None:
        """The path of a module of a frozen block that somebody has put in train mode since; None where nobody has."""
        if not any(module.training for module in self._frozen):
            return None
        found = {part for part in self._frozen if part.training and not [*part.children()]}
        return next((path for path, part in self.block_map.root.named_modules() if part in found), None)

    def release(self) -> None:
        """Leave flags and modes as they were found, and statistics as they were frozen."""
        self.enforce()
        for name, parameter in self.block_map.root.named_parameters():
            if name in self._found_flags and parameter.requires_grad != self._found_flags[name]:
                parameter.requires_grad_(self._found_flags[name])
        for module, training in self._found_modes.items():
            module.training = training
        self._frozen, self._statistics = [], []

    def _set_modes(self, trained: Collection[str]) -> None:
        owned = self.block_map.module_owners()
        thawed = {module for module, block in owned if block in trained}
        self._frozen = [module for module, block in owned if block not in trained and module not in thawed]
        for module in thawed:
            module.training = self._found_modes.get(module, True)
        self.enforce()
        kept = {(statistic.module, statistic.name): statistic for statistic in self._statistics}
        self._statistics = []
        for module in self._frozen:
            if not isinstance(module, _NormBase):
                continue
            for name, buffer in module.named_buffers(recurse=False):
                now = _Statistic(module, name, buffer, buffer._version, buffer.clone())
                self._statistics.append(kept.get((module, name), now))


def _can_learn(parameter: Any) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()
