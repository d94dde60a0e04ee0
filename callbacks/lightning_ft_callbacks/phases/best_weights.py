"""BestWeights: the weights of a phase's best validation, kept in memory until the phase ends."""

from collections.abc import Collection

import torch
from torch import Tensor

from lightning_ft_callbacks.blocks import BlockMap


class BestWeights:
    """Keeps what a phase trains as it was at its best, and puts it back.

    Args:
        block_map: The blocks.
        kept: Tensors by name that are kept already, from a checkpoint.
    """

    def __init__(self, block_map: BlockMap, kept: dict[str, Tensor] | None = None) -> None:
        self._block_map = block_map
        self.kept = dict(kept or {})

    @torch.no_grad()
    def keep(self, trained: Collection[str]) -> None:
        """Keep what is in the trained blocks now, in the memory of what was kept before.

        Args:
            trained: The blocks' names.
        """
        for name, tensor in self._changing(trained).items():
            if name in self.kept:
                self.kept[name].copy_(tensor)
            else:
                self.kept[name] = tensor.detach().clone()

    @torch.no_grad()
    def restore(self, trained: Collection[str]) -> None:
        """Put back what was kept, if anything was, and let go of it.

        Args:
            trained: The blocks' names.
        """
        if self.kept:
            now = self._changing(trained)
            for name, tensor in self.kept.items():
                now[name].copy_(tensor)
            self.kept = {}

    def _changing(self, trained: Collection[str]) -> dict[str, Tensor]:
        """Return the weights and buffers that training some blocks changes, by name."""
        tensors: dict[str, Tensor] = {
            name: parameter
            for block in trained
            for name, parameter in self._block_map.named_parameters(block)
            if parameter.requires_grad
        }
        thawed = {module for module, block in self._block_map.module_owners() if block in trained}
        for path, module in self._block_map.root.named_modules():
            if module in thawed:
                prefix = f"{path}." if path else ""
                tensors |= {f"{prefix}{name}": buffer for name, buffer in module.named_buffers(recurse=False)}
        return tensors
