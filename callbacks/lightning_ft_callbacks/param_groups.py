"""BlockRates: an optimizer's parameter groups, split by block while it applies an update."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch.nn import Parameter
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_ft_callbacks.group_parts import GroupParts, Part, PartKey, PartState, same
from lightning_ft_callbacks.optimizers import with_wrapped

# the factor on a user's group's learning rate, given the block's name and that group
Factor = Callable[[str, Mapping[str, Any]], float]


class _View(NamedTuple):
    """A part as one of the optimizer's groups: the factor on its rate, what it was given, and what it left."""

    part: Part
    factor: float
    given: dict[str, Any]
    left: dict[str, Any]


class BlockRates:
    """Learning rates by block for an optimizer whose groups know nothing of blocks.

    The optimizer's ``param_groups`` are the user's at all times but one: after the closure of ``step`` has returned
    and until ``step`` ends they are split by block, each part with the user's rate times the block's factor. So
    schedulers, checkpoints and everybody else meet the user's groups. What the optimizer writes into a part (a step
    count, an estimate) is there again at the next update, and in the user's group.

    Args:
        optimizer: The optimizer, or one that wraps it.
        owners: The block's name of each parameter, by ``id``.
        factor: The factor of a block on a group's rate, asked at each update.
        exempt: The ``id`` of parameters without weight decay.
    """

    def __init__(
        self, optimizer: Optimizer, owners: Mapping[int, str], factor: Factor, exempt: frozenset[int] = frozenset()
    ) -> None:
        self.optimizer = with_wrapped(optimizer)[-1]
        self._owners = owners
        self._factor = factor
        self._exempt = exempt
        self._users: list[dict[str, Any]] | None = None
        self._parts: list[Part] = []
        self._shape: list[tuple[int, int]] = []
        self._kept = GroupParts(self.optimizer)
        self._views: list[_View] = []
        self._rates: list[tuple[str, int, Any]] = []
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Begin to split groups at each update."""
        self._handles = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(lambda *_: self.restore()),
            self.optimizer.register_state_dict_pre_hook(lambda *_: self.restore()),
        ]

    def detach(self) -> None:
        """Stop, and leave the user's groups."""
        self.restore()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def restore(self) -> None:
        """Give the optimizer the user's groups, with what it wrote into the parts; nothing where it has them."""
        users, self._users = self._users, None
        if users is None:
            return
        self.optimizer.param_groups = users
        views, self._views = self._views, []
        carried: set[int] = set()
        for place in self._kept.oldest_first([view.part for view in views]):
            part, factor, given, left = views[place]
            group, first = users[part.group], part.group not in carried
            carried.add(part.group)
            self._kept.carry_over(part, given, left, group, first=first)
            if first and not same(left["lr"], given["lr"]):
                group["lr"] = left["lr"] / factor

    def rates(self) -> dict[str, dict[int, float]]:
        """Return the learning rate of the last update by block, and by the user's group where a block is in several.

        Blocks without a trained parameter are left out, and those whose rates the optimizer sets itself.
        """
        rates: dict[str, dict[int, float]] = {}
        for block, group, rate in self._rates:
            rates.setdefault(block, {})[group] = float(rate)
        return rates

    def state_dict(self) -> list[PartState]:
        """Return what the optimizer wrote for single blocks, for a checkpoint."""
        return self._kept.states(self.optimizer.param_groups if self._users is None else self._users)

    def load_state_dict(self, state: list[PartState]) -> None:
        """Take what ``state_dict`` returned."""
        self._kept.load(state, len(self.optimizer.param_groups))

    def _before_step(
        self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self.restore()  # an update that raised may have left them split
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._split()
            return args, kwargs

        def then_split() -> Any:
            self.restore()  # an optimizer may call its closure several times
            result = closure()
            self._split()
            return result

        if "closure" in kwargs:
            return args, {**kwargs, "closure": then_split}
        return (*args[:1], then_split, *args[2:]), kwargs

    def _split(self) -> None:
        if self._users is not None:  # a step that calls its parent class's step splits once
            return
        users = self.optimizer.param_groups
        parts = self._parts_of(users)
        updated = [part for part in parts if any(parameter.grad is not None for parameter in part.parameters)]
        thawed = self._kept.begin(updated, parts, users)
        views = []
        for part in updated:
            group = users[part.group]
            factor = self._factor(part.block, group)
            given = self._kept.given(part, group, thawed=part.key in thawed)
            if factor != 1.0:
                given["lr"] = group["lr"] * factor
            if part.exempt:
                given["weight_decay"] = 0.0
            views.append(_View(part, factor, given, dict(given)))
        named = [(view.part.block, view.part.group, view.given["lr"]) for view in views if view.part.block]
        self._rates = [(block, group, rate) for block, group, rate in named if rate is not None]
        self._users = users
        if all(view.factor == 1.0 and not view.part.exempt for view in views) and not self._kept.differ:
            self._views = [view._replace(left=users[view.part.group]) for view in views]
            return
        self._views = views
        self.optimizer.param_groups = [view.left for view in views]

    def _parts_of(self, groups: list[dict[str, Any]]) -> list[Part]:
        """Return the parts of the user's groups, found again only where those have changed."""
        shape = [(id(group["params"]), len(group["params"])) for group in groups]
        if shape != self._shape:
            parts: dict[PartKey, list[Parameter]] = {}
            for number, group in enumerate(groups):
                for parameter in group["params"]:
                    exempt = id(parameter) in self._exempt and bool(group.get("weight_decay"))
                    parts.setdefault((number, self._owners.get(id(parameter), ""), exempt), []).append(parameter)
            self._parts = [Part(*key, parameters) for key, parameters in parts.items()]
            self._shape = shape
        return self._parts
