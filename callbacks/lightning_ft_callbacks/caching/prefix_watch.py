"""PrefixWatch: finds out on one batch what crosses a cut, and proves that a step from there on gives the same."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.seed import _collect_rng_states
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_ft_callbacks.caching.prefix_cut import Crossing, PrefixCut, Zeros
from lightning_ft_callbacks.caching.prefix_passes import CapturingPass, PrefixPass, ReplayingPass
from lightning_ft_callbacks.caching.sample_shapes import CannotCacheError, Samples, SampleShape
from lightning_ft_callbacks.caching.sample_store import SampleStore
from lightning_ft_callbacks.caching.storage import Budget, Storage

Step = Callable[[Any, Sequence[PrefixPass]], Any]
EXACT = 1e-6
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
COARSE = 2e-2  # of bf16 and fp16
OUT_OF_LINE = (
    "its blocks do not run one after another: with the same input for the upper ones {what} differs, so something "
    "else of what lies below {block} is read"
)


class PrefixWatch:
    """Runs a step some times on one batch.

    Args:
        step: Runs it on a batch with some passes attached, from the same state each time, and returns tensors that
            tell what it did.
        batch: The batch.
        samples: Its samples.
        dtype: The type that floating-point numbers are kept in; None for their own.
        padded: Whether what crosses is kept with its padding; otherwise it comes back with zeros there.
    """

    def __init__(
        self, step: Step, batch: Any, samples: Samples, dtype: torch.dtype | None = None, *, padded: bool = False
    ) -> None:
        self._step = step
        self._batch = batch
        self._samples = samples
        self._dtype = dtype
        self._padded = padded
        self._zeros = Zeros()

    def learn(
        self, cuts: Sequence[PrefixCut], replayed: Callable[[Any, Samples], Any] | None = None
    ) -> dict[str, CannotCacheError]:
        """Find what crosses each cut, and make sure that nothing else does; whole runs serve all cuts together.

        Cuts that ``PrefixCut.check`` refuses take no part in them.

        Args:
            cuts: The cuts, whose crossings, shapes and placeholders are set.
            replayed: Makes of the batch what the step is given once it begins at a cut.

        Returns:
            Why some cuts cannot be used, with what to change, by their block.
        """
        passes = [_RecordingPass(cut, self._samples) for cut in cuts]
        refusals: dict[str, CannotCacheError] = {}

        def usable() -> list[_RecordingPass]:
            return [recorded for recorded in passes if recorded.cut.block not in refusals]

        def each(do: Callable[[_RecordingPass], None]) -> None:
            for recorded in usable():
                try:
                    do(recorded)
                except CannotCacheError as error:
                    refusals[recorded.cut.block] = error

        each(lambda recorded: recorded.cut.check())
        if not usable():
            return refusals
        truth = self._step(self._batch, usable())
        each(self._mark)
        seen = self._another_size([recorded.cut for recorded in usable()])
        each(lambda recorded: self._follow(recorded.cut, seen))
        each(lambda recorded: self._prove(recorded, truth, replayed))
        return refusals

    def _mark(self, recorded: "_RecordingPass") -> None:
        """Find what crosses a cut: what upper modules read, or after random numbers what lower ones made."""
        cut = recorded.cut
        if not recorded.drew_before_upper:
            marking = _MarkingPass(cut, self._samples, recorded.calls, self._zeros)
            self._step(self._batch, [marking])
            self._cross(recorded, marking.crossings)
        elif recorded.drew_before_end_of_lower:
            raise CannotCacheError(
                f"random numbers are drawn before {cut.block}: take augmentation or dropout out of what lies below it"
            )
        else:  # a dropout stands between the two sides
            self._cross(recorded, recorded.results(len(recorded.outputs) - 1))

    def _prove(self, recorded: "_RecordingPass", truth: Any, replayed: Callable[[Any, Samples], Any] | None) -> None:
        """Run the step from what a store gives back, and compare."""
        if _close(truth, self._again(recorded, replayed), EXACT):
            return
        self._add_results(recorded, truth)
        kept = [recorded.leaf(place) for place in recorded.cut.crossings]
        kinds = {tensor.dtype for tensor in [*tree_leaves(truth), *kept] if _is_float(tensor)} | {self._dtype}
        tolerance = max((TOLERANCE.get(kind, COARSE) for kind in kinds if kind is not None), default=0.0)
        if not _close(truth, self._again(recorded, replayed), tolerance):
            raise CannotCacheError(OUT_OF_LINE.format(what="the result", block=recorded.cut.block))

    def _again(self, recorded: "_RecordingPass", replayed: Callable[[Any, Samples], Any] | None) -> Any:
        """Return the result of the step from a cut on, as it will be from what is kept."""
        cut, samples = recorded.cut, self._samples
        kept = [recorded.leaf(place) for place in cut.crossings]
        if not self._padded:
            memory = Storage(Budget(2**62), Path(), lambda: None)
            store = SampleStore(max(samples.ids) + 1, cut.shapes, memory, dtype=self._dtype)
            store.put(samples, kept)
            kept = [back.to(true.device) for back, true in zip(store.get(samples), kept, strict=True)]
        batch = self._batch if replayed is None else replayed(self._batch, samples)
        return self._step(batch, [ReplayingPass(cut, samples, kept, self._zeros)])

    def _add_results(self, recorded: "_RecordingPass", truth: Any) -> None:
        """Let outputs of lower modules cross too, the last ones first, until the step gives what it gave."""
        cut = recorded.cut
        for call in reversed(range(len(recorded.outputs))):
            kept = [recorded.leaf(place) for place in cut.crossings]
            found = self._step(self._batch, [ReplayingPass(cut, self._samples, kept, self._zeros)])
            if _close(truth, found, EXACT):
                break
            self._cross(recorded, [place for place in recorded.results(call) if place not in cut.crossings])
        self._follow(cut, self._another_size([cut]))

    def _cross(self, recorded: "_RecordingPass", places: Sequence[Crossing]) -> None:
        """Let leaves cross beside those that do."""
        cut = recorded.cut
        cut.crossings = [*places, *cut.crossings]
        cut.shapes = [*(SampleShape(recorded.leaf(place), self._samples) for place in places), *cut.shapes]

    def _another_size(self, cuts: Sequence[PrefixCut]) -> dict[str, CapturingPass]:
        """Run a part of the batch, so that a size that is by chance another one is not taken for it."""
        batch, samples = smaller(self._batch, self._samples)
        passes = {cut.block: CapturingPass(cut, samples) for cut in cuts}
        try:
            self._step(batch, [*passes.values()])
        except Exception:  # a foreign step may not take it; then all sizes stay as this batch has them
            return {}
        return passes

    def _follow(self, cut: PrefixCut, seen: Mapping[str, CapturingPass]) -> None:
        """Learn a cut's shapes from another run."""
        if (other := seen.get(cut.block)) is None:
            return
        if other.refusal:
            raise other.refusal
        for shape, place in zip(cut.shapes, cut.crossings, strict=True):
            shape.see(other.captured[place], other.samples, f"what is read above {cut.block}")


class _RecordingPass(CapturingPass):
    """Takes all arguments of all upper modules' calls."""

    def __init__(self, cut: PrefixCut, samples: Samples) -> None:
        super().__init__(cut, samples)
        self.calls: list[list[Any]] = []
        self.outputs: list[list[Any]] = []
        self.drew_before_upper = self.drew_before_end_of_lower = False
        self._before: Any = None

    def attach(self) -> None:
        """Begin to listen, and note the state of random numbers."""
        self.cut.placeholders.clear()
        self.cut.crossings, self.cut.shapes = [], []
        self._before = _collect_rng_states(include_cuda=True)
        super().attach()

    def leaf(self, place: Crossing) -> Tensor:
        """Return what crossed at a place."""
        side, call, index = place
        return (self.calls if side == "upper" else self.outputs)[call][index]

    def results(self, call: int) -> list[Crossing]:
        """Return the places of the tensors that a lower module's call returned."""
        if not 0 <= call < len(self.outputs):
            return []
        return [("lower", call, index) for index, leaf in enumerate(self.outputs[call]) if isinstance(leaf, Tensor)]

    def crossing(self, call: int, leaves: list[Any]) -> list[Any] | None:
        """Take everything."""
        if call == 0:
            self.drew_before_upper = self._has_drawn()
        self.calls.append(_snapshot(leaves))
        return None

    def after_lower(self, call: int, leaves: list[Any]) -> None:  # noqa: ARG002
        """Take everything."""
        self.drew_before_end_of_lower = self._has_drawn()
        self.outputs.append(_snapshot(leaves))

    def _has_drawn(self) -> bool:
        return not _same(self._before, _collect_rng_states(include_cuda=True))


class _MarkingPass(ReplayingPass):
    """Runs without the lower modules, and marks arguments that then differ, giving the true ones."""

    def __init__(self, cut: PrefixCut, samples: Samples, calls: list[list[Any]], zeros: Zeros) -> None:
        cut.crossings = []
        super().__init__(cut, samples, [], zeros)
        self.crossings: list[Crossing] = []
        self._calls = calls

    def crossing(self, call: int, leaves: list[Any]) -> list[Any] | None:
        """Compare, mark and replace."""
        if call >= len(self._calls) or len(leaves) != len(self._calls[call]):
            raise CannotCacheError(OUT_OF_LINE.format(what="the number of calls", block=self.cut.block))
        given = list(leaves)
        for index, (true, leaf) in enumerate(zip(self._calls[call], leaves, strict=True)):
            if isinstance(true, Tensor):
                if not isinstance(leaf, Tensor) or not _close(true, leaf, EXACT):
                    self.crossings.append(("upper", call, index))
                    given[index] = true
            elif isinstance(true, int | float | str | bool | None) and true != leaf:
                raise CannotCacheError(OUT_OF_LINE.format(what="an argument that is no tensor", block=self.cut.block))
        return given


def _snapshot(leaves: list[Any]) -> list[Any]:
    return [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def smaller(batch: Any, samples: Samples) -> tuple[Any, Samples]:
    """Return a batch without its last sample and its last column of tokens, where it has more than one.

    Args:
        batch: The batch.
        samples: Its samples.
    """
    count, tokens = len(samples.ids), samples.num_tokens
    fewer = slice(0, count - 1 if count > 1 else count)
    shorter = slice(None)
    lengths = samples.lengths and samples.lengths[fewer]
    if tokens is not None and tokens > 1 and lengths is not None:
        shorter = slice(1, None) if samples.left else slice(0, tokens - 1)
        lengths = tuple(min(length, tokens - 1) for length in lengths)
        tokens -= 1

    def cut(part: Any) -> Any:
        if not isinstance(part, Tensor) or part.ndim == 0 or len(part) != count:
            return part
        part = part[fewer]
        return part[:, shorter] if part.ndim > 1 and part.shape[1] == samples.num_tokens else part

    return tree_map(cut, batch), replace(samples, ids=samples.ids[fewer], lengths=lengths, num_tokens=tokens)


def _close(one: Any, other: Any, tolerance: float) -> bool:
    """Tell whether all numbers of two structures are the same within a relative tolerance."""
    left, right = tree_leaves(one), tree_leaves(other)
    return len(left) == len(right) and all(_close_leaf(a, b, tolerance) for a, b in zip(left, right, strict=True))


def _close_leaf(one: Any, other: Any, tolerance: float) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return True
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    scale = one.abs().amax().item() if one.numel() else 0.0
    return torch.allclose(one.double(), other.double(), rtol=tolerance, atol=tolerance * (scale or 1), equal_nan=True)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return all(map(_same, one, other))
    return bool((one == other) if not hasattr(one, "shape") else (one == other).all())


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
