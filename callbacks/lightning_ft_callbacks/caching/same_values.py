"""Whether a store holds what the prefix makes now, which neither weights nor data tell: code may have changed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_ft_callbacks.caching.batch_inputs import mask_of
from lightning_ft_callbacks.caching.capturing_pass import CapturingPass
from lightning_ft_callbacks.caching.closeness import close, tolerance_of
from lightning_ft_callbacks.caching.prefix_cut import PrefixCut
from lightning_ft_callbacks.caching.prefix_watch import Step
from lightning_ft_callbacks.caching.sample_shapes import CannotCacheError, Samples
from lightning_ft_callbacks.caching.sample_store import SampleStore
from lightning_ft_callbacks.caching.storage import Budget, Storage

Read = Callable[[], Any]


def holds_the_same(store: SampleStore, cut: PrefixCut, step: Step, read: Read, numbers: Sequence[int]) -> bool:
    """Run a step on some samples that a store holds, and tell whether what crosses the cut is what it holds of them.

    Args:
        store: The store, which holds something.
        cut: The cut that it is of.
        step: Runs the module's step on a batch without a trace.
        read: Returns their batch, as the step gets it.
        numbers: The samples' numbers in the store.
    """
    try:
        with isolate_rng():
            batch = read()
        samples = Samples.of_mask(tuple(numbers), mask_of(batch))
        capturing = CapturingPass(cut, samples)
        step(batch, [capturing])
        if capturing.refusal is not None or samples.lengths not in (None, store.lengths(numbers)):
            return False
        fresh = _stored(store, samples, [capturing.captured[place] for place in cut.crossings])
    except (CannotCacheError, KeyError, RuntimeError):  # another shape, or another way through the module
        return False
    pairs = zip(store.get(samples), fresh.get(samples), strict=True)
    return all(close(kept, now, tolerance_of([kept])) for kept, now in pairs)


def _stored(like: SampleStore, samples: Samples, tensors: Sequence[Tensor]) -> SampleStore:
    """Return tensors as another store gives them back: in its types, and with zeros for padding."""
    memory = Storage(Budget(2**62), Path(), lambda: None)
    store = SampleStore(max(samples.ids) + 1, like.shapes, memory, dtype=like.dtype)
    store.put(samples, tensors)
    return store
