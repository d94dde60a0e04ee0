"""FrozenPrefixCache: run the frozen blocks once for each sample, and begin at the lowest trained one ever after."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import Any
from uuid import uuid4

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import CombinedLoader, rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from lightning_ft_callbacks.block_callback import BlockCallback
from lightning_ft_callbacks.blocks import BlockSpec
from lightning_ft_callbacks.caching.augmented_views import fingerprint_of, fit_seed
from lightning_ft_callbacks.caching.cached_fit import CachedFit
from lightning_ft_callbacks.caching.identified_batches import IdentifiedBatches, IdentifiedLoaders, Source
from lightning_ft_callbacks.caching.kept_caches import described_modules, digest
from lightning_ft_callbacks.caching.prefix_cut import PrefixCut
from lightning_ft_callbacks.caching.sample_shapes import CannotCacheError
from lightning_ft_callbacks.caching.storage import Budget, free_memory
from lightning_ft_callbacks.caching.store_folder import StoreFolder
from lightning_ft_callbacks.given_values import check_count, check_switch

FOLDER = "prefix_cache"  # in a run's folder
DTYPES = {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}


class FrozenPrefixCache(BlockCallback):
    """Keep what the frozen lower blocks give for each sample, so that they run once and not in every epoch.

    In the first pass over the data with some blocks frozen, what the lowest trained block reads is kept; from then on
    training and validation begin there. With room to spare, what the coming phases of GradualUnfreezing will need is
    kept in the same pass. Results stay what they are without it, within the tolerance of floating-point sums: on a
    batch of each phase a step that begins at the kept values is compared with a whole one before any is used.

    A module that says in an attribute ``prefix_inputs`` which entries of its batches (mappings of tensors) only
    the backbone reads, as FineTuner does, is spared the reading and decoding of its data too.

    Args:
        directory: Where files go if the memory is too small; None for the run's folder.
        max_bytes: Memory to use [byte]; None for half of what is free.
        dtype: ``"bf16"`` or ``"fp16"`` to keep numbers in half of the room; None for their own type.
        views: How many augmented views of each sample are kept; epoch ``e`` trains on view ``e`` modulo ``views``. The
            data set draws from the generators of Python, NumPy and torch, which are seeded for each sample and view,
            or augments by an attribute ``epoch``, a tensor.
        keep: Whether files are kept in ``directory`` for later fits with the same weights, data and precision.
        blocks: The blocks, as ``BlockMap.of`` takes them; None finds them.

    Raises:
        ValueError: If an option is out of range; and before the first step if the prefix cannot be kept: what it
            gives is random, or its samples have no numbers, with what to change.

    Source: Liu et al. 2021, AutoFreeze, arXiv:2102.01386, section 4.
    """

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
        if max_bytes is not None:
            check_count("max_bytes", max_bytes)
        if dtype not in DTYPES:
            raise ValueError(f"expected dtype to be 'bf16', 'fp16' or None, but got {dtype!r}")
        check_count("views", views, at_least=1)
        check_switch("keep", keep)
        if keep and directory is None:
            raise ValueError("keep=True needs a directory to keep files in")
        self.directory = directory
        self.max_bytes = max_bytes
        self.dtype = dtype
        self.views = views
        self.keep = keep
        self._fit: CachedFit | None = None

    def planned_copies(self, trainer: Trainer) -> float:
        """Return how much is kept of a training sample, in units of what a step computes of it; the plan asks for it.

        Args:
            trainer: The trainer.
        """
        halved = self.dtype is not None and str(trainer.precision).startswith("32")
        return self.views * (0.5 if halved else 1.0)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have the fit's loaders tell their samples, from the first one on."""
        if stage != "fit":
            return
        hooks = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
        owners = [owner for owner in (pl_module, getattr(trainer, "datamodule", None)) if owner is not None]
        changed = any(is_overridden(hook, owner) for hook in hooks for owner in owners)
        unread = bool(getattr(pl_module, "prefix_inputs", ())) and not changed
        for kind, source in _sources(trainer):
            given = type(source).dataloader
            mode = "max_size_cycle" if kind == "train" else "sequential"

            def identified(source: Any = source, given: Any = given, kind: str = kind, mode: Any = mode) -> Any:
                loaders = given(source)
                parts = (loaders.iterables, loaders._mode) if isinstance(loaders, CombinedLoader) else (loaders, mode)
                source_of_known = _Kept(lambda: self._fit, kind) if unread else None
                views = self.views if kind == "train" else 1
                return IdentifiedLoaders(*parts, source_of_known, views, lambda: trainer.current_epoch)

            source.__dict__["dataloader"] = identified

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the blocks, and a place for files.

        Raises:
            ValueError: If the strategy shards the module, or it is compiled or scripted.
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
        if is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
            raise ValueError(
                f"FrozenPrefixCache: {type(pl_module).__name__}.training_step takes dataloader_iter, so nobody but it "
                "knows its batches; let it take a batch"
            )
        if any(isinstance(part, torch.jit.ScriptModule) for part in pl_module.modules()):
            raise ValueError("FrozenPrefixCache does not work with TorchScript, whose modules nobody can look into")
        run_folder = trainer.log_dir if trainer.loggers else None  # asked on all ranks, because it is broadcast
        token = trainer.strategy.broadcast(uuid4().hex[:12])
        if trainer.num_nodes > 1:  # which may share a disk, but no memory
            token = f"{token}-{trainer.node_rank}"
        of_run = Path(run_folder) / FOLDER if run_folder else Path(gettempdir())
        root = of_run if self.directory is None else Path(self.directory)
        num_ranks = max(1, trainer.num_devices if trainer.world_size > 1 else 1)
        room = free_memory() // 2 if self.max_bytes is None else self.max_bytes
        budget = Budget(room // num_ranks)
        folder = StoreFolder(
            root,
            str(token),
            budget,
            rank=trainer.local_rank,
            num_ranks=num_ranks,
            keep=self.keep,
            left_behind=Path(run_folder).parent.glob(f"*/{FOLDER}") if run_folder else (),  # by the runs before
        )
        self._fit = CachedFit(
            trainer,
            pl_module,
            self.block_map,
            folder,
            dtype=DTYPES[self.dtype],
            fingerprint=partial(self._fingerprint, str(trainer.precision)),
            active=lambda: self in trainer.callbacks,  # type: ignore[attr-defined] # not so in a range test
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Say so where there is nothing to keep, and show on the progress bar how much is kept."""
        assert self._fit is not None
        if not self._fit.worthwhile:
            rank_zero_info(
                "FrozenPrefixCache: no phase of more than one epoch freezes the lowest blocks; nothing is kept"
            )
        bar: Any = trainer.progress_bar_callback
        if bar is not None:
            shown = type(bar).get_metrics

            def with_share(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
                part = None if self._fit is None else self._fit.part(("train", 0))
                share = None if part is None else part.share_held
                return shown(bar, trainer, module) | ({} if share in (None, 1.0) else {"cached": f"{share:.0%}"})

            bar.__dict__["get_metrics"] = with_share

    def on_train_batch_start(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Begin at the lowest trained block, where its inputs are there.

        Raises:
            ValueError: If nothing can be kept in the first phase, with what to change.
        """
        if self._fit is not None:
            self._fit.begin(("train", 0), batch, batch_idx)

    def on_phase_start(self, trainer: Trainer, pl_module: LightningModule, phase: int) -> None:  # noqa: ARG002
        """Look again, where GradualUnfreezing has changed what is trained after the batch came."""
        if self._fit is not None:
            self._fit.change_phase()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep what the step brought."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._fit is not None:
            self._fit.end()

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Begin at the lowest trained block in validation too."""
        if trainer.state.fn == "fit" and self._fit is not None:
            self._fit.begin(("val", dataloader_idx), batch, batch_idx)

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
        if self._fit is not None:
            self._fit.end()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of everything, and remove files that are not to be kept."""
        super().on_fit_end(trainer, pl_module)
        self._release(together=True)

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

    def _fingerprint(self, precision: str, dataset: Any, views: int, cut: PrefixCut) -> str | None:
        """Name what is kept at a cut: its weights, the data, and the precision; None where nothing stays."""
        if not self.keep:
            return None
        data = fingerprint_of(dataset)
        if data is None:
            raise CannotCacheError(
                f"{type(dataset).__name__} has no fingerprint, so nobody can tell whether a kept cache is of the same "
                "data; leave keep out, or give it an attribute fingerprint"
            )
        tensors = [part for module in cut.lower for part in [*module.parameters(), *module.buffers()]]
        augmented = (views, fit_seed()) if views > 1 else None
        options = (cut.block, cut.crossings, data, precision, self.dtype, augmented, torch.__version__)
        return digest(*options, described_modules(cut.lower), *tensors)

    def _release(self, *, together: bool = False) -> None:
        if self._fit is not None:
            self._fit.close(together=together)
        self._fit = None


class _Kept(Source):
    """Gives a cache's batches to loaders."""

    def __init__(self, fit: Callable[[], CachedFit | None], kind: str) -> None:
        self._fit = fit
        self._kind = kind

    def has(self, batches: IdentifiedBatches, ids: tuple[int, ...]) -> bool:
        """Tell whether a batch need not be read."""
        fit = self._fit()
        return fit is not None and fit.has((self._kind, batches.number), batches, ids)

    def batch(self, batches: IdentifiedBatches, ids: tuple[int, ...]) -> Any:
        """Return it."""
        fit = self._fit()
        assert fit is not None
        return fit.batch((self._kind, batches.number), ids)


def _sources(trainer: Trainer) -> Iterator[tuple[str, Any]]:
    loop = trainer.fit_loop
    yield "train", loop._data_source
    yield "val", loop.epoch_loop.val_loop._data_source
