"""Below which blocks keeping pays."""

from collections.abc import Sequence


def lines_worth_keeping(
    names: Sequence[str], to_come: Sequence[tuple[Sequence[str], int | None]], frontier: int
) -> list[int]:
    """Return the positions of blocks below which outputs are worth keeping, the one that is needed first first.

    What is kept for a phase that is over after the pass that fills it is used by nobody, and what was kept before
    lower blocks were trained is wrong afterwards.

    Args:
        names: The blocks, input first.
        to_come: The blocks that this phase and each later one trains, and its epochs; None where that is open.
        frontier: The position of the lowest block that is trained now.
    """
    order = {name: position for position, name in enumerate(names)}
    phases = [(min(order[name] for name in trained), epochs) for trained, epochs in to_come]
    phases[:1] = [(frontier, phases[0][1] if phases else None)]
    lines: list[int] = []
    lowest = len(names)
    for number, (line, epochs) in enumerate(phases):
        pays = number > 0 or epochs is None or epochs > 1
        if 0 < line <= lowest and line < len(names) and pays and line not in lines:
            lines.append(line)
        lowest = min(lowest, line)
    return lines
