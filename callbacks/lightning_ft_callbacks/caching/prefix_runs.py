"""Runs of a network up to a block, and from a block on."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lightning_ft_callbacks.blocks import BlockMap
from lightning_ft_callbacks.caching.batch_inputs import mask_of
from lightning_ft_callbacks.caching.capturing_pass import CapturingPass, ReachedError
from lightning_ft_callbacks.caching.prefix_cut import PrefixCut
from lightning_ft_callbacks.caching.prefix_passes import PrefixPass, attached, run
from lightning_ft_callbacks.caching.prefix_watch import PrefixWatch
from lightning_ft_callbacks.caching.replaying_pass import ReplayingPass
from lightning_ft_callbacks.caching.sample_shapes import CannotCacheError, Samples

CUTS: WeakKeyDictionary[nn.Module, dict[str, PrefixCut]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True, eq=False)
class PrefixState:
    """What the blocks below some block made of a batch.

    Attributes:
        block: The lowest block that has not run.
        kept: What the upper blocks read of it, each of shape (batch, ...).
        inputs: The inputs that upper blocks read too, an ``attention_mask`` of shape (batch, token).
        samples: The batch's samples.
    """

    block: str
    kept: tuple[Tensor, ...]
    inputs: Mapping[str, Tensor]
    samples: Samples


def run_prefix(network: nn.Module, inputs: Mapping[str, Tensor], block: str, unread: Collection[str]) -> PrefixState:
    """Run a network up to a block, without gradients.

    Args:
        network: The network, called with ``inputs``.
        inputs: A batch's inputs.
        block: The lowest block that does not run.
        unread: Names of the inputs that only lower blocks read.

    Raises:
        ValueError: If there is no such block, nothing is below it, or what is below it is random in this mode.
    """
    inputs = dict(inputs)
    samples = Samples.of_mask(range(len(next(iter(inputs.values())))), mask_of(inputs))
    cut = _cut(network, inputs, samples, block)
    capturing = CapturingPass(cut, samples, stop=True)
    try:
        with torch.no_grad(), attached([capturing]):
            run(partial(network, inputs), [capturing])
    except ReachedError:
        pass
    kept = tuple(capturing.captured[place] for place in cut.crossings)
    return PrefixState(block, kept, {key: value for key, value in inputs.items() if key not in unread}, samples)


def run_suffix(
    network: nn.Module, state: PrefixState, block: str, blank: Callable[[Samples], Mapping[str, Any]]
) -> Any:
    """Run a network from a block on, with gradients where they are enabled, and return what it returns.

    Args:
        network: The network that ``state`` was made with.
        state: What ``run_prefix`` returned.
        block: The block.
        blank: Returns inputs of any values for those that only lower blocks read.

    Raises:
        ValueError: If the state is of another block or network.
    """
    cut = CUTS.get(network, {}).get(block)
    if cut is None or state.block != block:
        raise ValueError(f"the state was made up to {state.block!r}, not {block!r}, or by another network")
    replaying = ReplayingPass(cut, state.samples, state.kept)
    with attached([replaying]):
        return run(partial(network, {**blank(state.samples), **state.inputs}), [replaying])


def _cut(network: nn.Module, inputs: Mapping[str, Tensor], samples: Samples, block: str) -> PrefixCut:
    """Return the cut below a block, found and proven on the first batch."""
    known = CUTS.setdefault(network, {})
    block_map = BlockMap.of(network)
    if block not in block_map.names[1:]:
        near = get_close_matches(block, block_map.names[1:], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(block_map.names[1:])}"
        raise ValueError(f"no block {block!r} that others are below of; {hint}")
    try:
        if block not in known:
            cut = PrefixCut(block_map, block)
            watch = PrefixWatch(partial(_run, network), inputs, samples, padded=True)
            if refusals := watch.learn([cut]):
                raise refusals[block]
            if cut.num_running:
                raise CannotCacheError(f"what is read above {block} has not one row a sample")
            known[block] = cut
        known[block].check()
    except CannotCacheError as error:
        raise ValueError(str(error)) from error
    return known[block]


def _run(network: nn.Module, inputs: Any, passes: Sequence[PrefixPass]) -> Any:
    with isolate_rng(), torch.no_grad(), attached(passes):
        return run(partial(network, inputs), passes)
