"""PrefixWatch: finds out on one batch what crosses a cut, and proves that a step from there on gives the same."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.seed import _collect_rng_states
from torch import Tensor, nn

from lightning_ft_callbacks.caching.capturing_pass import CapturingPass
from lightning_ft_callbacks.caching.postponed import Postponed, Promise
from lightning_ft_callbacks.caching.prefix_cut import Leaf, PrefixCut
from lightning_ft_callbacks.caching.prefix_passes import PrefixPass
from lightning_ft_callbacks.caching.replaying_pass import ReplayingPass
from lightning_ft_callbacks.caching.same_samples import SameSamples
from lightning_ft_callbacks.caching.sample_shapes import CannotCacheError, Samples, SampleShape
from lightning_ft_callbacks.caching.sample_store import SampleStore
from lightning_ft_callbacks.caching.storage import Budget, Storage
from lightning_ft_callbacks.caching.trees import leaves_of, map_leaves

Step = Callable[[Any, Sequence[PrefixPass]], Any]
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
COARSE = 2e-2  # of bf16 and fp16


class PrefixWatch:
    """Runs a step some times on one batch.

    Args:
        step: Runs it on a batch with some passes attached, from the same state each time, and returns tensors that
            tell what it did.
        batch: The batch.
        samples: Its samples.
        dtype: The type that floating-point numbers are kept in; None for their own.
        padded: Whether what crosses is kept with its padding and its neighbours; otherwise it comes back in other
            batches, with zeros for padding.
    """

    def __init__(
        self, step: Step, batch: Any, samples: Samples, dtype: torch.dtype | None = None, *, padded: bool = False
    ) -> None:
        self._step = step
        self._batch = batch
        self._samples = samples
        self._dtype = dtype
        self._padded = padded

    def learn(
        self, cuts: Sequence[PrefixCut], replayed: Callable[[Any, Samples], Any] | None = None
    ) -> dict[str, CannotCacheError]:
        """Find what crosses each cut, and make sure that nothing else does; whole runs serve all cuts together.

        Cuts that ``PrefixCut.check`` refuses take no part in them.

        Args:
            cuts: The cuts, whose crossings, shapes, inputs, keys and placeholders are set.
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
        opened = [recorded.cut.open(recorded.called) for recorded in usable()]
        if any(opened):
            truth = self._step(self._batch, usable())
        each(self._mark)
        seen = self._in_another_batch([recorded.cut for recorded in usable()])
        each(lambda recorded: self._follow(recorded, seen))
        each(lambda recorded: self._prove(recorded, truth, replayed))
        return refusals

    def _mark(self, recorded: "_RecordingPass") -> None:
        """Find what crosses a cut: what is read of the lower modules' outputs while none of these is there."""
        cut = recorded.cut
        if recorded.has_drawn:
            raise CannotCacheError(
                f"random numbers are drawn before {cut.block}: take augmentation or dropout out of what lies below it; "
                "set the p of a dropout to 0 that is in no frozen block"
            )
        marking = _MarkingPass(cut, self._samples, recorded.outputs)
        self._step(self._batch, [marking])
        # what has not one row a sample, a table of positions, is computed each time it is read
        rows = {place: SampleShape(recorded.leaf(place), self._samples) for place in sorted(marking.marked)}
        cut.crossings = [place for place, shape in rows.items() if shape.by_sample]
        cut.shapes = [rows[place] for place in cut.crossings]
        if not cut.crossings:
            raise CannotCacheError(f"nothing that has one row a sample is read of what lies below {cut.block}")
        recorded.read = marking.read
        cut.inputs = {place: SampleShape(leaf, self._samples) for place, leaf in marking.read.items()}

    def _prove(self, recorded: "_RecordingPass", truth: Any, replayed: Callable[[Any, Samples], Any] | None) -> None:
        """Run the step from what a store gives back, and compare."""
        cut, samples = recorded.cut, self._samples
        kept = self._kept(recorded, samples)
        batch = self._batch if replayed is None else replayed(self._batch, samples)
        replaying = ReplayingPass(cut, samples, kept, learns=True)
        found = self._step(batch, [replaying])
        tolerance = self._tolerance([*leaves_of(truth), *kept])
        if replaying.refusal is not None or not _close(truth, found, tolerance):
            raise replaying.refusal or CannotCacheError(
                f"with what is kept below {cut.block} the step does something else; it depends on something that "
                "changes from one run to the next"
            )
        cut.num_running = replaying.num_run

    def _kept(self, recorded: "_RecordingPass", samples: Samples) -> list[Tensor]:
        """Return what crosses as it comes back for some of the samples, which may have other padding."""
        true = [recorded.leaf(place) for place in recorded.cut.crossings]
        if self._padded:
            return [tensor.clone() for tensor in true]
        memory = Storage(Budget(2**62), Path(), lambda: None)
        store = SampleStore(max(self._samples.ids) + 1, recorded.cut.shapes, memory, dtype=self._dtype)
        store.put(self._samples, true)
        return [back.to(tensor.device) for back, tensor in zip(store.get(samples), true, strict=True)]

    def _in_another_batch(self, cuts: Sequence[PrefixCut]) -> dict[str, CapturingPass]:
        """Run a part of the batch: sizes that agree by chance then differ, and samples have other neighbours."""
        batch, samples = another_batch(self._batch, self._samples)
        passes = {cut.block: CapturingPass(cut, samples) for cut in cuts}
        try:
            self._step(batch, [*passes.values()])
        except Exception:  # a foreign step may not take it; then all sizes stay as this batch has them
            return {}
        return passes

    def _follow(self, recorded: "_RecordingPass", seen: Mapping[str, CapturingPass]) -> None:
        """Learn a cut's shapes from another batch, and make sure that samples are there what they are here."""
        cut = recorded.cut
        if (other := seen.get(cut.block)) is None:
            cut.inputs = {place: shape for place, shape in cut.inputs.items() if shape.by_sample}
            return
        if other.refusal:
            raise other.refusal
        if len(other.captured) < len(cut.crossings):
            raise CannotCacheError(f"what is read of {cut.block}'s frozen part differs from batch to batch")
        there = [other.captured[place] for place in cut.crossings]
        for shape, tensor in zip(cut.shapes, there, strict=True):
            shape.see(tensor, other.samples, f"what is read above {cut.block}")
        # a table that has by chance as many rows as there are samples is none of them
        of_samples = [n for n, shape in enumerate(cut.shapes) if shape.by_sample]
        cut.crossings = [cut.crossings[n] for n in of_samples]
        cut.shapes = [cut.shapes[n] for n in of_samples]
        there = [there[n] for n in of_samples]
        if not self._padded:
            here = self._kept(recorded, other.samples)
            blanked = [_without_padding(*one, other.samples) for one in zip(there, cut.shapes, strict=True)]
            if not _close(here, blanked, self._tolerance(here)):
                raise CannotCacheError(
                    f"what is read above {cut.block} depends on a sample's neighbours in the batch or on their padding"
                    "; give the backbone the attention_mask, and position_ids if padding stands on the left"
                )
        self._follow_inputs(recorded, other)

    def _follow_inputs(self, recorded: "_RecordingPass", other: CapturingPass) -> None:
        """Keep those inputs for comparison that are a sample's own, and the same to the bit in other batches."""
        inputs, recorded.cut.inputs = recorded.cut.inputs, {}
        same = SameSamples()
        for place, shape in inputs.items():
            if place not in other.read:  # a mask, which some models leave out where nothing is padded
                continue
            with suppress(CannotCacheError):
                shape.see(other.read[place], other.samples, "an input")
                if shape.by_sample:
                    same.check(place, recorded.read[place], shape, self._samples)
                    same.check(place, other.read[place], shape, other.samples)
                    recorded.cut.inputs[place] = shape

    def _tolerance(self, found: Sequence[Any]) -> float:
        kinds = {leaf.dtype for leaf in found if isinstance(leaf, Tensor) and leaf.is_floating_point()}
        if self._dtype is not None:
            kinds.add(self._dtype)
        return max((TOLERANCE.get(kind, COARSE) for kind in kinds), default=0.0)


class _RecordingPass(CapturingPass):
    """Takes what all lower modules' calls give."""

    def __init__(self, cut: PrefixCut, samples: Samples) -> None:
        super().__init__(cut, samples)
        self.outputs: list[list[Any]] = []
        self.called: set[nn.Module] = set()
        self.has_drawn = False
        self._before: Any = None

    def attach(self) -> None:
        """Begin to listen, and note the state of random numbers."""
        cut = self.cut
        cut.crossings, cut.shapes, cut.inputs = [], [], {}
        cut.placeholders.clear()
        self.outputs, self.has_drawn = [], False
        self._before = _collect_rng_states(include_cuda=True)
        super().attach()
        for module in {part for one in [*cut.lower, *cut.upper] for part in one.modules()}:
            self._handles.append(module.register_forward_pre_hook(lambda module, _: self.called.add(module)))

    def leaf(self, place: Leaf) -> Tensor:
        """Return what a lower module's call gave."""
        call, index = place
        return self.outputs[call][index]

    def after_lower(self, call: int, leaves: list[Any]) -> None:  # noqa: ARG002
        """Take everything."""
        self.has_drawn = not _same(self._before, _collect_rng_states(include_cuda=True))
        self.outputs.append([leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves])


class _MarkingPass(ReplayingPass):
    """Has nothing kept, and marks outputs of lower modules when they are read, giving the true ones.

    Attributes:
        marked: What was read.
        read: What lower modules read that comes from outside.
    """

    def __init__(self, cut: PrefixCut, samples: Samples, outputs: Sequence[Sequence[Any]]) -> None:
        super().__init__(cut, samples, [], learns=True)
        self._outputs = outputs
        self.marked: set[Leaf] = set()
        self.read: dict[Leaf, Tensor] = {}

    def look_at(self, call: int, leaves: Sequence[Any]) -> None:
        """Take what comes from outside."""
        for index, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and not isinstance(leaf, Postponed):
                self.read[call, index] = leaf.detach().clone()

    def promised(self, call: int, index: int, shape: SampleShape, run: Promise) -> Tensor:
        """Return a leaf that marks itself when it is read."""

        def mark() -> list[Tensor]:
            self.marked.add((call, index))
            return [self._outputs[call][index].clone()]

        return self._later(shape, Promise(mark, run.key), 0)


def another_batch(batch: Any, samples: Samples) -> tuple[Any, Samples]:
    """Return some of a batch's samples as a batch with other neighbours and another amount of padding.

    Texts that are shorter than the longest are padded less; where all are of one length, more.

    Args:
        batch: The batch.
        samples: Its samples.
    """
    count, tokens, lengths = len(samples.ids), samples.num_tokens, samples.lengths
    rows = list(range(count))
    wanted = tokens
    if tokens is not None and lengths is not None:
        rows = [row for row in rows if lengths[row] < tokens] or rows
        longest = max(lengths[row] for row in rows)
        wanted = longest if longest < tokens else tokens + 1
    if len(rows) == count > 1:
        rows = rows[:-1]

    def recompose(part: Any) -> Any:
        if not isinstance(part, Tensor) or part.ndim == 0 or len(part) != count:
            return part
        part = part[rows]
        if tokens is None or wanted is None or part.ndim < 2 or part.shape[1] != tokens:
            return part
        if wanted < tokens:
            return part[:, tokens - wanted :] if samples.left else part[:, :wanted]
        more = torch.zeros_like(part[:, :1])
        return torch.cat([more, part] if samples.left else [part, more], 1)

    fewer = replace(
        samples,
        ids=tuple(samples.ids[row] for row in rows),
        lengths=lengths and tuple(lengths[row] for row in rows),
        num_tokens=wanted,
    )
    return map_leaves(recompose, batch), fewer


def _without_padding(tensor: Tensor, shape: SampleShape, samples: Samples) -> Tensor:
    """Return a copy with zeros at padding."""
    tensor = tensor.clone()
    for dim in shape.token_dims:
        padding = ~samples.mask(tensor.device)
        size = [len(padding), *(padding.shape[1] if other == dim else 1 for other in range(1, tensor.ndim))]
        tensor.masked_fill_(padding.view(size), 0)
    return tensor


def _close(one: Any, other: Any, tolerance: float) -> bool:
    """Tell whether all numbers of two structures are the same within a relative tolerance."""
    left, right = leaves_of(one), leaves_of(other)
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
