"""Below which blocks keeping pays, and whether what lies below has stayed what it was."""

from collections.abc import Sequence

from torch.nn import Parameter

from lightning_ft_callbacks.caching.kept_caches import digest


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


class PrefixWeights:
    """Notices when somebody changes weights below a line.

    Args:
        parameters: Those of each block, input first.
    """

    def __init__(self, parameters: Sequence[Sequence[Parameter]]) -> None:
        self._parameters = parameters
        self._known: dict[int, tuple[int, str]] = {}

    def changed(self, line: int) -> bool:
        """Tell whether weights below a line are others than when it was asked for this line the last time.

        They are read only if they were written to, which some do who then put them back: an average of weights that
        takes their place in validation.

        Args:
            line: The position of the lowest block above it.
        """
        below = [parameter for parameters in self._parameters[:line] for parameter in parameters]
        version = sum(parameter._version for parameter in below) + sum(map(id, below))
        known = self._known.get(line)
        if known is not None and known[0] == version:
            return False
        found = digest(*below)
        self._known = {line: (version, found)}
        return known is not None and known[1] != found
