"""PrefixGuard: notices when somebody changes what lies below a line, so that what was kept of it is wrong."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ft_callbacks.blocks import BlockMap
from lightning_ft_callbacks.caching.kept_caches import digest


class PrefixWeights:
    """Notices when somebody changes weights or statistics of frozen blocks.

    They are read only if they were written to, which some do who then put them back: an average of weights that takes
    their place in validation. A write that torch does not count (``parameter.data``) shows in their sums, which are
    looked at once an epoch.

    Args:
        block_map: The blocks.
    """

    def __init__(self, block_map: BlockMap) -> None:
        self._blocks = [[*_places(block_map, name)] for name in block_map.names]
        self._digests: dict[int, str] = {}
        self._sums: dict[int, Tensor] = {}
        self._versions: Any = None
        self._epoch: int | None = None

    def changed(self, line: int, epoch: int) -> bool:
        """Tell whether a block below a line is another than when it was last asked for, while it was below one.

        Args:
            line: The position of the lowest block above it.
            epoch: The number of the epoch.
        """
        below = [owner[name] for block in self._blocks[:line] for owner, name in block]
        versions = line, [(tensor._version, tensor.data_ptr()) for tensor in below]
        if versions == self._versions and epoch == self._epoch:
            return False
        found = False
        if epoch != self._epoch:
            sums = {number: _sums(self._now(number)) for number in range(line)}
            found = any(not torch.equal(self._sums.get(number, one), one) for number, one in sums.items())
            self._sums = sums
        if versions != self._versions or found:
            digests = {number: digest(*self._now(number)) for number in range(line)}
            found = any(self._digests.get(number, one) != one for number, one in digests.items())
            self._digests = digests
        self._versions, self._epoch = versions, epoch
        return found

    def _now(self, number: int) -> list[Tensor]:
        return [owner[name] for owner, name in self._blocks[number]]


class PrefixModules:
    """Notices when somebody replaces modules, or what they do, or changes hooks below a line.

    Args:
        roots: The lower modules.
    """

    def __init__(self, roots: list[nn.Module]) -> None:
        self._parts = [part for root in roots for part in root.modules()]
        self._hooks = [hooks for part in self._parts for hooks in (part._forward_hooks, part._forward_pre_hooks)]
        self._num_hooks, self._children = self._now()

    def replaced(self) -> bool:
        """Tell whether a module has been replaced, or its ``forward``."""
        return self._now()[1] != self._children

    def hooked(self) -> bool:
        """Tell whether hooks have come or gone since it was asked the last time."""
        before, self._num_hooks = self._num_hooks, self._now()[0]
        return before != self._num_hooks

    def _now(self) -> tuple[int, int]:
        children = chain.from_iterable(part._modules.values() for part in self._parts)
        own = (part.__dict__.get("forward") for part in self._parts)
        return sum(map(len, self._hooks)), hash(tuple(map(id, chain(children, own))))


def _places(block_map: BlockMap, name: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Return where a block's parameters and its modules' buffers are, whatever tensors these will be."""
    for path, _ in block_map.named_parameters(name):
        parent, _, own = path.rpartition(".")
        yield block_map.root.get_submodule(parent)._parameters, own
    for module in block_map.modules(name):
        yield from ((module._buffers, own) for own, _ in module.named_buffers(recurse=False))


def _sums(tensors: Sequence[Tensor]) -> Tensor:
    """Return what a change of any tensor changes, as far as that can be had fast, shape (2 x tensor,)."""
    wide = [tensor if tensor.is_floating_point() else tensor.float() for tensor in tensors if tensor.numel()]
    found = [part.detach().double().cpu() for tensor in wide for part in (tensor.sum(), tensor.norm())]
    return torch.stack(found) if found else torch.empty(0)
