"""What comes from data, made fit to be shown: nothing in it can steer the page around it."""

import re
import unicodedata
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

MOST_CHARACTERS = 300
# marks that change the direction of what stands behind them
STEERING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# a path from a root, a home, or a drive; a name of the hub, package:// and what lies below the working folder are none
PATH = re.compile(r"""(?<![\w.:/\\…])(?:~[\w.-]*|[A-Za-z]:|\.\.?)?(?:[\\/][^\\/\s"',;:]+)+[\\/]?""")
ADDRESS = re.compile(r"""\b(?!package\b|hf\b|hf-hub\b)[a-z][a-z0-9+.-]*://[^\s"',;]+""")
SECRET = re.compile(r"(^|_)(token|password|passwd|secret|api_?key|credentials?)$")


def plain(text: str, most: int = MOST_CHARACTERS) -> str:
    """Return a text without characters that steer what shows it, and of so many characters at most.

    Control characters but ends of lines become spaces, marks of direction and halves of characters are shown as U+FFFD.

    Args:
        text: Any text.
        most: Characters to keep.
    """
    if len(text) > most:
        text = f"{text[: most - 1]}…"
    text = STEERING.sub("\ufffd", text)
    kinds = {"Cc": " ", "Cs": "\ufffd", "Cn": "\ufffd", "Zl": " ", "Zp": " "}
    return "".join(one if one == "\n" else kinds.get(unicodedata.category(one), one) for one in text)


def without_places(value: Any, key: str = "") -> Any:
    """Return plain data whose paths and addresses are their last parts alone, whose secrets are hidden, cut where long.

    Args:
        value: Mappings, lists, and scalars.
        key: The key that it stands under.
    """
    if isinstance(value, Mapping):
        return {without_places(str(name)): without_places(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(inner, key) for inner in value]
    if not isinstance(value, str):
        return value
    if SECRET.search(key.lower()):
        return "(hidden)"
    value = plain(value)
    value = ADDRESS.sub(lambda found: _last(found.group()), value)
    if PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute() or value.startswith("~"):
        return _last(value)  # the whole of it is a path, spaces and all
    return PATH.sub(lambda found: _last(found.group()), value)


def _last(path: str) -> str:
    return "…/" + re.split(r"[\\/]+", path.rstrip("/\\"))[-1]
