"""PrefixWatch: finds out on one batch what crosses a cut, and proves that a step from there on gives the same."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_ft_callbacks.caching.another_batch import another_batch, other_neighbours, without_padding
from lightning_ft_callbacks.caching.capturing_pass import CapturingPass
from lightning_ft_callbacks.caching.closeness import close, tolerance_of
from lightning_ft_callbacks.caching.prefix_cut import PrefixCut
from lightning_ft_callbacks.caching.prefix_passes import PrefixPass
from lightning_ft_callbacks.caching.replaying_pass import ReplayingPass
from lightning_ft_callbacks.caching.same_samples import SameSamples
from lightning_ft_callbacks.caching.sample_shapes import CannotCacheError, Samples, SampleShape
from lightning_ft_callbacks.caching.sample_store import SampleStore
from lightning_ft_callbacks.caching.storage import Budget, Storage
from lightning_ft_callbacks.caching.trees import leaves_of
from lightning_ft_callbacks.caching.watching_passes import MarkingPass, RecordingPass

Step = Callable[[Any, Sequence[PrefixPass]], Any]


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

    Attributes:
        takes_fewer: Whether the step also takes fewer samples than the batch has; known when something was learnt.
    """

    def __init__(
        self, step: Step, batch: Any, samples: Samples, dtype: torch.dtype | None = None, *, padded: bool = False
    ) -> None:
        self._step = step
        self._batch = batch
        self._samples = samples
        self._dtype = dtype
        self._padded = padded
        self.takes_fewer = False

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
        passes = [RecordingPass(cut, self._samples) for cut in cuts]
        refusals: dict[str, CannotCacheError] = {}

        def usable() -> list[RecordingPass]:
            return [recorded for recorded in passes if recorded.cut.block not in refusals]

        def each(do: Callable[[RecordingPass], None]) -> None:
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
        there = self._in_another_batch([recorded.cut for recorded in usable()])
        each(lambda recorded: self._follow(recorded, there))
        if there is not None and there.truth is not None and self._comes_back_in(there.samples):
            each(lambda recorded: self._prove(recorded, there.batch, there.samples, there.truth))
        batch = self._batch if replayed is None else replayed(self._batch, self._samples)
        each(lambda recorded: self._prove(recorded, batch, self._samples, truth))
        return refusals

    def _mark(self, recorded: RecordingPass) -> None:
        """Find what crosses a cut: what is read of the lower modules' outputs while none of these is there."""
        cut = recorded.cut
        if recorded.refusal is not None:
            raise recorded.refusal
        if recorded.has_drawn:
            raise CannotCacheError(
                f"random numbers are drawn before {cut.block}: take augmentation or dropout out of what lies below it; "
                "set the p of a dropout to 0 that is in no frozen block"
            )
        marking = MarkingPass(cut, self._samples, recorded.outputs)
        self._step(self._batch, [marking])
        # what has not one row a sample, a table of positions, is computed each time it is read
        rows = {place: SampleShape(recorded.leaf(place), self._samples) for place in sorted(marking.marked)}
        cut.crossings = [place for place, shape in rows.items() if shape.by_sample]
        cut.shapes = [rows[place] for place in cut.crossings]
        if not cut.crossings:
            raise CannotCacheError(f"nothing that has one row a sample is read of what lies below {cut.block}")
        recorded.read = marking.read
        cut.inputs = {place: SampleShape(leaf, self._samples) for place, leaf in marking.read.items()}

    def _comes_back_in(self, samples: Samples) -> bool:
        """Tell whether a step on other samples can be run from what is kept; more padding has no labels of its own."""
        return not self._padded and (samples.num_tokens or 0) <= (self._samples.num_tokens or 0)

    def _prove(self, recorded: RecordingPass, batch: Any, samples: Samples, truth: Any) -> None:
        """Run the step from what a store gives back, and compare."""
        cut = recorded.cut
        kept = self._kept(recorded, samples)
        replaying = ReplayingPass(cut, samples, kept, learns=True)
        found = self._step(batch, [replaying])
        tolerance = tolerance_of([*leaves_of(truth), *kept], self._dtype)
        if replaying.refusal is not None or not close(truth, found, tolerance):
            raise replaying.refusal or CannotCacheError(
                f"with what is kept below {cut.block} the step does something else; it depends on something that "
                "changes from one run to the next, or on what stands at padding, where zeros come back"
            )
        cut.num_running = replaying.num_run

    def _kept(self, recorded: RecordingPass, samples: Samples) -> list[Tensor]:
        """Return what crosses as it comes back for some of the samples, which may have other padding."""
        true = [recorded.leaf(place) for place in recorded.cut.crossings]
        if self._padded:
            return [tensor.clone() for tensor in true]
        memory = Storage(Budget(2**62), Path(), lambda: None)
        store = SampleStore(max(self._samples.ids) + 1, recorded.cut.shapes, memory, dtype=self._dtype)
        store.put(self._samples, true)
        return [back.to(tensor.device) for back, tensor in zip(store.get(samples), true, strict=True)]

    def _in_another_batch(self, cuts: Sequence[PrefixCut]) -> "_AnotherBatch | None":
        """Run a part of the batch: sizes that agree by chance then differ, and samples have other neighbours.

        A step may not take fewer samples; it is then run on as many in other rows. None if it takes neither.
        """
        for recompose in (another_batch, other_neighbours):
            batch, samples = recompose(self._batch, self._samples)
            passes = {cut.block: CapturingPass(cut, samples) for cut in cuts}
            truth = None
            try:
                truth = self._step(batch, [*passes.values()])
            except Exception:  # whatever a foreign step raises; above the cut it says nothing of what is below
                if any(len(one.captured) < len(one.cut.crossings) for one in passes.values()):
                    continue
            self.takes_fewer = truth is not None and recompose is another_batch
            return _AnotherBatch(batch, samples, passes, truth)
        return None

    def _follow(self, recorded: RecordingPass, there: "_AnotherBatch | None") -> None:
        """Learn a cut's shapes from another batch, and make sure that samples are there what they are here."""
        cut = recorded.cut
        if there is None:
            raise CannotCacheError(
                "the step takes the samples of a batch in no other order or number, so nobody can tell whether what is "
                f"read above {cut.block} depends on a sample's neighbours"
            )
        other = there.passes[cut.block]
        if other.refusal:
            raise other.refusal
        if len(other.captured) < len(cut.crossings):
            raise CannotCacheError(f"what is read of {cut.block}'s frozen part differs from batch to batch")
        seen = [other.captured[place] for place in cut.crossings]
        for shape, tensor in zip(cut.shapes, seen, strict=True):
            shape.see(tensor, other.samples, f"what is read above {cut.block}")
        # a table that has by chance as many rows as there are samples is none of them
        of_samples = [n for n, shape in enumerate(cut.shapes) if shape.by_sample]
        cut.crossings = [cut.crossings[n] for n in of_samples]
        cut.shapes = [cut.shapes[n] for n in of_samples]
        seen = [seen[n] for n in of_samples]
        if not self._padded:
            here = self._kept(recorded, other.samples)
            blanked = [without_padding(*one, other.samples) for one in zip(seen, cut.shapes, strict=True)]
            if not close(here, blanked, tolerance_of(here, self._dtype)):
                raise CannotCacheError(
                    f"what is read above {cut.block} depends on a sample's neighbours in the batch or on their padding"
                    "; give the backbone the attention_mask, and position_ids if padding stands on the left"
                )
        self._follow_inputs(recorded, other)

    def _follow_inputs(self, recorded: RecordingPass, other: CapturingPass) -> None:
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


@dataclass(frozen=True, slots=True)
class _AnotherBatch:
    """A step that was run on another batch.

    Attributes:
        batch: The batch.
        samples: Its samples.
        passes: What crossed each cut, by its block.
        truth: What the step did; None where it raised something after all had crossed.
    """

    batch: Any
    samples: Samples
    passes: Mapping[str, CapturingPass]
    truth: Any
