"""ReplayingPass: postpones what lies below a cut, and puts there what was kept."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten

from lightning_ft_callbacks.caching.postponed import (
    Postponed,
    Postponements,
    Promise,
    alive,
    known,
    surroundings,
    version_of,
)
from lightning_ft_callbacks.caching.prefix_cut import PrefixCut
from lightning_ft_callbacks.caching.prefix_passes import PrefixPass, is_there
from lightning_ft_callbacks.caching.same_samples import SameSamples
from lightning_ft_callbacks.caching.sample_shapes import CannotCacheError, Samples, SampleShape
from lightning_ft_callbacks.caching.trees import flatten


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
        elif any(is_there(leaf) and leaf.requires_grad for leaf in leaves):
            self.refusal = CannotCacheError(f"a gradient flows through what is below {self.cut.block}")
        else:
            self.look_at(call, leaves)


def _switches(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Hashable:
    """Return the arguments that switch something on; keeping keys and values changes nothing of what comes out."""
    named = [*enumerate(args), *sorted(kwargs.items())]
    return tuple(one for one in named if isinstance(one[1], bool | float | str) and one[0] != "use_cache")


def _plain(leaf: Any) -> Any:
    """Return a tensor as it was announced, its rows one behind another."""
    return leaf.contiguous() if isinstance(leaf, Tensor) else leaf
