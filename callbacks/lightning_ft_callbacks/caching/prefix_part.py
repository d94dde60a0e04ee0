"""PrefixPart: the samples of one loader, and what of them was kept at which lines."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_ft_callbacks.blocks import BlockMap
from lightning_ft_callbacks.caching.batch_inputs import BatchInputs, mask_of
from lightning_ft_callbacks.caching.capturing_pass import CapturingPass
from lightning_ft_callbacks.caching.identified_batches import IdentifiedBatches
from lightning_ft_callbacks.caching.kept_line import KeptLine
from lightning_ft_callbacks.caching.part_samples import PartSamples
from lightning_ft_callbacks.caching.prefix_cut import PrefixCut
from lightning_ft_callbacks.caching.prefix_passes import PrefixPass, run
from lightning_ft_callbacks.caching.prefix_watch import PrefixWatch, Step
from lightning_ft_callbacks.caching.read_ahead import ReadAhead
from lightning_ft_callbacks.caching.replaying_pass import ReplayingPass
from lightning_ft_callbacks.caching.same_samples import SameSamples, another_sample
from lightning_ft_callbacks.caching.same_values import holds_the_same
from lightning_ft_callbacks.caching.sample_shapes import CannotCacheError, Samples
from lightning_ft_callbacks.caching.sample_store import SampleStore
from lightning_ft_callbacks.caching.storage import StorageFullError
from lightning_ft_callbacks.caching.store_folder import StoreFolder

FEW = 4  # samples of an epoch whose prefix is run once more


class PrefixPart:
    """Training samples, or those of one validation loader.

    Args:
        name: What it is, for messages.
        block_map: The module's blocks.
        loader: The loader.
        unread: Names of what only the backbone's prefix reads of a batch; empty if that is not known.
        folder: Where stores are made.
        dtype: The type that floating-point numbers are kept in; None for their own.

    Attributes:
        samples: The samples.
        considered: Lowest trained blocks for which it was decided whether to keep anything.
        refusals: Why nothing is kept below a block.
        asks: Whether any process has a line of which nobody knows whether padding would be read.
    """

    def __init__(
        self,
        name: str,
        block_map: BlockMap,
        loader: IdentifiedBatches,
        *,
        unread: Collection[str],
        folder: StoreFolder,
        dtype: torch.dtype | None,
    ) -> None:
        self.name = name
        self.samples = PartSamples(loader, in_whole=folder.keep)
        self.considered: set[str] = set()
        self.refusals: dict[str, str] = {}
        self.asks = False
        self.full = False
        self._order = {block: position for position, block in enumerate(block_map.names)}
        self._block_map = block_map
        self._unread = unread
        self._folder = folder
        self._dtype = dtype
        self._lines: dict[str, KeptLine] = {}
        self._inputs: BatchInputs | None = None
        self._num_inputs = 0
        self._passes: list[PrefixPass] = []
        self._step: tuple[Any, Samples] | None = None
        self._same = SameSamples()
        self._read_ahead = ReadAhead()

    def learn(
        self,
        step: Step,
        batch: Any,
        samples: Samples,
        blocks: Sequence[str],
        room: int,
        num_tokens: int | None,
        fingerprint: Callable[[PrefixCut], str | None],
        move: Callable[[Any], Any],
    ) -> list[tuple[str, int]]:
        """Find out what crosses the line below some blocks, and make room for it.

        Args:
            step: Runs the module's step on a batch without a trace.
            batch: The batch, read.
            samples: Its samples.
            blocks: The blocks, the most wanted one first; the others only as long as there is room for them.
            room: Memory for all [byte].
            num_tokens: Of a sample, to reckon with; None if samples have no tokens.
            fingerprint: Names what will be kept at a cut, so that a later fit finds it.
            move: Makes of a batch that was read what the step gets.

        Returns:
            Blocks below which outputs will be kept, and about how many bytes that takes.

        Raises:
            CannotCacheError: If nothing can be kept below the first one, with what to change.
            StorageFullError: If files are needed, and cannot be made.
        """
        unread = self._inputs_of(batch, samples)
        cuts = [PrefixCut(self._block_map, block) for block in blocks if block not in self._lines]
        watch = PrefixWatch(step, batch, samples, self._dtype)
        refusals = watch.learn(cuts, unread.blanked if unread else None)
        if blocks[0] in refusals:
            raise refusals[blocks[0]]
        chosen: list[tuple[str, int]] = []
        for cut in [cut for cut in cuts if cut.block not in refusals]:
            block = cut.block
            store = SampleStore(0, cut.shapes, self._folder.none(), dtype=self._dtype)
            num_bytes = len(self.samples) * store.sample_bytes(num_tokens)
            if chosen and num_bytes > room:
                continue
            room -= num_bytes
            try:
                store = self._folder.store(
                    f"{self.name}-{self._order[block]}",
                    self.samples.num_numbers,
                    cut.shapes,
                    self._dtype,
                    num_bytes,
                    fingerprint(cut),
                    partial(_still_true, self.samples.loader, cut, step, move, len(samples.ids)),
                )
            except StorageFullError:
                if chosen:
                    break
                raise
            num_compared = FEW if watch.takes_fewer else len(samples.ids)
            self._lines[block] = KeptLine(cut, store, num_compared, samples.may_be_padded)
            chosen.append((block, num_bytes))
        self._inputs = unread
        return chosen

    def gives_the_same(self, step: Step, ids: Sequence[int], frontier: int, move: Callable[[Any], Any]) -> bool:
        """Run the prefix of a few samples once more, and tell whether it still gives what is kept of them.

        Args:
            step: Runs the module's step on a batch without a trace.
            ids: Samples whose prefix is kept; the first of them are compared.
            frontier: The position of the lowest trained block.
            move: Makes of a batch that was read what the step gets.

        Raises:
            CannotCacheError: If somebody has replaced a module, or given one a hook.
        """
        line = self._serving(self.samples.numbers(ids), frontier)
        assert line is not None
        few = list(ids)[: line.num_compared]
        return line.gives_the_same(step, lambda: move(self.samples.loader.read(few)), self.samples.numbers(few))

    @property
    def has_unproven(self) -> bool:
        """Whether there is a line of which nobody knows whether padding would be read."""
        return not all(line.is_proven for line in self._lines.values())

    def is_unproven(self, batch: Any, ids: Sequence[int], frontier: int) -> bool:
        """Tell whether a batch is padded that will be served from a line that was learnt where nothing was padded."""
        line = self._serving(self.samples.numbers(ids), frontier)
        try:
            return line is not None and not line.is_proven and Samples.of_mask(ids, mask_of(batch)).may_be_padded
        except CannotCacheError:  # which ``begin`` will say
            return False

    def prove(self, step: Step, batch: Any, ids: Sequence[int], frontier: int, device: torch.device) -> None:
        """Run a step from what is kept, and compare it with a whole one.

        Args:
            step: Runs the module's step on a batch without a trace.
            batch: The batch.
            ids: Its samples.
            frontier: The position of the lowest trained block.
            device: The module's device.

        Raises:
            CannotCacheError: If it does something else.
        """
        numbers = self.samples.numbers(ids)
        line = self._serving(numbers, frontier)
        if line is not None:
            line.prove(step, batch, Samples.of_mask(numbers, mask_of(batch)), device)
            return
        for _ in range(2):  # as often as other processes do, for which it may wait
            step(batch, [])

    def num_running(self, block: str) -> int:
        """Return how many calls of modules below a block run in each step all the same."""
        return self._lines[block].cut.num_running

    def has(self, ids: Sequence[int], frontier: int) -> bool:
        """Tell whether a batch of some samples need not be read."""
        numbers = self.samples.numbers(ids)
        return self._inputs is not None and self._inputs.has(numbers) and self._serving(numbers, frontier) is not None

    def batch(self, ids: Sequence[int]) -> Any:
        """Return a batch that need not be read."""
        assert self._inputs is not None

        def read() -> Any:
            with isolate_rng():
                return self.samples.loader.read(ids)

        return self._inputs.batch(self.samples.numbers(ids), read)

    def can_serve(self, ids: Sequence[int], frontier: int) -> bool:
        """Tell whether the prefix of some samples is kept."""
        return self._serving(self.samples.numbers(ids), frontier) is not None

    def begin(self, batch: Any, ids: Sequence[int], frontier: int, device: torch.device, *, unread: bool) -> None:
        """Begin a step: pass over the prefix if its outputs are there, and keep those that are not.

        Args:
            batch: The batch.
            ids: Its samples.
            frontier: The position of the lowest trained block.
            device: The module's device.
            unread: Whether the batch was made without reading data.

        Raises:
            CannotCacheError: If the samples are not what they were, with what to change.
        """
        if not self._lines:
            return
        numbers = self.samples.numbers(ids)
        samples = Samples.of_mask(numbers, mask_of(batch))
        serving = self._serving(numbers, frontier)
        position = -1
        if serving is not None:
            position = self._order[serving.cut.block]
            serving.cut.check_again()
            if samples.lengths not in (None, serving.store.lengths(numbers)):
                raise another_sample(self.samples.kind)
            read = self._read_ahead.get(serving.store, samples)
            kept = [tensor.to(device, non_blocking=True) for tensor in read]
            self._passes.append(ReplayingPass(serving.cut, samples, kept, self._same))
        for block, line in self._lines.items():
            if position < self._order[block] <= frontier and not self.full and not line.store.holds(numbers):
                self._passes.append(CapturingPass(line.cut, samples, self._same))
        if self._inputs is not None and not unread:
            self._inputs.check(batch, samples, self._same)
        is_new = self._inputs is not None and not self._inputs.has(numbers)
        self._step = self._inputs.taken(batch) if self._inputs is not None and is_new else batch, samples
        for one in self._passes:
            one.attach()
        if serving is not None and (upcoming := self.samples.loader.upcoming) is not None:
            self._read_ahead.begin(serving.store, self.samples.numbers(upcoming), samples)

    def run(self, step: Callable[[], Any]) -> Any:
        """Run the step that was begun, perhaps once more because an optimizer asks for it.

        Args:
            step: Runs it as ever.
        """
        return run(step, self._passes)

    def end(self) -> None:
        """End a step, and keep what it brought.

        Raises:
            CannotCacheError: If it cannot be kept, with what to change.
            StorageFullError: If there is no room.
        """
        passes, step = self.stop(), self._step
        self._step = None
        if any(isinstance(one, CapturingPass) for one in passes):
            self._read_ahead.stop()  # which must not read where something is written anew
        for one in passes:
            if isinstance(one, ReplayingPass) and one.refusal is not None:
                self.close()
                raise one.refusal
        for one in passes:
            if isinstance(one, CapturingPass) and step is not None:
                try:
                    self._lines[one.cut.block].keep(one, step[1])
                except CannotCacheError:
                    self.drop(one.cut.block)
                    raise
        if passes and step is not None and self._inputs is not None and not self._inputs.has(step[1].ids):
            self._inputs.see(*step)
            self._inputs.put(*step)

    def stop(self) -> list[PrefixPass]:
        """Take all hooks away, and return what they were of."""
        passes, self._passes = self._passes, []
        for one in passes:
            one.detach()
        return passes

    def drop(self, block: str) -> None:
        """Forget what was kept below a block."""
        self._read_ahead.stop()
        if (line := self._lines.pop(block, None)) is not None:
            self._folder.close(line.store)

    def drop_above(self, frontier: int) -> None:
        """Forget what was kept above blocks that are trained now."""
        for block in [block for block in self._lines if self._order[block] > frontier]:
            self.drop(block)
        self.considered = {block for block in self.considered if self._order[block] <= frontier}

    def close(self) -> None:
        """Forget everything."""
        self.stop()
        self._read_ahead.close()
        for block in list(self._lines):
            self.drop(block)
        if self._inputs is not None:
            self._folder.close_beside(self._inputs.store)
        self._inputs = None
        self._same = SameSamples()

    @property
    def share_held(self) -> float | None:
        """The share of samples that is kept at the highest line; None where none is."""
        if not self._lines:
            return None
        store = self._lines[max(self._lines, key=self._order.__getitem__)].store
        return store.share_held(self.samples.all_numbers)

    def _serving(self, numbers: Sequence[int], frontier: int) -> KeptLine | None:
        """Return the highest line up to the frontier at which some samples are kept."""
        lines = self._lines.values()
        able = [line for line in lines if self._order[line.cut.block] <= frontier and line.store.holds(numbers)]
        return max(able, key=lambda line: self._order[line.cut.block], default=None)

    def _inputs_of(self, batch: Any, samples: Samples) -> BatchInputs | None:
        if self._inputs is not None or not self._unread:
            return self._inputs
        self._num_inputs += 1  # what others read is never written anew
        try:
            return BatchInputs(
                batch,
                samples,
                self._unread,
                self.samples.num_numbers,
                *self._folder.beside(f"{self.name}-inputs-{self._num_inputs}"),
            )
        except CannotCacheError:
            return None  # batches are then read as ever


def _still_true(
    loader: IdentifiedBatches,
    cut: PrefixCut,
    step: Step,
    move: Callable[[Any], Any],
    num_samples: int,
    store: SampleStore,
) -> bool:
    """Tell whether what a store of an earlier fit holds of some samples is what the prefix gives now."""
    numbers = store.some_held(num_samples)
    return holds_the_same(store, cut, step, lambda: move(loader.read_whole(numbers)), numbers)
