"""Reading the schedules of finetuning-scheduler, whose phases are numbered lists of parameter names."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lightning_ft_callbacks.phases.phase import Phase, Plateau

# of FTSEarlyStopping, which finetuning-scheduler adds where its user gives none
DEFAULT_PLATEAU = Plateau("val_loss", patience=3)
WITHOUT_COUNTERPART = {
    "lr": "give the rates to DiscriminativeLR(scales=...)",
    "new_lr_scheduler": "one schedule holds for all phases, with DiscriminativeLR and ramp_steps",
    "new_optimizer": "one optimizer holds for all phases",
}


def phases_and_blocks(data: Mapping[int, Any], place: str) -> tuple[list[Phase], dict[str, tuple[str, ...]]]:
    """Return the phases of a finetuning-scheduler file, and the blocks that they train.

    Each of its phases adds parameters to those of the phases before; so each becomes a block, named after its number,
    the highest phase being the lowest block. Names are whole parameter names, or regular expressions of those.

    Args:
        data: From phase number to ``params`` and ``max_transition_epoch``.
        place: The file, for errors.

    Raises:
        ValueError: If phases are missing, or a key has no counterpart here.

    Source: https://finetuning-scheduler.readthedocs.io
    """
    numbers = sorted(data)
    if numbers != list(range(len(numbers))):
        raise ValueError(f"{place}: expected phases 0 to {len(numbers) - 1}, but got {numbers}")
    phases: list[Phase] = []
    begun: int | None = 0
    for number in numbers:
        spec = data[number]
        if not isinstance(spec, Mapping) or not spec.get("params"):
            raise ValueError(f"{place}, phase {number}: the key 'params' is missing or empty")
        for key in spec:
            if key in WITHOUT_COUNTERPART:
                raise ValueError(f"{place}, phase {number}: {key!r} has no counterpart; {WITHOUT_COUNTERPART[key]}")
            if key not in ("params", "max_transition_epoch"):
                raise ValueError(f"{place}, phase {number}: unknown key {key!r}")
        train = [f"phase_{earlier}" for earlier in range(number + 1)]
        until = spec.get("max_transition_epoch")
        if until is not None and until >= 0 and number < numbers[-1]:
            if begun is None or until <= begun:
                after = "a phase that ends by a plateau" if begun is None else f"epoch {begun}"
                raise ValueError(
                    f"{place}, phase {number}: max_transition_epoch={until} has no counterpart after {after}"
                )
            rank_zero_info(
                f"{place}, phase {number}: ends at epoch {until}; early stopping, by which finetuning-scheduler would "
                "end it before, is left out, because a phase ends in one way"
            )
            phases.append(Phase(train, epochs=until - begun))
            begun = until
        else:
            phases.append(Phase(train, plateau=DEFAULT_PLATEAU) if number < numbers[-1] else Phase(train))
            begun = None
    blocks = {f"phase_{number}": tuple(data[number]["params"]) for number in reversed(numbers)}
    return phases, blocks


def blocks_of(blocks: Mapping[str, Sequence[str]], module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the blocks that a schedule brings along, with the parameters of a module.

    Args:
        blocks: From block names to parameter names or regular expressions of these, input first.
        module: The module.

    Returns:
        From block names to parameter names, input first; what no phase lists, and so no phase trains, is the first,
        ``unlisted``.

    Raises:
        ValueError: If an entry is the name of no parameter and no regular expression that matches one whole.
    """
    left = [name for name, _ in module.named_parameters()]
    every = tuple(left)
    found: dict[str, tuple[str, ...]] = {}
    for block, entries in reversed(list(blocks.items())):
        inside: list[str] = []
        for entry in entries:
            try:
                matching = [name for name in every if name == entry or re.fullmatch(entry, name)]
            except re.error as error:
                raise ValueError(f"{block}: {entry!r} is no regular expression: {error}") from error
            if not matching:
                near = get_close_matches(entry, every, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"{block}: no parameter of {type(module).__name__} matches {entry!r}{hint}")
            inside += [name for name in matching if name in left]
            left = [name for name in left if name not in matching]
        found[block] = tuple(inside)
    return ({"unlisted": tuple(left)} if left else {}) | dict(reversed(list(found.items())))
