"""FrozenPrefixCache: run the frozen blocks once for each sample, and begin at the lowest trained one ever after."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import gettempdir
from typing import Any
from uuid import uuid4

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import CombinedLoader, rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_ft_callbacks.batch_inputs import mask_of
from lightning_ft_callbacks.block_callback import BlockCallback
from lightning_ft_callbacks.blocks import BlockSpec
from lightning_ft_callbacks.identified_batches import IdentifiedLoaders, Source, why_not_identified
from lightning_ft_callbacks.kept_caches import StoreFolder, digest
from lightning_ft_callbacks.prefix_cut import PrefixCut
from lightning_ft_callbacks.prefix_lines import PrefixWeights, lines_worth_keeping
from lightning_ft_callbacks.prefix_part import PrefixPart
from lightning_ft_callbacks.sample_shapes import CannotCacheError, Samples
from lightning_ft_callbacks.storage import Budget, StorageFullError, free_memory
from lightning_ft_callbacks.watched_step import WatchedStep

DTYPES = {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}


class FrozenPrefixCache(BlockCallback):
    """Keep what the frozen lower blocks give for each sample, so that they run once and not in every epoch.

    In the first pass over the data with some blocks frozen, what the lowest trained block reads is kept; from then on
    training and validation begin there. With room to spare, what the coming phases of GradualUnfreezing will need is
    kept in the same pass. Results stay what they are without it, within the tolerance of floating-point sums: on a
    batch of each phase a step that begins at the kept values is compared with a whole one before any is used.

    A module that says in an attribute ``prefix_inputs`` which entries of its batches (dictionaries of tensors) only
    the backbone reads, as FineTuner does, is spared the reading and decoding of its data too.

    Args:
        directory: Where files go if the memory is too small; None for the run's folder.
        max_bytes: Memory to use [byte]; None for half of what is free.
        dtype: ``"bf16"`` or ``"fp16"`` to keep numbers in half of the room; None for their own type.
        views: How many augmented views of each image are kept; epoch ``e`` trains on view ``e`` modulo ``views``.
        keep: Whether files are kept in ``directory`` for later fits with the same weights, data and precision.
        blocks: The blocks, as ``BlockMap.of`` takes them; None finds them.

    Raises:
        ValueError: If an option is out of range; and before the first step if the prefix cannot be kept: what it
            gives is random, or its samples have no numbers, with what to change.

    Source: Liu et al. 2021, AutoFreeze, arXiv:2102.01386, section 4.
    """

    keeps_prefixes = True  # which the plan asks for

    def __init__(
        self,
        *,
        directory: str | None = None,
        max_bytes: int | None = None,
        dtype: str | None = None,
        views: int = 1,
        keep: bool = False,
        blocks: BlockSpec | None = None,
    ) -> None:
        super().__init__(blocks)
        if max_bytes is not None and max_bytes < 0:
            raise ValueError(f"expected max_bytes to be at least 0, but got {max_bytes}")
        if dtype not in DTYPES:
            raise ValueError(f"expected dtype to be 'bf16', 'fp16' or None, but got {dtype!r}")
        if views < 1:
            raise ValueError(f"expected views to be at least 1, but got {views}")
        if keep and directory is None:
            raise ValueError("keep=True needs a directory to keep files in")
        self.directory = directory
        self.max_bytes = max_bytes
        self.dtype = dtype
        self.views = views
        self.keep = keep
        self._parts: dict[tuple[str, int], PrefixPart | None] = {}
        self._folder: StoreFolder | None = None
        self._step: _Step | None = None
        self._trainer: Trainer | None = None
        self._parameters: list[list[torch.nn.Parameter]] = []
        self._frontier = 0
        self._weights: PrefixWeights | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have the fit's loaders tell their samples, from the first one on."""
        if stage != "fit":
            return
        self._trainer = trainer
        hooks = ("on_before_batch_transfer", "on_after_batch_transfer")
        owners = [owner for owner in (pl_module, getattr(trainer, "datamodule", None)) if owner is not None]
        changed = any(is_overridden(hook, owner) for hook in hooks for owner in owners)
        unread = bool(getattr(pl_module, "prefix_inputs", ())) and not changed
        for kind, source in _sources(trainer):
            given = type(source).dataloader
            mode = "max_size_cycle" if kind == "train" else "sequential"

            def identified(source: Any = source, given: Any = given, kind: str = kind, mode: Any = mode) -> Any:
                loaders = given(source)
                parts = (loaders.iterables, loaders._mode) if isinstance(loaders, CombinedLoader) else (loaders, mode)
                source_of_known = _Kept(self, kind) if unread else None
                return IdentifiedLoaders(*parts, source_of_known, self.views if kind == "train" else 1)

            source.__dict__["dataloader"] = identified

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the blocks, and a place for files.

        Raises:
            ValueError: If the strategy shards the module, or it is compiled.
        """
        super().on_fit_start(trainer, pl_module)
        assert self.block_map is not None
        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise ValueError("FrozenPrefixCache does not work with a sharded module; use strategy='ddp'")
        if any(part._compiled_call_impl is not None or "_orig_mod" in part._modules for part in pl_module.modules()):
            raise ValueError(
                "FrozenPrefixCache does not work with torch.compile, which would compile anew without the frozen "
                "blocks; set compile: false"
            )
        self._parameters = [self.block_map.parameters(name) for name in self.block_map.names]
        self._weights = PrefixWeights(self._parameters)
        run_folder = trainer.log_dir if trainer.loggers else None  # asked on all ranks, because it is broadcast
        token = trainer.strategy.broadcast(uuid4().hex[:12])
        root = Path(self.directory or (Path(run_folder) / "prefix_cache" if run_folder else gettempdir()))
        num_ranks = max(1, trainer.num_devices if trainer.world_size > 1 else 1)
        room = free_memory() // 2 if self.max_bytes is None else self.max_bytes
        budget = Budget(room // num_ranks)
        self._folder = StoreFolder(
            root, str(token), budget, rank=trainer.local_rank, num_ranks=num_ranks, keep=self.keep
        )
        self._parts = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Say so where there is nothing to keep, and show on the progress bar how much is kept."""
        assert self.block_map is not None
        if not lines_worth_keeping(self.block_map.names, _phases_to_come(trainer), self.frontier()):
            rank_zero_info(
                "FrozenPrefixCache: no phase of more than one epoch freezes the lowest blocks; nothing is kept"
            )
        bar: Any = trainer.progress_bar_callback
        if bar is not None:
            shown = type(bar).get_metrics

            def with_share(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
                part = self._parts.get(("train", 0))
                share = None if part is None else part.share_held
                return shown(bar, trainer, module) | ({} if share in (None, 1.0) else {"cached": f"{share:.0%}"})

            bar.__dict__["get_metrics"] = with_share

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin at the lowest trained block, where its inputs are there.

        Raises:
            ValueError: If nothing can be kept in the first phase, with what to change.
        """
        self._begin(trainer, pl_module, batch, batch_idx, ("train", 0))

    def on_phase_start(self, trainer: Trainer, pl_module: LightningModule, phase: int) -> None:  # noqa: ARG002
        """Look again, where GradualUnfreezing has changed what is trained after the batch came."""
        if self._step is not None:
            self._step.part.stop()
            self._serve(trainer, pl_module, self._step)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:  # noqa: ARG002
        """Be ready for an optimizer that runs the step again."""
        if self._step is not None:
            self._step.part.begin_anew()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep what the step brought."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._end()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin at the lowest trained block in validation too."""
        if trainer.state.fn == "fit":
            self._begin(trainer, pl_module, batch, batch_idx, ("val", dataloader_idx))

    def on_validation_batch_end(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """Keep what the step brought."""
        self._end()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of everything, and remove files that are not to be kept."""
        super().on_fit_end(trainer, pl_module)
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of everything."""
        super().on_exception(trainer, pl_module, exception)
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Leave the trainer's sources of data as they were found."""
        for _, source in _sources(trainer):
            source.__dict__.pop("dataloader", None)
        if trainer.progress_bar_callback is not None:
            trainer.progress_bar_callback.__dict__.pop("get_metrics", None)

    def frontier(self) -> int:
        """Return the position of the lowest block that is trained now; the number of blocks if none is."""
        return next(
            (n for n, parameters in enumerate(self._parameters) if any(p.requires_grad for p in parameters)),
            len(self._parameters),
        )

    def part(self, kind: str, number: int) -> PrefixPart | None:
        """Return the samples of a loader; None before its first batch, or where they have no numbers."""
        return self._parts.get((kind, number))

    def _begin(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int, place: tuple[str, int]
    ) -> None:
        if not self._parameters or (part := self._known_part(trainer, module, place)) is None:
            return
        ids, unread = part.loader.handed_out.popleft()
        self._step = _Step(part, place, batch, batch_idx, ids, unread)
        self._serve(trainer, module, self._step)

    def _serve(self, trainer: Trainer, module: LightningModule, step: "_Step") -> None:
        """Attach a step's passes, with its batch read after all where the prefix must run."""
        part, frontier = step.part, self.frontier()
        self._follow(frontier)
        if step.unread and (frontier == 0 or not part.can_serve(step.ids, frontier)):
            self._read(trainer, module, step)
        if frontier in (0, len(self._parameters)):
            return
        block = self.block_map.names[frontier]  # type: ignore[union-attr]
        try:
            if block not in part.considered:
                part.considered.add(block)
                self._learn(trainer, module, step, frontier)
            part.begin(step.batch, step.ids, frontier, module.device, unread=step.unread)
        except CannotCacheError as error:
            part.close()
            if step.unread:
                self._read(trainer, module, step)
            self._refuse(trainer, step, block, str(error))

    def _learn(self, trainer: Trainer, module: LightningModule, step: "_Step", frontier: int) -> None:
        """Decide what to keep from this frontier on."""
        assert self._folder is not None
        assert self.block_map is not None
        part, names = step.part, self.block_map.names
        lines = lines_worth_keeping(names, _phases_to_come(trainer), frontier)
        if not lines:
            return
        error: CannotCacheError | None = None
        chosen: list[tuple[str, int]] = []
        try:
            if not module.automatic_optimization and step.place[0] == "train":
                raise CannotCacheError("under manual optimization a step cannot be tried; use automatic optimization")
            part.check_data(step.ids)
            loaders = len(self._loaders(trainer, step.place[0]).flattened)
            watched = WatchedStep(
                trainer, module, step.batch_idx, None if step.place[0] == "train" else (step.place[1], loaders)
            )
            samples = Samples.of_mask(part.numbers(step.ids), mask_of(step.batch))
            room = self._folder.budget.max_bytes - self._folder.budget.used
            blocks = [names[line] for line in lines]
            chosen = part.learn(watched, step.batch, samples, blocks, room, lambda cut: self._fingerprint(step, cut))
        except CannotCacheError as found:
            error = found
        # decided by all ranks together, so that none tries alone a step that waits for the others
        if not trainer.strategy.reduce_boolean_decision(error is None, all=True):
            for block, _ in chosen:
                part.drop(block)
            raise error or CannotCacheError("another process cannot")
        for block, num_bytes in chosen:
            rank_zero_info(
                f"FrozenPrefixCache: keeps what {block} reads of {part.num_samples:,} samples ({part.name}), about "
                f"{num_bytes / 1e6:,.0f} MB"
            )

    def _refuse(self, trainer: Trainer, step: "_Step", block: str, reason: str) -> None:
        """Say why nothing is kept: an error before the first step, a notice later and for validation."""
        text = f"nothing is kept below {block} for {step.part.name} data: {reason}"
        if step.place[0] == "train" and trainer.global_step == 0 and step.part.share_held is None:
            raise ValueError(f"FrozenPrefixCache: {text}")
        step.part.refusals[block] = reason
        rank_zero_warn(f"FrozenPrefixCache: {text}")

    def _end(self) -> None:
        step, self._step = self._step, None
        if step is None:
            return
        try:
            step.part.end()
        except CannotCacheError as error:
            rank_zero_warn(f"FrozenPrefixCache: no longer used for {step.part.name} data: {error}")
        except StorageFullError as error:
            step.part.full = True
            rank_zero_warn(f"FrozenPrefixCache: no more {step.part.name} samples are kept, there is no room: {error}")

    def _follow(self, frontier: int) -> None:
        """Forget what lies above a frontier that went down, and everything if somebody has changed the prefix."""
        if frontier != self._frontier:
            self._frontier = frontier
            for part in self._parts.values():
                if part is not None:
                    part.drop_above(frontier)
        if self._weights is not None and self._weights.changed(frontier):
            rank_zero_warn("FrozenPrefixCache: somebody has changed weights of frozen blocks; all is kept anew")
            for part in self._parts.values():
                if part is not None:
                    part.close()
                    part.considered.clear()

    def _read(self, trainer: Trainer, module: LightningModule, step: "_Step") -> None:
        """Read a batch after all, into the dictionary that everybody has in hand."""
        batch = trainer.precision_plugin.convert_input(step.part.loader.read(step.ids))
        batch = module._on_before_batch_transfer(batch, dataloader_idx=step.place[1])
        batch = trainer.strategy.batch_to_device(batch, dataloader_idx=step.place[1])
        step.batch.clear()
        step.batch.update(batch)
        step.unread = False

    def _known_part(self, trainer: Trainer, module: LightningModule, place: tuple[str, int]) -> PrefixPart | None:
        kind, number = place
        loaders = self._loaders(trainer, kind)
        identified = loaders.identified(number) if isinstance(loaders, IdentifiedLoaders) else None
        if place in self._parts and (known := self._parts[place]) is not None:
            if known.loader is identified:
                return known
            known.close()  # the loaders are others now
        if place in self._parts and self._parts[place] is None:
            return None
        name = {"train": "training", "val": "validation"}[kind] + (f" {number}" if number else "")
        self._parts[place] = None
        reason = why_not_identified(loaders.flattened[number])
        if kind == "train" and len(loaders.flattened) > 1:
            reason = "there are several training loaders; give one"
        if reason is not None or identified is None or self._folder is None or self.block_map is None:
            if kind == "train" and trainer.global_step == 0:
                raise ValueError(f"FrozenPrefixCache: {reason}")
            rank_zero_warn(f"FrozenPrefixCache: not used for {name} data: {reason}")
            return None
        part = PrefixPart(
            name,
            self.block_map,
            identified,
            unread=frozenset(getattr(module, "prefix_inputs", ())),
            folder=self._folder,
            dtype=DTYPES[self.dtype],
            active=lambda: self in trainer.callbacks,  # type: ignore[attr-defined] # not so in a range test
        )
        self._parts[place] = part
        return part

    def _loaders(self, trainer: Trainer, kind: str) -> Any:
        loop = trainer.fit_loop
        return loop._combined_loader if kind == "train" else loop.epoch_loop.val_loop._combined_loader

    def _fingerprint(self, step: "_Step", cut: PrefixCut) -> str | None:
        """Name what is kept at a cut: its weights, the data, and the precision; None where the data has no name."""
        if not self.keep or self._trainer is None:
            return None
        dataset: Any = step.part.loader.loader.dataset
        data = getattr(dataset, "fingerprint", None) or getattr(dataset, "_fingerprint", None)
        if data is None:
            raise CannotCacheError(
                f"{type(dataset).__name__} has no fingerprint, so nobody can tell whether a kept cache is of the same "
                "data; leave keep out, or give it an attribute fingerprint"
            )
        tensors = [part for module in cut.lower for part in [*module.parameters(), *module.buffers()]]
        precision = self._trainer.precision
        options = (cut.block, cut.crossings, str(data), str(precision), self.dtype, self.views, torch.__version__)
        return digest(*options, *tensors)

    def _release(self) -> None:
        self._step = None
        for part in self._parts.values():
            if part is not None:
                part.close()
        if self._folder is not None:
            self._folder.remove()
        self._parts, self._parameters, self._folder, self._weights = {}, [], None, None


class _Step:
    """A step that is under way."""

    def __init__(
        self, part: PrefixPart, place: tuple[str, int], batch: Any, batch_idx: int, ids: tuple[int, ...], unread: bool
    ) -> None:
        self.part = part
        self.place = place
        self.batch = batch
        self.batch_idx = batch_idx
        self.ids = ids
        self.unread = unread


class _Kept(Source):
    """Gives a cache's batches to loaders."""

    def __init__(self, cache: FrozenPrefixCache, kind: str) -> None:
        self._cache = cache
        self._kind = kind

    def has(self, loader: int, ids: tuple[int, ...]) -> bool:
        """Tell whether a batch need not be read."""
        part = self._cache.part(self._kind, loader)
        return part is not None and part.has(ids, self._cache.frontier())

    def batch(self, loader: int, ids: tuple[int, ...]) -> Any:
        """Return it."""
        part = self._cache.part(self._kind, loader)
        assert part is not None
        return part.batch(ids)


def _phases_to_come(trainer: Trainer) -> list[tuple[Sequence[str], int | None]]:
    """Return the trained blocks of this phase and later ones and their epochs, as a callback of the trainer says."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next((to_come for one in callbacks if (to_come := getattr(one, "phases_to_come", None))), [])


def _sources(trainer: Trainer) -> Iterator[tuple[str, Any]]:
    loop = trainer.fit_loop
    yield "train", loop._data_source
    yield "val", loop.epoch_loop.val_loop._data_source
