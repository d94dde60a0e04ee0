"""The fingerprint of data files: by their content, so that moved or renamed data is recognised."""

from hashlib import file_digest, sha256
from pathlib import Path

from lightning_ft.resources import resolve

MOST_BYTES = 2**30
PART_BYTES = 2**26


def fingerprint(source: str | Path) -> str:
    """Return the first 16 digits of the SHA-256 of a file; of a folder, of its files' names and sizes.

    Of a file above a GiB it is that of its size, its beginning and its end.

    Args:
        source: A file, a folder, a ``package://`` address, or the name of a data set on the hub.

    Returns:
        The digits; an empty string where it is neither a file nor a folder here.
    """
    path = Path(resolve(source)).expanduser()
    if path.is_file():
        return _digest(path)
    if not path.is_dir():
        return ""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = "".join(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\n" for file in files)
    return sha256(lines.encode(errors="surrogateescape")).hexdigest()[:16]


def _digest(file: Path) -> str:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= MOST_BYTES:
            return file_digest(stream, "sha256").hexdigest()[:16]
        digest = sha256(str(size).encode() + stream.read(PART_BYTES))
        stream.seek(-PART_BYTES, 2)
        digest.update(stream.read())
    return digest.hexdigest()[:16]
