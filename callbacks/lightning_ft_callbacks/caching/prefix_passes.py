"""PrefixPass: what is done on both sides of a cut while a step runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten
from torch.utils.hooks import RemovableHandle

from lightning_ft_callbacks.caching.postponed import Postponed, known
from lightning_ft_callbacks.caching.prefix_cut import PrefixCut
from lightning_ft_callbacks.caching.same_samples import SameSamples
from lightning_ft_callbacks.caching.sample_shapes import CannotCacheError, Samples
from lightning_ft_callbacks.caching.trees import flatten


class PrefixPass:
    """Hooks on both sides of a cut during a step.

    Args:
        cut: The cut.
        samples: The samples of the batch.
        same: What samples were when they were seen before; None where nobody asks.

    Attributes:
        crossed: Whether an upper module has been called; lower ones that are called later are as ever.
        refusal: Why nothing can be kept, found while the step ran.
    """

    def __init__(self, cut: PrefixCut, samples: Samples, same: SameSamples | None = None) -> None:
        self.cut = cut
        self.samples = samples
        self.refusal: CannotCacheError | None = None
        self._same = same
        self._handles: list[RemovableHandle] = []
        self._at_work = False
        self._lower_calls = 0
        self.crossed = False

    def attach(self) -> None:
        """Be ready for a step."""
        for module in self.cut.upper:
            self._handles.append(module.register_forward_pre_hook(self._before_upper, with_kwargs=True))

    def detach(self) -> None:
        """Leave all modules as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def begin(self) -> None:
        """Begin to work: the step begins, perhaps once more because an optimizer asks for it."""
        self._at_work = True
        self._lower_calls = 0
        self.crossed = False

    def settle(self) -> None:
        """Make sure that nothing leaves the step that is not known."""

    def end(self) -> None:
        """Stop: what runs now, a backward pass that computes blocks again, is no part of the step."""
        self._at_work = False

    def cross(self, leaves: list[Any]) -> list[Any] | None:
        """Return other arguments for an upper module, or None."""

    @property
    def listens(self) -> bool:
        """Whether a lower module's call is one of those that are counted."""
        return self._at_work and not self.crossed

    def next_call(self) -> int:
        """Return the number of a lower module's call."""
        self._lower_calls += 1
        return self._lower_calls - 1

    def look_at(self, call: int, leaves: Sequence[Any]) -> None:
        """Compare what a lower module's call reads with what it read of the same samples before."""
        if self._same is None or self.refusal is not None:
            return
        for place, shape in self.cut.inputs.items():
            number, index = place
            leaf = leaves[index] if number == call and index < len(leaves) else None
            if not is_there(leaf):
                continue  # which some are not without padding
            try:
                self._same.check((self.cut.block, place), leaf, shape, self.samples)
            except CannotCacheError as error:
                self.refusal = error

    def _before_upper(self, module: nn.Module, args: Any, kwargs: Any) -> Any:  # noqa: ARG002
        if not self._at_work:
            return None
        self.crossed = True
        leaves, spec = flatten((args, kwargs))
        changed = self.cross(leaves)
        return None if changed is None else tree_unflatten(changed, spec)


@contextmanager
def attached(passes: Sequence[PrefixPass]) -> Iterator[None]:
    """Attach passes for the length of a block."""
    try:
        for one in passes:
            one.attach()
        yield
    finally:
        for one in passes:
            one.detach()


def run(step: Callable[[], Any], passes: Sequence[PrefixPass]) -> Any:
    """Run a step with passes at work, and return what it returns, all of which is known.

    Args:
        step: Runs it.
        passes: The passes, attached.
    """
    for one in passes:
        one.begin()
    try:
        output = known(step())
        for one in passes:
            one.settle()
        return output
    finally:
        for one in passes:
            one.end()


def is_there(leaf: Any) -> TypeGuard[Tensor]:
    """Tell whether an argument is a tensor whose values are there."""
    return isinstance(leaf, Tensor) and not isinstance(leaf, Postponed)
