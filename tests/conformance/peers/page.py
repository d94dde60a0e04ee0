"""The page of the documentation that shows the tables."""

from outcome import Outcome
from tables import TrapTable

HEADER = """\
# Conformance

What this project does, and what other tools for the same do, in traps that are run with all of them.

**passed**: the tool did what was asked. **refused**: it said by itself that it does not do this. **failed**: it did
something else, or ended with an exception that is not its own. Each cell is a process of its own, on the CPU.
"""
FOOTER = """
The command `make conformance` made this page, from `tests/conformance/peers`, with
"""

Outcomes = dict[str, dict[str, Outcome]]  # by trap and tool


def page(tables: list[tuple[TrapTable, Outcomes]], versions: dict[str, str]) -> str:
    """Return the page.

    Args:
        tables: With the outcomes of each.
        versions: By package.
    """
    parts = [f"\n## {table.title}\n\n{table.intro}\n{rows(outcomes)}\n{table.setup}" for table, outcomes in tables]
    return HEADER + "".join(parts) + FOOTER + ", ".join(f"{name} {number}" for name, number in versions.items()) + ".\n"


def rows(outcomes: Outcomes) -> str:
    """Return a table's rows, with how many traps each tool passed in the last."""
    tools = list(next(iter(outcomes.values())))
    lines = [f"| trap | {' | '.join(f'`{tool}`' for tool in tools)} |", "|---" * (len(tools) + 1) + "|"]
    for trap, row in outcomes.items():
        cells = [f"**{cell.verdict}**: {_escaped(cell.seen)}" for cell in row.values()]
        lines.append(f"| {trap} | {' | '.join(cells)} |")
    counts = [sum(row[tool].passed for row in outcomes.values()) for tool in tools]
    lines.append(f"| **passed** | {' | '.join(f'{count} of {len(outcomes)}' for count in counts)} |")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    for mark in "|*_<`[":
        text = text.replace(mark, f"\\{mark}")
    return text
