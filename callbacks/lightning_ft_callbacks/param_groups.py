"""BlockRates: an optimizer's parameter groups, split by block while it applies an update."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.nn import Parameter
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_ft_callbacks.optimizers import with_wrapped

# the factor on a user's group's learning rate, given the block's name and that group
Factor = Callable[[str, Mapping[str, Any]], float]


@dataclass(frozen=True, slots=True)
class _Part:
    """Parameters of one of the user's groups that are in one block and decay alike."""

    group: int
    block: str
    exempt: bool
    parameters: list[Parameter]


@dataclass(frozen=True, slots=True)
class _Kept:
    """What an optimizer wrote into the part of a block, and what it then was in the user's group.

    From a checkpoint ``shared`` is None until the next update, because a group's tensors are other ones then.
    """

    own: dict[str, Any]
    shared: dict[str, Any] | None

    @classmethod
    def with_group(cls, own: Mapping[str, Any], group: Mapping[str, Any]) -> "_Kept":
        """Return it as of an update, when the user's group has got its values too."""
        return cls(dict(own), {key: group.get(key) for key in own})

    def still(self, group: Mapping[str, Any]) -> "_Kept":
        """Return it without what somebody has changed in the user's group since."""
        if self.shared is None:
            return self.with_group(self.own, group)
        own = {key: value for key, value in self.own.items() if _same(group.get(key), self.shared[key])}
        return _Kept(own, self.shared)


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
        self._parts: list[_Part] = []
        self._shape: list[tuple[int, int]] = []
        self._kept: dict[tuple[int, str, bool], _Kept] = {}
        self._views: list[tuple[_Part, float, dict[str, Any], dict[str, Any]]] = []
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
        carried: set[int] = set()
        for part, factor, given, view in self._views:
            first = part.group not in carried
            carried.add(part.group)
            self._carry_over(part, factor, given, view, users[part.group], first=first)
        self._views = []

    def rates(self) -> dict[str, dict[int, float]]:
        """Return the learning rate of the last update by block, and by the user's group where a block is in several.

        Blocks without a trained parameter are left out, and those whose rates the optimizer sets itself.
        """
        rates: dict[str, dict[int, float]] = {}
        for block, group, rate in self._rates:
            rates.setdefault(block, {})[group] = float(rate)
        return rates

    def state_dict(self) -> list[tuple[int, str, bool, dict[str, Any]]]:
        """Return what the optimizer wrote for single blocks, for a checkpoint."""
        kept = self._still_kept(self.optimizer.param_groups if self._users is None else self._users)
        return [(*key, dict(kept.own)) for key, kept in kept.items()]

    def load_state_dict(self, state: list[tuple[int, str, bool, dict[str, Any]]]) -> None:
        """Take what ``state_dict`` returned."""
        num_groups = len(self.optimizer.param_groups)  # one that is missing is the optimizer's to complain of
        self._kept = {
            (group, block, exempt): _Kept(dict(own), None) for group, block, exempt, own in state if group < num_groups
        }

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
        self._kept = self._still_kept(users)
        views = []
        for part in self._parts_of(users):
            group = users[part.group]
            if all(parameter.grad is None for parameter in part.parameters):
                continue
            factor = self._factor(part.block, group)
            kept = self._kept.get((part.group, part.block, part.exempt))
            given = {**group, **(kept.own if kept else {}), "params": part.parameters}
            if factor != 1.0:
                given["lr"] = group["lr"] * factor
            if part.exempt:
                given["weight_decay"] = 0.0
            views.append((part, factor, given, dict(given)))
        named = [(part.block, part.group, given["lr"]) for part, _, given, _ in views if part.block]
        self._rates = [(block, group, rate) for block, group, rate in named if rate is not None]
        plain = all(factor == 1.0 and not part.exempt for part, factor, _, _ in views)
        if plain and not self._kept:
            return
        self._users, self._views = users, views
        self.optimizer.param_groups = [view for *_, view in views]

    def _parts_of(self, groups: list[dict[str, Any]]) -> list[_Part]:
        """Return the parts of the user's groups, found again only where those have changed."""
        shape = [(id(group["params"]), len(group["params"])) for group in groups]
        if shape != self._shape:
            parts: dict[tuple[int, str, bool], list[Parameter]] = {}
            for number, group in enumerate(groups):
                for parameter in group["params"]:
                    exempt = id(parameter) in self._exempt and bool(group.get("weight_decay"))
                    parts.setdefault((number, self._owners.get(id(parameter), ""), exempt), []).append(parameter)
            self._parts = [_Part(*key, parameters) for key, parameters in parts.items()]
            self._shape = shape
        return self._parts

    def _still_kept(self, users: list[dict[str, Any]]) -> dict[tuple[int, str, bool], _Kept]:
        """Return what the optimizer wrote into parts, frozen ones too, and nobody has changed in a group since."""
        still = {key: kept.still(users[key[0]]) for key, kept in self._kept.items()}
        return {key: kept for key, kept in still.items() if kept.own}

    def _carry_over(
        self,
        part: _Part,
        factor: float,
        given: Mapping[str, Any],
        view: Mapping[str, Any],
        group: dict[str, Any],
        *,
        first: bool,
    ) -> None:
        """Keep what the optimizer wrote into a part, and put that of a group's first part into the user's group."""
        written = {
            key: value
            for key, value in view.items()
            if key not in ("params", "lr")
            and not (part.exempt and key == "weight_decay")
            and (key not in given or not _same(value, given[key]))
        }
        if first:
            group.update(written)
            if not _same(view["lr"], given["lr"]):
                group["lr"] = view["lr"] / factor
        key = (part.group, part.block, part.exempt)
        if own := (self._kept[key].own if key in self._kept else {}) | written:
            self._kept[key] = _Kept.with_group(own, group)


def _same(one: Any, other: Any) -> bool:
    """Tell whether two values of a group are the same; tensors only if they are one object."""
    if one is other:
        return True
    return isinstance(one, int | float | str) and isinstance(other, int | float | str) and one == other
