"""WrittenRows: the rows of a file to predict as they stand in it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft.data.tables import kind_of, read_lines, read_table
from lightning_ft.resources import resolve

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset


class WrittenRows:
    """Rows that are written again beside what is predicted for them.

    They lie on the disk, as Arrow files that ``datasets`` maps into memory; only what is asked for is read.

    Args:
        table: The rows.
        lines: The lines of a JSONL file, a row each, where a row is to be what its line says; None for the table's.
        typed: Whether the table's types are the file's own, and not guessed from texts.
    """

    def __init__(self, table: "Dataset", lines: "Dataset | None" = None, *, typed: bool = False) -> None:
        self.table = table
        self.lines = lines
        self.typed = typed

    @classmethod
    def of_file(cls, source: str, what: str, needed_by: str, extra: str = "text") -> "WrittenRows":
        """Return the rows of a table: cells of CSV as their texts, rows of JSONL as their lines.

        Args:
            source: The table, as ``read_table`` takes it.
            what: What it is for, as messages say it: ``"predict_file"``.
            needed_by: The class that reads it.
            extra: The extra that installs what this class needs.
        """
        path = Path(resolve(source)).expanduser()
        kind = kind_of(path) if path.is_file() else None
        if kind == "csv":
            return cls(read_table(source, what, needed_by, extra, as_text=True))
        table = read_table(source, what, needed_by, extra)
        lines = read_lines(path) if kind == "json" else None
        # a .json file may be one document instead of lines
        whole = lines is not None and len(lines) == len(table)
        return cls(table, lines if whole else None, typed=kind != "json")

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.table)

    @property
    def columns(self) -> list[str]:
        """The columns, in the order of the file."""
        return list(self.table.column_names)

    @property
    def schema(self) -> "pyarrow.Schema | None":
        """The types of the columns, where the file has types."""
        return self.table.features.arrow_schema.remove_metadata() if self.typed else None

    def select(self, rows: Sequence[int]) -> "WrittenRows":
        """Return some of the rows."""
        lines = None if self.lines is None else self.lines.select(rows)
        return WrittenRows(self.table.select(rows), lines, typed=self.typed)

    def rows(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Return the rows ``start`` to ``stop``."""
        chosen = range(start, min(stop, len(self.table)))
        if self.lines is None:
            return self.table.select(chosen).to_list()
        return [json.loads(line) for line in self.lines.select(chosen)["text"]]
