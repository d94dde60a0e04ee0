"""Freezer: which blocks of a module are trained now, and that the others are left alone."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from lightning_ft_callbacks.blocks import BlockMap


@dataclass(frozen=True, slots=True)
class _Statistic:
    """A running statistic of a frozen norm: where it is, and what it must stay."""

    module: nn.Module
    name: str
    buffer: Tensor
    version: int
    value: Tensor

    def restore(self) -> "_Statistic":
        """Put the statistic back where somebody has changed it."""
        now = getattr(self.module, self.name)
        if now is self.buffer and now._version == self.version:
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
        self._found_flags = {name: parameter.requires_grad for name, parameter in block_map.root.named_parameters()}
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
            for name, parameter in self.block_map.named_parameters(block.name):
                found = self._found_flags[name]
                wanted = block.name in blocks and (found or (self._thaw_frozen and _can_learn(parameter)))
                if wanted:
                    trained.add(block.name)
                if parameter.requires_grad != wanted:
                    parameter.requires_grad_(wanted)
                    changed = True
                if not wanted:
                    parameter.grad = None
                    for optimizer in self._optimizers:
                        optimizer.state.pop(parameter, None)
        self._set_modes(trained)
        return changed

    def check_held(self, blocks: Collection[str]) -> None:
        """Make sure that an optimizer holds something of each block that is to be trained.

        Raises:
            ValueError: If none does, with the remedy.
        """
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        held = {id(parameter) for group in groups for parameter in group["params"]}
        for name in blocks:
            parameters = [p for p in self.block_map.parameters(name) if p.requires_grad or self._thaw_frozen]
            if parameters and not any(id(parameter) in held for parameter in parameters):
                raise ValueError(
                    f"{name} is to be trained, but no optimizer holds its parameters; give configure_optimizers all "
                    "of them, frozen ones too (self.parameters())"
                )

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
            names |= {n for n, _ in self.block_map.named_parameters(block) if self._found_flags[n] or self._thaw_frozen}
        return names

    @property
    def found_training(self) -> bool:
        """Whether all modules were in train mode when it was made."""
        return all(self._found_modes.values())

    def enforce(self) -> None:
        """Put modes and statistics of frozen blocks right again, where validation or another callback changed them."""
        for module in self._frozen:
            if module.training:
                module.training = False
        self._statistics = [statistic.restore() for statistic in self._statistics]

    def release(self) -> None:
        """Leave flags and modes as they were found."""
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
