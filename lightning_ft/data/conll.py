"""Texts with a word a line, as the shared tasks of CoNLL have them."""

from collections.abc import Iterator
from pathlib import Path

SUFFIXES = (".txt", ".conll", ".iob", ".iob2", ".bio", ".bioes")
DOCUMENT = "-DOCSTART-"


def read_conll(path: Path, what: str, *, tagged: bool) -> tuple[list[list[str]], list[list[str]]]:
    """Read a file with a word a line and a blank line after each text.

    Columns stand between tabs, or between spaces where a line has no tab. The first is the word, the last its tag.

    Args:
        path: The file, UTF-8.
        what: What it is, for messages: ``"train_file"``.
        tagged: Whether each word must have a tag.

    Returns:
        The words of each text, and their tags; without ``tagged`` empty strings where there is none.

    Raises:
        ValueError: If a word has no tag, with the line; or there is no word.
    """
    words: list[list[str]] = []
    tags: list[list[str]] = []
    open_text = False
    for number, line in _lines(path, what):
        if not line.strip() or line.startswith(DOCUMENT):
            open_text = False
            continue
        columns = line.split("\t") if "\t" in line else line.split()
        word, tag = columns[0].strip(), columns[-1].strip() if len(columns) > 1 else ""
        if not word or (tagged and not tag):
            lacking = "tag" if word else "word"
            raise ValueError(f"{what} {str(path)!r}, line {number}: no {lacking} in {line!r}; expected 'word<tab>tag'")
        if not open_text:
            words.append([])
            tags.append([])
            open_text = True
        words[-1].append(word)
        tags[-1].append(tag)
    if not words:
        raise ValueError(f"{what} {str(path)!r} has no words")
    return words, tags


def _lines(path: Path, what: str) -> Iterator[tuple[int, str]]:
    try:
        yield from enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1)
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} {str(path)!r} is no UTF-8 text: byte {error.start}") from error
