"""LRCurve: the loss against the learning rate, and the rates that it suggests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from lightning_ft_callbacks.range_test.lr_suggestions import METHODS, fall, fallen
from lightning_ft_callbacks.range_test.short_list import chosen, exploded
from lightning_ft_callbacks.range_test.step_noise import error_of_difference

SMOOTHING = 0.98
FEWEST = 10
STANDARD_ERRORS = 4.0
HALF, MOST = 0.5, 0.9  # of the fall
LEAST_SHARE = 0.01  # of the fall


@dataclass(frozen=True, slots=True, eq=False)
class LRCurve:
    """Loss against learning rate in a range test (Smith 2017, arXiv:1506.01186).

    Attributes:
        lrs: Learning rates of the block with scale 1, rising, shape (step,).
        losses: Smoothed training losses, shape (step,), in the loss's own units.
        raw: The losses as they were, NaN and infinite ones too, shape (step,); ``losses`` where nobody smoothed them.
        skip_begin: Points at the beginning that suggestions pass over, while the smoothing settles.
        skip_end: Points at the end that they pass over, where the loss explodes.
        trials: Losses after short trainings at a few rates, of the same batches, shape (batch,) each, by rate in the
            order of trying; empty where none were made.

    Raises:
        ValueError: If the shapes differ, or the rates do not rise from above 0.
    """

    lrs: Tensor
    losses: Tensor
    raw: Tensor
    skip_begin: int = 0
    skip_end: int = 0
    trials: Mapping[float, Tensor] = field(default_factory=dict)

    def __init__(
        self,
        lrs: Tensor | Sequence[float],
        losses: Tensor | Sequence[float],
        raw: Tensor | Sequence[float] | None = None,
        skip_begin: int = 0,
        skip_end: int = 0,
        trials: Mapping[float, Tensor | Sequence[float]] | None = None,
    ) -> None:
        values = {"lrs": lrs, "losses": losses, "raw": losses if raw is None else raw}
        for name, value in values.items():
            object.__setattr__(self, name, _vector(value))
        object.__setattr__(self, "trials", {lr: _vector(found) for lr, found in (trials or {}).items()})
        object.__setattr__(self, "skip_begin", skip_begin)
        object.__setattr__(self, "skip_end", skip_end)
        if not self.lrs.shape == self.losses.shape == self.raw.shape or self.lrs.ndim != 1:
            raise ValueError(
                f"expected lrs and losses of one shape (step,), but got {tuple(self.lrs.shape)} and "
                f"{tuple(self.losses.shape)}"
            )
        if len(self.lrs) and (not (self.lrs > 0).all() or not (self.lrs.diff() > 0).all()):
            raise ValueError("expected learning rates that rise from above 0")

    @classmethod
    def of_raw(
        cls,
        lrs: Tensor | Sequence[float],
        raw: Tensor | Sequence[float],
        smoothing: float = SMOOTHING,
        num_planned: int | None = None,
    ) -> "LRCurve":
        """Return the curve of losses as they were measured.

        Like fastai's, suggestions pass over the first tenth of the points that were planned, and the last five.

        Args:
            lrs: Learning rates, rising, shape (step,).
            raw: Losses, shape (step,).
            smoothing: Weight of what was before in the average, see ``smoothed``.
            num_planned: Steps of the test, had it not ended early; None for as many as there are.
        """
        losses = torch.as_tensor(raw, dtype=torch.float64)
        num_steps = len(losses) if num_planned is None else num_planned
        return cls(lrs, smoothed(losses, smoothing), losses, num_steps // 10, 5)

    @property
    def known(self) -> tuple[Tensor, Tensor]:
        """Rates and smoothed losses that suggestions look at, each of shape (point,)."""
        stop = len(self.lrs) - self.skip_end
        inside = slice(self.skip_begin, max(self.skip_begin, stop))
        finite = self.raw[inside].isfinite() & self.losses[inside].isfinite()
        return self.lrs[inside][finite], self.losses[inside][finite]

    @property
    def informative(self) -> bool:
        """Whether the loss falls by more than its noise.

        It does where some stretch of steps, lower than all before it, has a mean below that of as many first steps by
        four standard errors. The noise is told from the losses up to that stretch: later ones may explode.
        """
        if len(self.known[0]) < FEWEST:
            return False
        _, raw = self._measured
        width = max(FEWEST // 2, len(raw) // 8)
        means = raw.unfold(0, width, 1).mean(1)
        records = (means == means.cummin(0).values).nonzero().flatten().tolist()
        first = min(2 * width, records[-1])  # fewer losses do not tell their noise
        least = 1e-6 * raw.abs().median().item()
        return any(
            (means[0] - means[low]).item()
            > max(STANDARD_ERRORS * error_of_difference(raw[: max(low + width, FEWEST)], width), least)
            for low in records
            if low >= first
        )

    @property
    def _measured(self) -> tuple[Tensor, Tensor]:
        finite = self.raw.isfinite()
        return self.lrs[finite], self.raw[finite]

    def suggest(self, method: str = "auto") -> float | None:
        """Return the learning rate that the curve suggests for the block with scale 1.

        Args:
            method: ``"auto"``, the middle (in the logarithm) between the rates at which the loss has fallen by half and
                by nine tenths of all that it falls, or the best of the rates around it where ``trials`` compare them;
                or ``"steep"``, ``"valley"``, ``"minimum"``, ``"slide"`` as fastai defines them.

        Returns:
            The rate; None where the curve has no information: too few points, or a loss that does not fall; and where
            the loss exploded in every trial.

        Raises:
            ValueError: If the method is unknown, with the nearest one.
        """
        check_method(method)
        if not self.informative:
            return None
        if method != "auto":
            return METHODS[method](*self.known)
        if self.trials:
            best = chosen(self.trials, self.least_gain)
            return None if exploded(self.trials[best]) else best
        low, high = fallen(*self._measured, HALF), fallen(*self._measured, MOST)
        return (low * high) ** 0.5

    @property
    def least_gain(self) -> float:
        """How much lower the losses of one trial must be than those of another to matter: a hundredth of the fall."""
        return LEAST_SHARE * fall(self._measured[1]) if self.informative else 0.0

    def suggestions(self) -> dict[str, float]:
        """Return what every method suggests; nothing where the curve has no information."""
        if not self.informative:
            return {}
        found = {method: self.suggest(method) for method in (*METHODS, "auto")}
        return {method: lr for method, lr in found.items() if lr is not None}

    def interval(self) -> tuple[float, float] | None:
        """Return the rates at which the loss has fallen by half, and by nine tenths; None without information."""
        if not self.informative:
            return None
        return fallen(*self._measured, HALF), fallen(*self._measured, MOST)

    @property
    def why_not(self) -> str:
        """Why the curve suggests nothing, in words."""
        num_known = len(self.known[0])
        if num_known < FEWEST:
            return f"the test has {num_known} points to look at, fewer than {FEWEST}"
        if self.trials and self.suggest() is None:
            return (
                f"the loss explodes within a few steps at every rate that was tried, {min(self.trials):.1e} the lowest"
            )
        return (
            "the loss does not fall by more than its noise at any rate; more steps (num_steps) or larger batches (or "
            "accumulate_grad_batches) show smaller falls"
        )

    def plot(self, method: str = "auto") -> Any:
        """Return a matplotlib figure of the losses with what they suggest, which notebooks show.

        Args:
            method: Whose suggestion stands out.

        Raises:
            ImportError: Without matplotlib.
            ValueError: If the method is unknown, with the nearest one.
        """
        from lightning_ft_callbacks.range_test.lr_picture import figure_of

        return figure_of(self, method, self.suggest(method))

    def __repr__(self) -> str:
        """Return the range of rates, and what they suggest."""
        if not len(self.lrs):
            return "LRCurve(no steps)"
        rate = self.suggest()
        said = self.why_not if rate is None else f"suggests {rate:.2g}"
        return f"LRCurve({len(self.lrs)} steps from {self.lrs[0]:.2g} to {self.lrs[-1]:.2g}; {said})"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, as ``lr_finder.json`` has it."""
        numbers = {name: [_number(v) for v in getattr(self, name).tolist()] for name in ("lrs", "losses", "raw")}
        trials = [{"lr": lr, "losses": [_number(v) for v in found.tolist()]} for lr, found in self.trials.items()]
        return numbers | {"skip_begin": self.skip_begin, "skip_end": self.skip_end, "trials": trials}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "LRCurve":
        """Return what ``to_dict`` gave."""
        numbers = (_numbers(data[name]) for name in ("lrs", "losses", "raw"))
        trials = {trial["lr"]: _numbers(trial["losses"]) for trial in data.get("trials", ())}
        return cls(*numbers, skip_begin=data["skip_begin"], skip_end=data["skip_end"], trials=trials)


def check_method(method: str) -> None:
    """Make sure that there is a method of a name.

    Raises:
        ValueError: If there is none, with the nearest one.
    """
    names = ("auto", *METHODS)
    if method not in names:
        near = get_close_matches(str(method), names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
        raise ValueError(f"no suggestion {method!r}; {hint}")


def smoothed(losses: Tensor, smoothing: float = SMOOTHING) -> Tensor:
    """Return running averages that are not drawn to 0 at the beginning: a constant stays what it is.

    ``average = smoothing x average + (1 - smoothing) x loss``, over ``1 - smoothing ** number of losses``. A NaN or an
    infinite loss is passed over, and has the average so far.

    Args:
        losses: Losses, shape (step,).
        smoothing: Weight of what was before, in [0, 1).

    Returns:
        Averages, shape (step,); NaN before the first finite loss.
    """
    average, weight = 0.0, 0.0
    averages = []
    for loss in losses.tolist():
        if isfinite(loss):
            average = smoothing * average + (1 - smoothing) * loss
            weight = smoothing * weight + (1 - smoothing)
        averages.append(average / weight if weight else torch.nan)
    return torch.tensor(averages, dtype=torch.float64)


def _vector(values: Tensor | Sequence[float]) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64).detach().cpu().clone()


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [torch.nan if value is None else value for value in values]


def _number(value: float) -> float | None:
    return value if isfinite(value) else None  # JSON has no NaN
