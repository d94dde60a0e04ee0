"""PrefixPasses: what is done on both sides of a cut while a step runs, to take what crosses it or to put it there."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten
from torch.utils.hooks import RemovableHandle

from lightning_ft_callbacks.caching.own_gradients import OwnGradients
from lightning_ft_callbacks.caching.postponed import (
    Postponed,
    Postponements,
    Promise,
    alive,
    known,
    surroundings,
    version_of,
)
from lightning_ft_callbacks.caching.prefix_cut import Leaf, Placeholder, PrefixCut
from lightning_ft_callbacks.caching.same_samples import SameSamples
from lightning_ft_callbacks.caching.sample_shapes import CannotCacheError, Samples, SampleShape
from lightning_ft_callbacks.caching.trees import flatten


class ReachedError(Exception):
    """A run is over that was to reach a cut only."""


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
            if not _is_there(leaf):
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
            if number == call and index < len(leaves) and _is_there(leaves[index]):
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
        known_as = self.cut.placeholders.setdefault(call, Placeholder(module, output, self.samples))
        try:
            known_as.see(module, output, self.samples)
        except CannotCacheError as error:
            self.refusal = error
        self.after_lower(call, flatten(output)[0])


class ReplayingPass(PrefixPass):
    """Postpones the lower modules, whose outputs are those that were kept, and others only if somebody reads them.

    Args:
        cut: The cut.
        samples: The samples of the batch.
        kept: What crosses, in the order of the cut's crossings.
        same: What samples were when they were seen before; None where nobody asks.
        learns: Whether to take what is done between lower modules for right, and not to compare it.

    Attributes:
        num_run: Calls of lower modules that ran all the same.
    """

    def __init__(
        self,
        cut: PrefixCut,
        samples: Samples,
        kept: Sequence[Tensor],
        same: SameSamples | None = None,
        *,
        learns: bool = False,
    ) -> None:
        super().__init__(cut, samples, same)
        self.num_run = 0
        self._learns = learns
        self._kept = dict(zip(cut.crossings, kept, strict=True))
        self._versions = [version_of(tensor) for tensor in kept]
        self._last = max((call for call, _ in cut.crossings), default=-1)
        self._notes: Postponements = []
        self._compiled: dict[nn.Module, Any] = {}

    def attach(self) -> None:
        """Be ready to postpone."""
        super().attach()
        for module in self.cut.lower:
            self._compiled[module], module._compiled_call_impl = module._compiled_call_impl, None
            module.__dict__["forward"] = self._instead_of(module, module.__dict__.get("forward"))

    def detach(self) -> None:
        """Leave all modules as they were."""
        super().detach()
        for module, compiled in self._compiled.items():
            before = module.__dict__.pop("forward").before
            if before is not None:
                module.__dict__["forward"] = before
            module._compiled_call_impl = compiled
        self._compiled = {}

    def settle(self) -> None:
        """Compute what somebody still holds: a list of features, a logged value."""
        for tensor in alive(self._notes):
            tensor.known()
        self._notes.clear()
        self.cut.is_written_to |= self._versions != [version_of(kept) for kept in self._kept.values()]

    def cross(self, leaves: list[Any]) -> list[Any] | None:
        """Compute what an upper module reads."""
        return [known(leaf) for leaf in leaves] if any(isinstance(leaf, Postponed) for leaf in leaves) else None

    def promised(self, call: int, index: int, shape: SampleShape, run: Promise) -> Tensor:
        """Return a leaf of what a lower module's call gives, that ``run`` gives too if need be."""
        kept = self._kept.get((call, index))
        if kept is None:
            return self._later(shape, run, index)
        if (call, index) in self.cut.differentiable:  # a checkpoint passes gradients on only if its input has one
            kept.requires_grad_(torch.is_grad_enabled())
        if self.cut.is_written_to:
            kept = kept.clone()
        if call == self._last:
            return kept
        return self._later(shape, Promise(lambda: [kept], run.key), 0)

    def _later(self, shape: SampleShape, promise: Promise, number: int) -> Postponed:
        like = torch.empty(shape.size(self.samples), dtype=shape.dtype, device="meta")
        return Postponed(like, shape.device, promise, number, self._notes)

    def _instead_of(self, module: nn.Module, before: Any) -> Callable[..., Any]:
        real = before or module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            leaves, spec = flatten((args, kwargs))
            call = self.next_call() if self.listens else None
            if call is not None:
                self._make_sure(module, call, leaves, _switches(args, kwargs))
            if call is None or self.refusal is not None:
                self.num_run += self._at_work
                args, kwargs = tree_unflatten([known(leaf) for leaf in leaves], spec)
                return real(*args, **kwargs)
            as_now = surroundings(self.cut.device)

            def compute() -> list[Any]:
                self.num_run += 1
                args, kwargs = tree_unflatten([known(leaf) for leaf in leaves], spec)
                with torch.no_grad(), as_now():
                    return [_plain(leaf) for leaf in flatten(real(*args, **kwargs))[0]]

            run = Promise(compute, ("call", call))
            return self.cut.placeholders[call].output(lambda index, shape: self.promised(call, index, shape, run))

        forward.before = before  # type: ignore[attr-defined]
        return forward

    def _make_sure(self, module: nn.Module, call: int, leaves: Sequence[Any], switches: Hashable) -> None:
        """Find out whether a lower module's call is the one that was learnt, and reads what it read then."""
        if self.refusal is not None:
            return
        made_by = [leaf.promise.key for leaf in leaves if isinstance(leaf, Postponed)]
        key = hash((switches, *(one for one in made_by if one is not None)))  # a batch may be read or not
        if self._learns:
            self.cut.keys[call] = key
        expected = self.cut.placeholders.get(call)
        if expected is None or expected.module is not module or self.cut.keys.get(call) != key:
            self.refusal = CannotCacheError(
                f"the step does something else than on the first batch before {type(module).__name__} below "
                f"{self.cut.block}; let it do the same each time"
            )
        elif any(_is_there(leaf) and leaf.requires_grad for leaf in leaves):
            self.refusal = CannotCacheError(f"a gradient flows through what is below {self.cut.block}")
        else:
            self.look_at(call, leaves)


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


def _is_there(leaf: Any) -> TypeGuard[Tensor]:
    return isinstance(leaf, Tensor) and not isinstance(leaf, Postponed)


def _switches(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Hashable:
    """Return the arguments that switch something on; keeping keys and values changes nothing of what comes out."""
    named = [*enumerate(args), *sorted(kwargs.items())]
    return tuple(one for one in named if isinstance(one[1], bool | float | str) and one[0] != "use_cache")


def _plain(leaf: Any) -> Any:
    """Return a tensor as it was announced, its rows one behind another."""
    return leaf.contiguous() if isinstance(leaf, Tensor) else leaf
