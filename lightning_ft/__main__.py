"""``lightning-ft``: the command."""

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The command line without the program; None for that of the process.

    Returns:
        0, 1 where training failed, or 2 where the input is wrong: what is wrong stands on stderr in one sentence, with
        ``--debug`` behind its traceback.

    Raises:
        SystemExit: If a signal stopped it, with 128 and the signal's number, as shells have it.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug, safe = "--debug" in given, "--safe" in given
    given = [argument for argument in given if argument not in ("--debug", "--safe")]

    from lightning_ft.quiet import quiet

    quiet()
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    sys.path.append(str(Path.cwd()))  # one's own classes beside the recipe, as with `python -m`
    try:
        _run(given, safe)
    except (ValueError, OSError, ImportError, MisconfigurationException) as error:
        if debug:
            traceback.print_exc()
            return 2
        print(f"lightning-ft: {one_sentence(error)}", file=sys.stderr)
        return 2
    except (FloatingPointError, MemoryError) as error:
        if debug:
            traceback.print_exc()
        print(f"lightning-ft: {error or 'out of memory'}", file=sys.stderr)
        return 1
    return 0


def _run(arguments: list[str], safe: bool) -> None:
    """Run the command that the first argument names; Lightning's are those of the CLI."""
    command, rest = arguments[:1], arguments[1:]
    if command == ["report"]:
        from lightning_ft.report.command import report_command

        report_command(rest, safe=safe)
    elif command == ["export"]:
        from lightning_ft.export.command import export_command

        export_command(rest, safe=safe)
    else:
        from lightning_ft.cli import Command
        from lightning_ft.run.arguments import expand

        Command(expand(arguments), safe=safe)


def one_sentence(error: BaseException) -> str:
    """Return an error's message on one line; of one that a worker process raised, the last line of its traceback."""
    from lightning_ft.config_errors import CLOSE, OPEN, said_by_class

    text = str(error.args[1] if isinstance(error, OSError) and len(error.args) > 1 and not error.filename else error)
    text = said_by_class(text) or text
    text = text.replace(OPEN, "").replace(CLOSE, "")  # where no outer parser has taken them off
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and "DataLoader worker process" in lines[0]:
        return lines[-1].partition(": ")[2]
    return " ".join(lines) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
