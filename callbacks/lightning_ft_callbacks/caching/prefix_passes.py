"""PrefixPasses: hooks on both sides of a cut while a step runs, to take what crosses it or to put it there."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten
from torch.utils.hooks import RemovableHandle

from lightning_ft_callbacks.caching.prefix_cut import Crossing, Placeholder, PrefixCut, Zeros, flatten
from lightning_ft_callbacks.caching.sample_shapes import CannotCacheError, Samples


class ReachedError(Exception):
    """A run is over that was to reach a cut only."""


class PrefixPass:
    """Hooks on both sides of a cut during a step.

    Args:
        cut: The cut.
        samples: The samples of the batch.

    Attributes:
        active: Asked whether the run is of this batch; a range test runs others while hooks are attached.
    """

    def __init__(self, cut: PrefixCut, samples: Samples) -> None:
        self.cut = cut
        self.samples = samples
        self.active: Callable[[], bool] = lambda: True
        self._handles: list[RemovableHandle] = []
        self.begin_anew()

    def begin_anew(self) -> None:
        """Count from the start, because the step is run again."""
        self.call = 0
        self.lower_call = 0

    @property
    def crossed(self) -> bool:
        """Whether an upper module has been called."""
        return self.call > 0

    def attach(self) -> None:
        """Begin to listen."""
        for module in self.cut.upper:
            self._handles.append(module.register_forward_pre_hook(self._before_upper, with_kwargs=True))

    def detach(self) -> None:
        """Stop."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def crossing(self, call: int, leaves: list[Any]) -> list[Any] | None:
        """Look at the arguments of an upper module's call, and return others for it or None."""
        raise NotImplementedError(f"{type(self).__name__} does not say what crosses")

    def next_lower_call(self) -> int:
        """Return the number of a lower module's call."""
        self.lower_call += 1
        return self.lower_call - 1

    def _before_upper(self, module: nn.Module, args: Any, kwargs: Any) -> Any:  # noqa: ARG002
        if not self.active():
            return None
        leaves, spec = flatten((args, kwargs))
        call, self.call = self.call, self.call + 1
        changed = self.crossing(call, leaves)
        return None if changed is None else tree_unflatten(changed, spec)


class CapturingPass(PrefixPass):
    """Takes what crosses a cut while a step runs as ever.

    Args:
        cut: The cut.
        samples: The samples of the batch.
        stop: Whether to end the run by ``ReachedError`` when everything has crossed.

    Attributes:
        captured: What crossed, copied because upper modules may write into it.
        refusal: Why it cannot be kept, found while the step ran.
    """

    def __init__(self, cut: PrefixCut, samples: Samples, *, stop: bool = False) -> None:
        super().__init__(cut, samples)
        self._stop = stop
        self.captured: dict[Crossing, Tensor] = {}
        self.refusal: CannotCacheError | None = None
        self._wanted = frozenset(cut.crossings)

    def attach(self) -> None:
        """Begin to listen, to lower modules too, whose outputs' shapes are learnt."""
        super().attach()
        for module in self.cut.lower:
            self._handles.append(module.register_forward_hook(self._after_lower))

    def crossing(self, call: int, leaves: list[Any]) -> list[Any] | None:
        """Take what is wanted."""
        self._take("upper", call, leaves)
        return None

    def after_lower(self, call: int, leaves: list[Any]) -> None:
        """Look at the output of a lower module's call."""
        self._take("lower", call, leaves)

    def _take(self, side: Literal["upper", "lower"], call: int, leaves: list[Any]) -> None:
        for index, leaf in enumerate(leaves):
            if (side, call, index) in self._wanted:
                self.captured[side, call, index] = leaf.detach().clone()
                if leaf.requires_grad:
                    self.refusal = CannotCacheError(
                        f"a gradient flows through what is below {self.cut.block}: something that is trained, or the "
                        "input, comes before it"
                    )
        if self._stop and len(self.captured) == len(self._wanted):
            raise ReachedError

    def _after_lower(self, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002
        if self.crossed or not self.active():
            return
        key = self.next_lower_call()
        self.after_lower(key, flatten(output)[0])
        if key not in self.cut.placeholders:
            self.cut.placeholders[key] = Placeholder(output, self.samples)
            return
        try:
            self.cut.placeholders[key].see(output, self.samples, type(module).__name__)
        except CannotCacheError as error:
            self.refusal = error


class ReplayingPass(PrefixPass):
    """Passes over the lower modules, and gives the upper ones what was kept.

    Args:
        cut: The cut.
        samples: The samples of the batch.
        kept: What crosses, in the order of the cut's crossings.
        zeros: Where placeholders come from.
    """

    def __init__(self, cut: PrefixCut, samples: Samples, kept: Sequence[Tensor], zeros: Zeros) -> None:
        super().__init__(cut, samples)
        self._kept: Mapping[Crossing, Tensor] = dict(zip(cut.crossings, kept, strict=True))
        self._zeros = zeros
        self._compiled: dict[nn.Module, Any] = {}

    def attach(self) -> None:
        """Begin to replace."""
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

    def crossing(self, call: int, leaves: list[Any]) -> list[Any] | None:
        """Put what was kept in its place."""
        mine = self._of("upper", call)
        return [mine.get(index, leaf) for index, leaf in enumerate(leaves)] if mine else None

    def _of(self, side: Literal["upper", "lower"], call: int) -> dict[int, Tensor]:
        return {index: kept for (place, number, index), kept in self._kept.items() if (place, number) == (side, call)}

    def _instead_of(self, module: nn.Module, before: Any) -> Callable[..., Any]:
        real = before or module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.crossed or not self.active():  # crossed: shared by both sides, tied weights
                return real(*args, **kwargs)
            call = self.next_lower_call()
            placeholder = self.cut.placeholders.get(call)
            if placeholder is None:
                raise CannotCacheError(f"{type(module).__name__} below {self.cut.block} is called now and then only")
            return placeholder.output(self.samples, self._zeros, self._of("lower", call))

        forward.before = before  # type: ignore[attr-defined]
        return forward


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
