"""CapturingPass: takes what crosses a cut while a step runs as ever."""

from typing import Any

from torch import Tensor, nn

from lightning_ft_callbacks.caching.own_gradients import OwnGradients
from lightning_ft_callbacks.caching.postponed import known
from lightning_ft_callbacks.caching.prefix_cut import Leaf, Placeholder, PrefixCut
from lightning_ft_callbacks.caching.prefix_passes import PrefixPass, is_there
from lightning_ft_callbacks.caching.same_samples import SameSamples
from lightning_ft_callbacks.caching.sample_shapes import CannotCacheError, Samples
from lightning_ft_callbacks.caching.trees import flatten


class ReachedError(Exception):
    """A run is over that was to reach a cut only."""


class CapturingPass(PrefixPass):
    """Takes what crosses a cut while a step runs as ever.

    Args:
        cut: The cut.
        samples: The samples of the batch.
        same: What samples were when they were seen before; None where nobody asks.
        stop: Whether to end the run by ``ReachedError`` when everything has crossed.

    Attributes:
        captured: What crossed, copied because somebody may write into it.
        read: What lower modules read that comes from outside.
    """

    def __init__(
        self, cut: PrefixCut, samples: Samples, same: SameSamples | None = None, *, stop: bool = False
    ) -> None:
        super().__init__(cut, samples, same)
        self._stop = stop
        self._wanted = frozenset(cut.crossings)
        self.captured: dict[Leaf, Tensor] = {}
        self.read: dict[Leaf, Tensor] = {}
        self._gradients = OwnGradients()

    def attach(self) -> None:
        """Be ready to look at lower modules too."""
        super().attach()
        for module in self.cut.lower:
            self._handles.append(module.register_forward_pre_hook(self._before_lower, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after_lower))

    def before_lower(self, call: int, leaves: list[Any]) -> None:
        """Look at what a lower module's call reads."""
        self.look_at(call, leaves)
        if not self._gradients.reach_all(leaves):
            self.refusal = CannotCacheError(
                f"a gradient flows through what is below {self.cut.block}: something that is trained, or the input, "
                "comes before it"
            )
        for number, index in self.cut.inputs:
            if number == call and index < len(leaves) and is_there(leaves[index]):
                self.read[call, index] = leaves[index].detach()

    def after_lower(self, call: int, leaves: list[Any]) -> None:
        """Take what is wanted of what it gave."""
        self._gradients.begin_at(leaves)
        for index, leaf in enumerate(leaves):
            if (call, index) in self._wanted:
                self.captured[call, index] = known(leaf).detach().clone()
                if leaf.requires_grad:
                    self.cut.differentiable.add((call, index))
        if self._stop and len(self.captured) == len(self._wanted):
            raise ReachedError

    def _before_lower(self, module: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ARG002
        if self.listens:
            self.before_lower(self._lower_calls, flatten((args, kwargs))[0])

    def _after_lower(self, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002
        if not self.listens:
            return
        call = self.next_call()
        try:
            if call not in self.cut.placeholders:
                self.cut.placeholders[call] = Placeholder(module, output, self.samples)
            self.cut.placeholders[call].see(module, output, self.samples)
        except CannotCacheError as error:
            self.refusal = error
        self.after_lower(call, flatten(output)[0])
