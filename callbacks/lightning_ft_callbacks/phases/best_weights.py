"""BestWeights: the weights of a phase's best validation, kept in memory until the phase ends."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from lightning_ft_callbacks.blocks import BlockMap


class BestWeights:
    """Keeps what a phase trains as it was at its best, and puts it back.

    Args:
        block_map: The blocks.
        kept: Tensors by name that are kept already.
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

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is kept, for a checkpoint; asked on all ranks, because shards are put together."""
        return {name: _whole(tensor) for name, tensor in self.kept.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take what ``state_dict`` returned, each rank its shard of parameters that are sharded now."""
        now = dict(self._block_map.root.named_parameters())
        self.kept = {name: _sharded_as(now.get(name), tensor) for name, tensor in state.items()}

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


def _whole(tensor: Tensor) -> Tensor:
    # in the CPU's memory, because a checkpoint's callbacks are written by one rank, which may have no room for all
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def _sharded_as(parameter: Tensor | None, tensor: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
