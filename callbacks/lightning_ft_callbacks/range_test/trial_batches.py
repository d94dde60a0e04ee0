"""TrialBatches: a fit's training data once more, round and round, without touching the fit's own loaders."""

from collections.abc import Iterator
from copy import copy
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader


class TrialBatches:
    """Batches of a fit's training data from loaders of its own, so that the fit's keep their place and their order.

    Args:
        trainer: The trainer, in a fit.
        module: Its module.

    Raises:
        ValueError: If there is no training data, or it can be read once only.
    """

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self._trainer = trainer
        self._module = module
        trainer.fit_loop.setup_data()
        loaders = trainer.fit_loop._combined_loader
        if loaders is None or trainer.num_training_batches == 0:
            raise ValueError("there are no training batches to test learning rates on")
        mode: Any = loaders._mode
        self._loaders = CombinedLoader(loaders.iterables, mode)
        self._loaders.flattened = [_twin(loader) for loader in loaders.flattened]
        self._loaders.limits = loaders.limits
        self._batches: Iterator[Any] | None = None
        self._num_read = 0

    def next(self) -> Any:
        """Return the next batch, on the module's device; after the last the first comes again.

        Raises:
            ValueError: If the data gives no batch.
        """
        if self._num_read >= self._trainer.num_training_batches:  # the loaders do not end at their limits
            self.close()
        first = self._batches is None
        if self._batches is None:
            self._batches, self._num_read = iter(self._loaders), 0
        try:
            batch, _, _ = next(self._batches)
            self._num_read += 1
        except StopIteration:
            if first:
                raise ValueError("there are no training batches to test learning rates on") from None
            self._batches = None
            return self.next()
        batch = self._trainer.precision_plugin.convert_input(batch)
        batch = self._module._on_before_batch_transfer(batch, dataloader_idx=0)
        return self._trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    def close(self) -> None:
        """Let go of the loaders, and end their workers."""
        batches, self._batches = self._batches, None
        for iterator in getattr(getattr(batches, "_iterator", None), "iterators", ()):
            if hasattr(iterator, "_shutdown_workers"):
                iterator._shutdown_workers()
        self._loaders.reset()


def _twin(loader: Any) -> Any:
    """Return a loader over the same samples, with workers of its own.

    It draws from the fit's own sampler and generator, which are put back after the test.

    Raises:
        ValueError: If the data can be read once only.
    """
    if not isinstance(loader, DataLoader):
        if hasattr(loader, "__next__"):
            raise ValueError(
                f"the training data is a {type(loader).__name__}, which can be read once only, so a test would use it "
                "up; give a DataLoader, or anything that begins anew with each iter()"
            )
        return loader
    twin = copy(loader)
    vars(twin)["_iterator"] = None
    return twin
