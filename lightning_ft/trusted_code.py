"""What of other people's code a recipe may have imported: told before it is, or refused."""

import re
import sys
from collections.abc import Callable
from typing import TypeVar

from jsonargparse import set_parsing_settings

# whose classes a recipe may name without a word: they do what the recipe says, and nothing that it hides
TRUSTED = (
    *("lightning_ft", "lightning_ft_callbacks", "lightning.pytorch", "torch.optim", "torch.nn", "torchmetrics"),
    *("datetime.timedelta", "pathlib.Path", "pathlib.PosixPath"),
)
Parsed = TypeVar("Parsed")
DENIED = re.compile(r"Importing '([^']+)' is not allowed, denied by the '([^']+)' entry")

_allowed: list[str] = []


def trusting(parse: Callable[[], Parsed], *, safe: bool) -> Parsed:
    """Parse a recipe, and name each class of other people before it is imported.

    Args:
        parse: What parses it.
        safe: Whether to refuse such a class instead.

    Raises:
        ValueError: If the recipe is wrong, or names such a class, and that is to be refused.
    """
    # a command that ran before in this process may have allowed some more
    set_parsing_settings(import_path_denylist=["*", *_allowed], import_path_allowlist=list(TRUSTED))
    while True:
        try:
            return parse()
        except ValueError as error:
            path = denied_path(str(error))
            if path is None:
                raise
            if safe:
                raise ValueError(refusal(path)) from error
            print(f"the recipe names {path}: importing it runs its code", file=sys.stderr, flush=True)
            _allowed.append(path)
            set_parsing_settings(import_path_allowlist=[path])


def denied_path(message: str) -> str | None:
    """Return the class whose import is what a parser's message complains of; None where it is something else.

    What jsonargparse itself denies, as ``os.system``, is something else: nobody can allow it.
    """
    found = DENIED.search(" ".join(message.split()))
    return found[1] if found is not None and found[2] in ("*", *_allowed) else None


def refusal(path: str) -> str:
    """Return the sentence that refuses a class."""
    return (
        f"--safe refuses {path}, which the recipe names: importing it runs its code, and it is none of lightning_ft, "
        "lightning.pytorch, torch.optim, torch.nn and torchmetrics"
    )
