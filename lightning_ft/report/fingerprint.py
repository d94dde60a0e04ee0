"""The fingerprint of data files: by their content, so that moved or renamed data is recognised."""

from hashlib import file_digest, sha256
from pathlib import Path

from lightning_ft.resources import resolve


def fingerprint(source: str | Path) -> str:
    """Return the first 16 digits of the SHA-256 of a file; of a folder, of its files' names and sizes.

    Args:
        source: A file, a folder, a ``package://`` address, or the name of a data set on the hub.

    Returns:
        The digits; an empty string where it is neither a file nor a folder here.
    """
    path = Path(resolve(source)).expanduser()
    if path.is_file():
        with path.open("rb") as stream:
            return file_digest(stream, "sha256").hexdigest()[:16]
    if not path.is_dir():
        return ""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = "".join(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\n" for file in files)
    return sha256(lines.encode(errors="surrogateescape")).hexdigest()[:16]
