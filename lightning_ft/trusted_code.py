"""What of other people's code a recipe may have imported: told before it is, or refused."""

import re

from jsonargparse import set_parsing_settings

# whose classes a recipe may name without a word: they do what the recipe says, and nothing that it hides
TRUSTED = (
    *("lightning_ft", "lightning_ft_callbacks", "lightning.pytorch", "torch.optim", "torch.nn", "torchmetrics"),
    *("datetime.timedelta", "pathlib.Path", "pathlib.PosixPath"),
)
DENIED = re.compile(r"Importing '([^']+)' is not allowed, denied by the '([^']+)' entry")

_allowed: list[str] = []


def distrust() -> None:
    """Let recipes name what is trusted, and nothing else: jsonargparse asks before it imports."""
    # a command that ran before in this process may have allowed some more
    set_parsing_settings(import_path_denylist=["*", *_allowed], import_path_allowlist=list(TRUSTED))


def denied_path(message: str) -> str | None:
    """Return the class whose import is what a parser's message complains of; None where it is something else.

    What jsonargparse itself denies, as ``os.system``, is something else: nobody can allow it.
    """
    found = DENIED.search(" ".join(message.split()))
    return found[1] if found is not None and found[2] in ("*", *_allowed) else None


def allow(path: str) -> None:
    """Let recipes of this command name a class."""
    _allowed.append(path)
    set_parsing_settings(import_path_allowlist=[path])


def refusal(path: str) -> str:
    """Return the sentence that refuses a class."""
    return (
        f"--safe refuses {path}, which the recipe names: importing it runs its code, and it is none of lightning_ft, "
        "lightning.pytorch, torch.optim, torch.nn and torchmetrics"
    )
