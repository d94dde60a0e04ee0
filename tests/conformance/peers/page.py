"""The page of the documentation that shows the table."""

from outcome import Outcome

HEADER = """\
# Conformance

Freezing layers and thawing them later meets everything else that a training run is made of. Each row is a trap of that
kind, run with three tools that are asked for the same: to train the head, and from some epoch on the backbone too.
"""
FOOTER = """
**passed**: the tool did what was asked. **refused**: it said by itself that it does not do this. **failed**: it did
something else, or ended with an exception that is not its own. Each cell is a process of its own, on the CPU.

Each tool is set up as its own documentation says, with 0.1 as the head's learning rate and 0.01 as the backbone's:
`BackboneFinetuning` with an optimizer of the parameters that are not frozen, and `backbone_initial_lr`;
`FinetuningScheduler` with an explicit schedule of two phases that end by epochs; `GradualUnfreezing` with two phases,
and `DiscriminativeLR`. Where a tool has options for frozen batch norms, all of them are tried, and the best outcome
counts. Under a scheduler it is enough that the run ends, that the head's rate is the scheduler's, and that the backbone
never has more than was asked for; the cell says how the two rates relate from the thawing on.

The command `make conformance` made this page, from `tests/conformance/peers`, with
"""


def page(outcomes: dict[str, dict[str, Outcome]], versions: dict[str, str]) -> str:
    """Return the page.

    Args:
        outcomes: By trap and tool.
        versions: By package.
    """
    tools = list(next(iter(outcomes.values())))
    lines = [HEADER, f"| trap | {' | '.join(f'`{tool}`' for tool in tools)} |", "|---" * (len(tools) + 1) + "|"]
    for trap, row in outcomes.items():
        cells = [f"**{cell.verdict}**: {_escaped(cell.seen)}" for cell in row.values()]
        lines.append(f"| {trap} | {' | '.join(cells)} |")
    counts = [sum(row[tool].passed for row in outcomes.values()) for tool in tools]
    lines.append(f"| **passed** | {' | '.join(f'{count} of {len(outcomes)}' for count in counts)} |")
    return "\n".join(lines) + "\n" + FOOTER + ", ".join(f"{name} {number}" for name, number in versions.items()) + ".\n"


def _escaped(text: str) -> str:
    for mark in "|*_<`[":
        text = text.replace(mark, f"\\{mark}")
    return text
