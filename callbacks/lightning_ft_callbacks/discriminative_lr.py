"""DiscriminativeLR: a learning rate of its own for each block."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_ft_callbacks.base_rates import group_peaks
from lightning_ft_callbacks.block_callback import BlockCallback
from lightning_ft_callbacks.blocks import BlockSpec
from lightning_ft_callbacks.given_values import check_number, check_switch
from lightning_ft_callbacks.optimizers import check_scalable
from lightning_ft_callbacks.weight_decay import decay_exempt

DECAY = 0.8


class DiscriminativeLR(BlockCallback):
    """Train lower blocks, which hold what is general, at lower rates than upper ones.

    A block's rate is the scheduler's, whatever that is, times the block's scale, at every update; the optimizer's own
    groups are never changed. Logged as ``lr/<block>``. Works with several optimizers and any Lightning module.

    Args:
        decay: Each block's scale over that of the block above it, in (0, 1]; the last has 1. 0.8 where nothing else
            is given. ULMFiT's is 1/2.6 (Howard and Ruder 2018, arXiv:1801.06146).
        low: Learning rate of the first block; those between are spaced evenly in its logarithm, as by fastai's
            ``slice(low, high)``. Without it all but the last have a tenth of ``high``.
        high: Learning rate of the last block, at the peak of the schedule.
        scales: Scales by pattern of block names (``fnmatch``); blocks that none matches have 1.
        weight_decay_exempt: Whether biases, norms and embeddings are spared from weight decay.
        blocks: The blocks, as ``BlockMap.of`` takes them; None finds them.

    Raises:
        ValueError: If a value is out of its range, or two ways to choose the rates are given.
    """

    def __init__(
        self,
        decay: float | None = None,
        *,
        low: float | None = None,
        high: float | None = None,
        scales: Mapping[str, float] | None = None,
        weight_decay_exempt: bool = False,
        blocks: BlockSpec | None = None,
    ) -> None:
        super().__init__(blocks)
        ways = [name for name, value in (("decay", decay), ("high", high), ("scales", scales)) if value is not None]
        if len(ways) > 1:
            raise ValueError(f"{ways[0]} and {ways[1]} both choose the blocks' rates; give one")
        if low is not None and high is None:
            raise ValueError("low needs high, the rate of the last block")
        if decay is not None:
            check_number("decay", decay, above=0, at_most=1)
        for name, value in (("low", low), ("high", high)):
            if value is not None:
                check_number(name, value, above=0)
        if low is not None and high is not None and low > high:
            raise ValueError(f"expected low, the first block's rate, to be at most high={high}, but got {low}")
        if scales is not None and not isinstance(scales, Mapping):
            raise ValueError(f"expected scales to be a mapping from patterns to numbers, but got {scales!r}")
        if scales is not None and not scales:
            raise ValueError("scales has no pattern, so it has no effect")
        for name, value in (scales or {}).items():
            check_number(f"the scale of {name!r}", value, at_least=0)
        check_switch("weight_decay_exempt", weight_decay_exempt)
        self.decay = DECAY if not ways else decay
        self.low = low
        self.high = high
        self.scales = dict(scales) if scales else None
        self.weight_decay_exempt = weight_decay_exempt
        self._scale: dict[str, float] = {}
        self._peaks: dict[int, float] = {}

    def prepare(self, trainer: Trainer) -> None:
        """Work out each block's scale.

        Raises:
            ValueError: If a pattern matches no block, two match one, or an optimizer cannot take rates by block.
        """
        assert self.block_map is not None
        self._scale = self.block_scales(self.block_map.names)
        for pattern in self.scales or ():
            self.block_map.match([pattern])
        # before a checkpoint is loaded, whose groups may stand at a later point of the schedule
        self._peaks = group_peaks(trainer)
        if self.high is not None and 0.0 in self._peaks.values():
            raise ValueError("high has no effect on an optimizer whose lr is 0")
        differ = self.high is not None or any(scale != 1.0 for scale in self._scale.values())
        if differ:
            check_scalable(trainer.optimizers, "DiscriminativeLR")
        if self.weight_decay_exempt and not any("weight_decay" in o.defaults for o in trainer.optimizers):
            raise ValueError("weight_decay_exempt=True has no effect: no optimizer has a weight_decay")
        self._tell_unheld(trainer)

    def _tell_unheld(self, trainer: Trainer) -> None:
        """Say which blocks have no rate at all, because no optimizer holds what of them could be trained."""
        assert self.block_map is not None
        held = {id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
        trainable = {name: [p for p in self.block_map.parameters(name) if p.requires_grad] for name in self._scale}
        unheld = [name for name, ps in trainable.items() if ps and not any(id(p) in held for p in ps)]
        if unheld:
            rank_zero_info(
                f"DiscriminativeLR: no optimizer holds {', '.join(unheld)}, which require gradients, so they are not "
                "trained and have no rate; give configure_optimizers all parameters (self.parameters())"
            )

    def block_scales(self, names: tuple[str, ...]) -> dict[str, float]:
        """Return the scale of each block, or with ``high`` its learning rate at the schedule's peak.

        Args:
            names: The blocks' names, input first.

        Raises:
            ValueError: If two patterns match one block.
        """
        last = len(names) - 1
        if self.decay is not None:
            return {name: self.decay ** (last - index) for index, name in enumerate(names)}
        if self.high is not None:
            if self.low is None:
                return {name: self.high if index == last else self.high / 10 for index, name in enumerate(names)}
            ratio = self.low / self.high
            return {name: self.high * ratio ** ((last - i) / last if last else 0) for i, name in enumerate(names)}
        scale: dict[str, float] = {}
        for name in names:
            patterns = [pattern for pattern in self.scales or {} if fnmatchcase(name, pattern)]
            if len(patterns) > 1:
                raise ValueError(f"block {name!r} is matched by two patterns, {patterns[0]!r} and {patterns[1]!r}")
            scale[name] = (self.scales or {})[patterns[0]] if patterns else 1.0
        return scale

    def rate_factor(self, block: str, group: Mapping[str, Any]) -> float:
        """Return a block's scale; with ``high`` its rate over the peak of the user's group."""
        if self.high is None:
            return self._scale[block]
        # a group that was added since counts as one whose rate is at its peak
        added = group.get("max_lr", group.get("initial_lr", group["lr"]))
        return self._scale[block] / self._peaks.setdefault(id(group["params"]), float(added) or 1.0)

    @property
    def sets_rates(self) -> bool:
        """Whether blocks have rates, by ``high``, and not scales."""
        return self.high is not None

    def decay_exempt(self, module: LightningModule) -> frozenset[int]:
        """Return the parameters that are spared from weight decay."""
        return decay_exempt(module) if self.weight_decay_exempt else frozenset()
