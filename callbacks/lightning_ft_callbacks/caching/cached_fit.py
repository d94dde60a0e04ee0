"""CachedFit: the samples of one fit's loaders, what is kept of each, and where a step begins for that."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_ft_callbacks.blocks import BlockMap
from lightning_ft_callbacks.caching.batch_inputs import mask_of
from lightning_ft_callbacks.caching.fit_parts import FitParts, Place
from lightning_ft_callbacks.caching.identified_batches import IdentifiedBatches
from lightning_ft_callbacks.caching.prefix_cut import PrefixCut
from lightning_ft_callbacks.caching.prefix_guard import PrefixWeights
from lightning_ft_callbacks.caching.prefix_lines import lines_worth_keeping
from lightning_ft_callbacks.caching.prefix_part import PrefixPart
from lightning_ft_callbacks.caching.replaced_step import ReplacedStep
from lightning_ft_callbacks.caching.sample_shapes import CannotCacheError, Samples
from lightning_ft_callbacks.caching.storage import StorageFullError
from lightning_ft_callbacks.caching.store_folder import StoreFolder
from lightning_ft_callbacks.caching.watched_step import WatchedStep

STEPS = {"train": "training_step", "val": "validation_step"}
Result = TypeVar("Result")
Fingerprint = Callable[[Any, int, PrefixCut], str | None]


class CachedFit:
    """Has each step of a fit begin at the lowest trained block, where that block's inputs are kept.

    Args:
        trainer: The trainer, at the start of a fit.
        module: Its module.
        block_map: The module's blocks.
        folder: Where stores are made.
        dtype: The type that floating-point numbers are kept in; None for their own.
        fingerprint: Names what is kept of a data set, in some views, at a cut, so that a later fit finds it; None
            where none shall.
        active: Asked whether a run of the module is one of the fit's own.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        block_map: BlockMap,
        folder: StoreFolder,
        *,
        dtype: torch.dtype | None,
        fingerprint: Fingerprint,
        active: Callable[[], bool],
    ) -> None:
        self._trainer = trainer
        self._module = module
        self._block_map = block_map
        self._folder = folder
        self._fingerprint = fingerprint
        self._active = active
        self._parameters = [block_map.parameters(name) for name in block_map.names]
        self._weights = PrefixWeights(block_map)
        self._parts = FitParts(trainer, module, block_map, folder, dtype)
        self._frontier = 0
        self._step: _Step | None = None
        self._replaced = ReplacedStep(module)

    @property
    def frontier(self) -> int:
        """The position of the lowest block that is trained now; the number of blocks if none is."""
        return next(
            (n for n, parameters in enumerate(self._parameters) if any(p.requires_grad for p in parameters)),
            len(self._parameters),
        )

    @property
    def worthwhile(self) -> bool:
        """Whether a phase to come, or this one, freezes the lowest blocks for more than one epoch."""
        return bool(lines_worth_keeping(self._block_map.names, self._phases_to_come, self.frontier))

    def part(self, place: Place) -> PrefixPart | None:
        """Return the samples of a loader; None before its first batch, or where they have no numbers."""
        return self._parts.get(place)

    def has(self, place: Place, loader: IdentifiedBatches, ids: tuple[int, ...]) -> bool:
        """Tell whether a loader's batch of some samples need not be read."""
        part = self.part(place)
        return part is not None and part.samples.is_of(loader) and part.has(ids, self.frontier)

    def batch(self, place: Place, ids: tuple[int, ...]) -> Any:
        """Return a batch that need not be read."""
        part = self.part(place)
        assert part is not None
        return part.batch(ids)

    def begin(self, place: Place, batch: Any, batch_idx: int) -> None:
        """Begin a step.

        Args:
            place: The loader.
            batch: The batch that it gave; read after all, in place, where the prefix must run.
            batch_idx: The batch's number.

        Raises:
            ValueError: If nothing can be kept in the first phase, with what to change.
        """
        self._leave()  # a step that the module has passed over
        if (part := self._parts.of_batch(place)) is not None:
            ids, unread = part.samples.loader.handed_out.popleft()
            self._step = _Step(part, place, batch, batch_idx, ids, unread)
            self._serve(self._step)
            self._replaced.begin(STEPS[place[0]], self._run)

    def change_phase(self) -> None:
        """Look again where the step that was begun can begin, now that other blocks are trained."""
        if self._step is not None:
            self._step.part.stop()
            self._serve(self._step)

    def end(self) -> None:
        """End the step, and keep what it brought."""
        step, self._step = self._step, None
        self._replaced.end()
        if step is None:
            return
        try:
            step.part.end()
        except CannotCacheError as error:
            self._tell(f"no longer used for {step.part.name} data: {error}")
        except StorageFullError as error:
            step.part.full = True
            self._tell(f"no more {step.part.name} samples are kept, there is no room: {error}")

    def close(self, *, together: bool = False) -> None:
        """Let go of everything, and remove files that are not to be kept.

        Args:
            together: Whether all processes do so, which then wait for one another before files are removed.
        """
        self._leave()
        for part in self._parts:
            part.close()
        if together:
            self._trainer.strategy.barrier("FrozenPrefixCache")
        self._folder.remove()

    def _tell(self, text: str) -> None:
        """Warn on the rank that it happens to, even if that is not the first."""
        rank = f" on rank {self._trainer.global_rank}" if self._trainer.world_size > 1 else ""
        warnings.warn(f"FrozenPrefixCache{rank}: {text}", stacklevel=2)

    def _leave(self) -> None:
        """Leave a step that was begun, whether or not it ran."""
        if self._step is not None:
            self._step.part.stop()
            self._step = None
        self._replaced.end()

    def _run(self, step: Callable[[], Any]) -> Any:
        """Run a step of the module on the batch that was begun, with the frozen blocks postponed."""
        return step() if self._step is None or not self._active() else self._step.part.run(step)

    def _serve(self, step: "_Step") -> None:
        """Attach a step's passes, with its batch read after all where the prefix must run."""
        part, frontier = step.part, self.frontier
        self._follow(frontier)
        if step.unread and (frontier == 0 or not part.can_serve(step.ids, frontier)):
            self._read(step)
        if frontier in (0, len(self._parameters)):
            return
        block = self._block_map.names[frontier]
        try:
            if block not in part.considered:
                part.considered.add(block)
                self._learn(step, frontier)
            else:
                self._look_again(step, frontier)
            part.begin(step.batch, step.ids, frontier, self._module.device, unread=step.unread)
        except CannotCacheError as error:
            part.close()
            if step.unread:
                self._read(step)
            self._refuse(step, block, str(error))

    def _learn(self, step: "_Step", frontier: int) -> None:
        """Decide what to keep from this frontier on."""
        part, names = step.part, self._block_map.names
        lines = lines_worth_keeping(names, self._phases_to_come, frontier)
        if not lines:
            return
        blocks = [names[line] for line in lines]
        samples, error = _tried(lambda: self._samples(step))
        # all ranks reckon with the same numbers, so that they choose the same lines and the same place for each
        room = -self._largest(-self._folder.room)
        num_tokens = self._largest(0 if samples is None or samples.mean_length is None else samples.mean_length) or None
        chosen: list[tuple[str, int]] | None = None
        if samples is not None:
            fingerprint = partial(self._fingerprint, part.samples.whole, part.samples.loader.views)
            watched, move = self._watched(step), partial(self._moved, step.place)
            chosen, error = _tried(
                lambda: part.learn(watched, step.batch, samples, blocks, room, num_tokens, fingerprint, move)
            )
        # decided by all ranks together, so that none tries alone a step that waits for the others
        decide = self._trainer.strategy.reduce_boolean_decision
        if not decide(error is None, all=True):
            for block, _ in chosen or ():
                part.drop(block)
            if decide(isinstance(error, CannotCacheError), all=False):
                raise error if isinstance(error, CannotCacheError) else CannotCacheError("another process cannot")
            rank_zero_warn(
                f"FrozenPrefixCache: nothing is kept below {blocks[0]} for {part.name} data, there is no room: "
                f"{error or 'another process has none'}"
            )
            return
        part.asks = decide(part.has_unproven, all=False)
        for block, num_bytes in chosen or ():
            rank_zero_info(
                f"FrozenPrefixCache: keeps what {block} reads of {len(part.samples):,} samples ({part.name}), about "
                f"{num_bytes / 1e6:,.0f} MB"
            )
            if num_running := part.num_running(block):
                rank_zero_info(
                    f"FrozenPrefixCache: below {block}, {num_running} calls of frozen modules go on running in each "
                    f"{part.name} step: after a trained block has run, or what they give cannot be kept"
                )

    def _samples(self, step: "_Step") -> Samples:
        """Return the samples of a step.

        Raises:
            CannotCacheError: If nothing can be kept of them, with what to change.
        """
        if step.place[0] == "train" and not self._module.automatic_optimization:
            raise CannotCacheError("under manual optimization a step cannot be tried; use automatic optimization")
        step.part.samples.check(step.ids)
        return Samples.of_mask(step.part.samples.numbers(step.ids), mask_of(step.batch))

    def _largest(self, number: int) -> int:
        """Return the largest that any rank gives."""
        found: Any = torch.tensor(number, device=self._module.device)
        return int(self._trainer.strategy.reduce(found, reduce_op="max"))

    def _look_again(self, step: "_Step", frontier: int) -> None:
        """Make sure once an epoch that the prefix still gives what is kept, and once that padding is not read.

        Raises:
            CannotCacheError: If it does not, or is, with what to change.
        """
        part, device = step.part, self._module.device
        # decided by all ranks together, so that none runs alone a step that waits for the others
        decide = self._trainer.strategy.reduce_boolean_decision
        if step.batch_idx == 0:
            part.asks = decide(part.has_unproven, all=False)
            if decide(part.can_serve(step.ids, frontier), all=True):
                move = partial(self._moved, step.place)
                reason: CannotCacheError | None = None
                try:
                    same = part.gives_the_same(self._watched(step), step.ids, frontier, move)
                except CannotCacheError as error:
                    same, reason = False, error
                if not decide(same, all=True):
                    raise reason or CannotCacheError(
                        "what the frozen blocks give of a sample is no longer what was kept of it, although their "
                        "weights are the same: random augmentation, or something else that changes from epoch to epoch"
                    )
        if part.asks and decide(part.is_unproven(step.batch, step.ids, frontier), all=False):
            part.prove(self._watched(step), step.batch, step.ids, frontier, device)

    def _watched(self, step: "_Step") -> WatchedStep:
        kind, number = step.place
        loaders = len(self._parts.loaders(kind).flattened)
        return WatchedStep(self._trainer, self._module, step.batch_idx, None if kind == "train" else (number, loaders))

    def _refuse(self, step: "_Step", block: str, reason: str) -> None:
        """Say why nothing is kept: an error before the first step, a notice later and for validation."""
        text = f"nothing is kept below {block} for {step.part.name} data: {reason}"
        if step.place[0] == "train" and self._trainer.global_step == 0 and step.part.share_held is None:
            raise ValueError(f"FrozenPrefixCache: {text}")
        step.part.refusals[block] = reason
        rank_zero_warn(f"FrozenPrefixCache: {text}")

    def _follow(self, frontier: int) -> None:
        """Forget what lies above a frontier that went down, and everything if somebody has changed the prefix."""
        if frontier != self._frontier:
            self._frontier = frontier
            for part in self._parts:
                part.drop_above(frontier)
        if self._weights.changed(frontier, self._trainer.current_epoch):
            rank_zero_warn("FrozenPrefixCache: somebody has changed weights of frozen blocks; all is kept anew")
            for part in self._parts:
                part.close()
                part.considered.clear()

    def _read(self, step: "_Step") -> None:
        """Read a batch after all, into the dictionary that everybody has in hand."""
        batch = self._moved(step.place, step.part.samples.loader.read(step.ids))
        step.batch.clear()
        step.batch.update(batch)
        step.unread = False

    def _moved(self, place: Place, batch: Any) -> Any:
        """Return what the step gets of a batch that was read."""
        batch = self._trainer.precision_plugin.convert_input(batch)
        batch = self._module._on_before_batch_transfer(batch, dataloader_idx=place[1])
        return self._trainer.strategy.batch_to_device(batch, dataloader_idx=place[1])

    @property
    def _phases_to_come(self) -> list[tuple[Sequence[str], int | None]]:
        """The trained blocks of this phase and later ones and their epochs, as a callback of the trainer says."""
        callbacks: list[Any] = self._trainer.callbacks  # type: ignore[attr-defined]
        return next((to_come for one in callbacks if (to_come := getattr(one, "phases_to_come", None))), [])


@dataclass(slots=True, eq=False)
class _Step:
    """A step that is under way."""

    part: PrefixPart
    place: Place
    batch: Any
    batch_idx: int
    ids: tuple[int, ...]
    unread: bool


def _tried(action: Callable[[], Result]) -> tuple[Result | None, CannotCacheError | StorageFullError | None]:
    """Return what an action gives, and why it cannot; a foreign step may do what it cannot do without gradients."""
    try:
        return action(), None
    except (CannotCacheError, StorageFullError) as error:
        return None, error
    except Exception as found:
        error = CannotCacheError(f"a trial of the step, without gradients, raised {type(found).__name__}: {found}")
        error.__cause__ = found
        return None, error
