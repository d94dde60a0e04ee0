"""FitParts: the samples of each of a fit's loaders."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_ft_callbacks.blocks import BlockMap
from lightning_ft_callbacks.caching.identified_batches import IdentifiedLoaders, why_not_identified
from lightning_ft_callbacks.caching.prefix_part import PrefixPart
from lightning_ft_callbacks.caching.store_folder import StoreFolder

NAMES = {"train": "training", "val": "validation"}
Place = tuple[str, int]  # "train" or "val", and the number of the loader


class FitParts:
    """The samples of each loader, made at its first batch.

    Args:
        trainer: The trainer, at the start of a fit.
        module: Its module.
        block_map: The module's blocks.
        folder: Where stores are made.
        dtype: The type that floating-point numbers are kept in; None for their own.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        block_map: BlockMap,
        folder: StoreFolder,
        dtype: torch.dtype | None,
    ) -> None:
        self._trainer = trainer
        self._module = module
        self._block_map = block_map
        self._folder = folder
        self._dtype = dtype
        self._parts: dict[Place, PrefixPart | None] = {}

    def __iter__(self) -> Iterator[PrefixPart]:
        """Go through the samples of all loaders so far whose samples have numbers."""
        return (part for part in self._parts.values() if part is not None)

    def get(self, place: Place) -> PrefixPart | None:
        """Return the samples of a loader; None before its first batch, or where they have no numbers."""
        return self._parts.get(place)

    def of_batch(self, place: Place) -> PrefixPart | None:
        """Return the samples of a loader that has given a batch; None where they have no numbers.

        Raises:
            ValueError: If the first training samples have none, with what to change.
        """
        kind, number = place
        loaders = self.loaders(kind)
        identified = loaders.identified(number) if isinstance(loaders, IdentifiedLoaders) else None
        if place in self._parts:
            known = self._parts[place]
            if known is None:
                return None
            if identified is not None and known.samples.is_of(identified):
                known.samples.follow(identified)
                return known
            known.close()
            rank_zero_warn(
                f"FrozenPrefixCache: the {known.name} data are others than before, or more; all is kept anew. Where "
                "loaders are made anew, give them the same data set, or one with an attribute fingerprint"
            )
        name = NAMES[kind] + (f" {number}" if number else "")
        self._parts[place] = None
        reason = why_not_identified(loaders.flattened[number])
        if len(loaders.flattened) > 1 and (kind == "train" or loaders._mode != "sequential"):
            reason = f"there are several {NAMES[kind]} loaders; give one"
        if reason is not None or identified is None:
            if kind == "train" and self._trainer.global_step == 0:
                raise ValueError(f"FrozenPrefixCache: {reason}")
            rank_zero_warn(f"FrozenPrefixCache: not used for {name} data: {reason}")
            return None
        part = PrefixPart(
            name,
            self._block_map,
            identified,
            unread=frozenset(getattr(self._module, "prefix_inputs", ())),
            folder=self._folder,
            dtype=self._dtype,
        )
        self._parts[place] = part
        return part

    def loaders(self, kind: str) -> Any:
        """Return the fit's loaders for training or validation."""
        loop = self._trainer.fit_loop
        return loop._combined_loader if kind == "train" else loop.epoch_loop.val_loop._combined_loader
