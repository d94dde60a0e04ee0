"""``package://name/path``: files that an installed Python package ships."""

from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

SCHEME = "package://"


def resolve(path: str | Path) -> str:
    """Turn ``package://name/path`` into the path of that file or folder; return anything else as it is.

    The package is located without importing it, so none of its code runs.

    Args:
        path: A path, a model name, or ``package://name/path/inside``.

    Returns:
        A path in the file system, or ``path`` itself where it does not start with ``package://``.

    Raises:
        FileNotFoundError: If the package is not installed, or has no such file; names the nearest one.
    """
    text = str(path)
    if not text.startswith(SCHEME):
        return text
    name, _, inside = text.removeprefix(SCHEME).partition("/")
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"{text}: no package {name!r} is installed here")
    roots = [Path(location) for location in spec.submodule_search_locations]
    for root in roots:
        target = (root / inside).resolve()
        if target.exists() and target.is_relative_to(root.resolve()):
            return str(target)
    raise FileNotFoundError(f"{text}: package {name!r} has no {inside!r}{nearest_path(roots[0] / inside)}")


def nearest_path(path: Path) -> str:
    """Return ``"; did you mean ...?"`` for a path that does not exist, or an empty string.

    Args:
        path: The missing path; its first missing part is compared with what stands beside it.
    """
    for parent, part in zip(reversed(path.parents), path.parts[1:], strict=True):
        if parent.is_dir() and not (parent / part).exists():
            near = get_close_matches(part, [entry.name for entry in parent.iterdir()], n=1)
            return f"; did you mean {str(parent / near[0])!r}?" if near else ""
    return ""


def existing(path: str | Path, what: str) -> Path:
    """Return the resolved path of a file or folder that must exist.

    Args:
        path: A path or ``package://`` address.
        what: What it is for, as the message says it: ``"train_file"``.

    Raises:
        FileNotFoundError: If nothing is there; names the nearest existing path.
    """
    target = Path(resolve(path)).expanduser()
    if not target.exists():
        raise FileNotFoundError(f"{what}: no such file or folder: {str(target)!r}{nearest_path(target.absolute())}")
    return target
