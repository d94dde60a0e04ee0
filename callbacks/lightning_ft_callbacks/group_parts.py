"""GroupParts: what an optimizer keeps in its groups, apart for each block in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_ft_callbacks.optimizers import takes_one_rate

# the number of a user's group, the block's name, and whether its parameters do not decay
PartKey = tuple[int, str, bool]
PartState = tuple[int, str, bool, bool, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Part:
    """Parameters of one of the user's groups that are in one block and decay alike."""

    group: int
    block: str
    exempt: bool
    parameters: list[Parameter]

    @property
    def key(self) -> PartKey:
        """What names the part."""
        return self.group, self.block, self.exempt


@dataclass(frozen=True, slots=True)
class _Kept:
    """What an optimizer wrote into the part of a block, and what it then was in the user's group.

    From a checkpoint ``shared`` is None until the next update, because a group's tensors are other ones then. It has
    states where the optimizer keeps any for a parameter of the part.
    """

    own: dict[str, Any]
    shared: dict[str, Any] | None
    has_states: bool

    @classmethod
    def with_group(cls, own: Mapping[str, Any], group: Mapping[str, Any], *, has_states: bool) -> "_Kept":
        """Return it as of an update, when the user's group has got its values too."""
        return cls(dict(own), {key: group.get(key) for key in own}, has_states)

    def still(self, group: Mapping[str, Any]) -> "_Kept":
        """Return it without what somebody has changed in the user's group since."""
        if self.shared is None:
            return self.with_group(self.own, group, has_states=self.has_states)
        own = {key: value for key, value in self.own.items() if same(group.get(key), self.shared[key])}
        return _Kept(own, self.shared, self.has_states)


class GroupParts:
    """Keeps what an optimizer writes into the parts of its groups: a step count, a sum of rates, an estimate.

    A part finds at each update what was written at the one before. One that is thawed begins with what the
    optimizer's constructor gave, as a group that is added then: its moments begin at nothing, and a count of the
    others' updates would correct them for so many. An optimizer that estimates one rate for all goes on with that.

    Args:
        optimizer: The optimizer.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._one_rate = takes_one_rate(optimizer)
        self._kept: dict[PartKey, _Kept] = {}  # what was updated first stands first
        self._written: set[str] = set()

    @property
    def differ(self) -> bool:
        """Whether anything is kept that parts may differ in."""
        return bool(self._kept) and not self._one_rate

    def states(self, users: Sequence[Mapping[str, Any]]) -> list[PartState]:
        """Return what is kept, for a checkpoint: each part's key, whether it has states, and what was written."""
        return [(*key, kept.has_states, dict(kept.own)) for key, kept in self._still(users).items()]

    def load(self, states: Sequence[PartState], num_groups: int) -> None:
        """Take what ``states`` returned; a group that is missing is the optimizer's to complain of."""
        self._kept = {
            (group, block, exempt): _Kept(dict(own), None, has_states)
            for group, block, exempt, has_states, own in states
            if group < num_groups
        }

    def begin(self, now: Sequence[Part], parts: Sequence[Part], users: Sequence[Mapping[str, Any]]) -> set[PartKey]:
        """Begin an update, and return the parts that are thawed; forget those that are frozen.

        Freezing drops states, by which both are told. An optimizer that has none, as plain SGD, corrects nothing by
        what it counts.

        Args:
            now: The parts that are updated.
            parts: All.
            users: The user's groups.
        """
        self._kept = self._still(users)
        self._written |= {name for kept in self._kept.values() for name in kept.own}
        if self._one_rate or not any(kept.has_states for kept in self._kept.values()):
            return set()
        held = {part.key for part in parts if self._has_states(part)}
        updated = {part.key for part in now}
        thawed = {key for key in updated - held if key not in self._kept or self._kept[key].has_states}
        self._kept = {key: kept for key, kept in self._kept.items() if key in (updated | held) - thawed}
        return thawed

    def given(self, part: Part, group: Mapping[str, Any], *, thawed: bool) -> dict[str, Any]:
        """Return the user's group as the optimizer is to find it for a part."""
        if (kept := self._kept.get(part.key)) is not None:
            return {**group, **kept.own, "params": part.parameters}
        found = {key: _copied(value) if key in self._written else value for key, value in group.items()}
        if thawed:
            begun = {key: _copied(value) for key, value in self._optimizer.defaults.items() if key in self._written}
            found = {key: value for key, value in found.items() if key not in self._written} | begun
        return {**found, "params": part.parameters}

    def oldest_first(self, parts: Sequence[Part]) -> list[int]:
        """Return the places of parts by how long they have been updated without a break."""
        ages = {key: age for age, key in enumerate(self._kept)}
        return sorted(range(len(parts)), key=lambda place: ages.get(parts[place].key, len(ages)))

    def carry_over(
        self, part: Part, given: Mapping[str, Any], view: Mapping[str, Any], group: dict[str, Any], *, first: bool
    ) -> None:
        """Keep what the optimizer wrote into a part, and put that of a group's first part into the user's group.

        Args:
            part: The part.
            given: What the optimizer found.
            view: What it left.
            group: The user's group, which ``view`` is where that was not split.
            first: Whether the part is the first of the group.
        """
        written = {
            key: value
            for key, value in view.items()
            if key not in ("params", "lr")
            and not (part.exempt and key == "weight_decay")
            and (key in self._written or key not in given or not same(value, given[key]))
        }
        if first:
            group.update(written)
        elif view is group:
            written = {key: _copied(value) for key, value in written.items()}
        if own := (self._kept[part.key].own if part.key in self._kept else {}) | written:
            self._kept[part.key] = _Kept.with_group(own, group, has_states=self._has_states(part))

    def _still(self, users: Sequence[Mapping[str, Any]]) -> dict[PartKey, _Kept]:
        """Return what is kept, of frozen parts too, and nobody has changed in a group since."""
        still = {key: kept.still(users[key[0]]) for key, kept in self._kept.items()}
        return {key: kept for key, kept in still.items() if kept.own}

    def _has_states(self, part: Part) -> bool:
        return any(self._optimizer.state.get(parameter) for parameter in part.parameters)


def _copied(value: Any) -> Any:
    """Return a copy of a tensor, which an optimizer may count in, and any other value itself."""
    return value.clone() if isinstance(value, Tensor) else value


def same(one: Any, other: Any) -> bool:
    """Tell whether two values of a group are the same; tensors only if they are one object."""
    if one is other:
        return True
    return isinstance(one, int | float | str) and isinstance(other, int | float | str) and one == other
