"""RecordingPass and MarkingPass: what lower modules give on one batch, and what is read of that above."""

from collections.abc import Sequence
from typing import Any

from lightning.fabric.utilities.seed import _collect_rng_states
from torch import Tensor, nn

from lightning_ft_callbacks.caching.capturing_pass import CapturingPass
from lightning_ft_callbacks.caching.closeness import equal
from lightning_ft_callbacks.caching.postponed import Postponed, Promise
from lightning_ft_callbacks.caching.prefix_cut import Leaf, PrefixCut
from lightning_ft_callbacks.caching.replaying_pass import ReplayingPass
from lightning_ft_callbacks.caching.sample_shapes import Samples, SampleShape


class RecordingPass(CapturingPass):
    """Takes what all lower modules' calls give.

    Args:
        cut: The cut.
        samples: The samples of the batch.

    Attributes:
        outputs: What each call gave, flat.
        called: The modules that were called, upper ones too.
        has_drawn: Whether random numbers were drawn before the last of these calls ended.
    """

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
        self.outputs, self.has_drawn, self.refusal = [], False, None
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
        self.has_drawn = not equal(self._before, _collect_rng_states(include_cuda=True))
        self.outputs.append([leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves])


class MarkingPass(ReplayingPass):
    """Has nothing kept, and marks outputs of lower modules when they are read, giving the true ones.

    Args:
        cut: The cut.
        samples: The samples of the batch.
        outputs: The true outputs, as ``RecordingPass`` took them.

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
