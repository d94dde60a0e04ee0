"""KeptLine: what is kept at one line, and how it is made sure that this is still what the frozen blocks give."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lightning_ft_callbacks.caching.capturing_pass import CapturingPass
from lightning_ft_callbacks.caching.closeness import close, tolerance_of
from lightning_ft_callbacks.caching.prefix_cut import PrefixCut
from lightning_ft_callbacks.caching.prefix_watch import Step
from lightning_ft_callbacks.caching.replaying_pass import ReplayingPass
from lightning_ft_callbacks.caching.same_values import holds_the_same
from lightning_ft_callbacks.caching.sample_shapes import CannotCacheError, Samples
from lightning_ft_callbacks.caching.sample_store import SampleStore
from lightning_ft_callbacks.caching.trees import leaves_of


@dataclass(slots=True, eq=False)
class KeptLine:
    """A line, and what is kept of the samples there.

    Attributes:
        cut: The line.
        store: What is kept.
        num_compared: Samples whose prefix is run once more to compare it with what is kept.
        is_proven: Whether it was learnt on a batch with padding; otherwise nobody knows whether that would be read.
    """

    cut: PrefixCut
    store: SampleStore
    num_compared: int
    is_proven: bool

    def keep(self, captured: CapturingPass, samples: Samples) -> None:
        """Keep what a step captured, unless it did not run to its end.

        Args:
            captured: The pass of the step.
            samples: Its samples.

        Raises:
            CannotCacheError: If it cannot be kept, with what to change.
            StorageFullError: If there is no room.
        """
        if captured.refusal is not None:
            raise captured.refusal
        if len(captured.captured) < len(self.cut.crossings):
            return
        tensors = [captured.captured[place] for place in self.cut.crossings]
        for shape, tensor in zip(self.cut.shapes, tensors, strict=True):
            shape.see(tensor, samples, f"what is read above {self.cut.block}")
        self.store.put(samples, tensors)

    def gives_the_same(self, step: Step, read: Callable[[], Any], numbers: Sequence[int]) -> bool:
        """Run the prefix of a few samples once more, and tell whether it still gives what is kept of them.

        Args:
            step: Runs the module's step on a batch without a trace.
            read: Returns their batch, as the step gets it.
            numbers: The samples' numbers in the store.

        Raises:
            CannotCacheError: If somebody has replaced a module, or given one a hook.
        """
        self.cut.check_again()
        return holds_the_same(self.store, self.cut, step, read, numbers)

    def prove(self, step: Step, batch: Any, samples: Samples, device: torch.device) -> None:
        """Run a step from what is kept, and compare it with a whole one.

        Args:
            step: Runs the module's step on a batch without a trace.
            batch: The batch.
            samples: Its samples.
            device: The module's device.

        Raises:
            CannotCacheError: If it does something else.
        """
        truth = step(batch, [])
        kept = [tensor.to(device) for tensor in self.store.get(samples)]
        found = step(batch, [ReplayingPass(self.cut, samples, kept)])
        if not close(truth, found, tolerance_of([*leaves_of(truth), *kept], self.store.dtype)):
            raise CannotCacheError(
                f"with what is kept below {self.cut.block} the step does something else where texts are padded: it "
                "reads what stands at padding, where zeros come back; leave that out by the attention_mask"
            )
        self.is_proven = True
