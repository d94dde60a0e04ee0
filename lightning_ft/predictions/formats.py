"""The forms of a file of predictions: rows of the input with what was predicted for them."""

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft.extras import require

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, Any]
# rows and what was predicted for them, some at a time; called once for each time that they are needed
Chunks = Callable[[], Iterator[tuple[list[Row], list[Row]]]]


class Format(ABC):
    """A form in which predictions are written.

    Args:
        columns: The columns of the input, in their order.
        schema: Their types, where the input has types.
    """

    def __init__(self, columns: Sequence[str], schema: "pyarrow.Schema | None") -> None:
        self.columns = list(columns)
        self.schema = schema

    @abstractmethod
    def write(self, path: Path, chunks: Chunks) -> None:
        """Write a whole file.

        Args:
            path: The file.
            chunks: Returns the rows and what was predicted for them, from the first on.
        """


class Csv(Format):
    """Cells between commas; a column a probability, and ``|`` between names."""

    separator: ClassVar[str] = ","

    def write(self, path: Path, chunks: Chunks) -> None:
        """Write a whole file."""
        with path.open("w", newline="", encoding="utf-8") as stream:
            table = None
            for rows, outputs in chunks():
                cells = [{**row, **_cells(output)} for row, output in zip(rows, outputs, strict=True)]
                if table is None:
                    names = [*self.columns, *_cells(outputs[0])]
                    table = csv.DictWriter(stream, fieldnames=names, delimiter=self.separator)
                    table.writeheader()
                table.writerows({name: _text(value) for name, value in row.items()} for row in cells)


class Tsv(Csv):
    """Cells between tabs."""

    separator = "\t"


class Jsonl(Format):
    """A JSON object a line."""

    def write(self, path: Path, chunks: Chunks) -> None:
        """Write a whole file."""
        with path.open("w", encoding="utf-8") as stream:
            for rows, outputs in chunks():
                stream.writelines(
                    json.dumps({**row, **output}, ensure_ascii=False, default=str) + "\n"
                    for row, output in zip(rows, outputs, strict=True)
                )


class Parquet(Format):
    """Columns with types: those of the input, and of what was predicted what fits all rows."""

    def write(self, path: Path, chunks: Chunks) -> None:
        """Write a whole file, a row group for some rows."""
        arrow: Any = require("pyarrow", extra="text", needed_by="a .parquet file of predictions")
        parquet: Any = require("pyarrow.parquet", extra="text", needed_by="a .parquet file of predictions")
        # a column may hold nothing at first, and only later what says its type: so all rows are looked at first
        given, found = self.schema, None
        for rows, outputs in chunks():
            if self.schema is None:
                given = _together(arrow, given, _table(arrow, self.columns, rows).schema)
            flats = [flat(output) for output in outputs]
            found = _together(arrow, found, _table(arrow, list(flats[0]), flats).schema)
        schema = arrow.schema(
            [field.with_type(_known(arrow, field.type)) for field in [*(given or ()), *(found or ())]]
        )
        with parquet.ParquetWriter(path, schema) as writer:
            for rows, outputs in chunks():
                both = [{**row, **flat(output)} for row, output in zip(rows, outputs, strict=True)]
                writer.write_table(arrow.Table.from_pylist(both, schema=schema))


class Document(Format):
    """One JSON document of a form that the data knows; its rows are in memory together.

    Args:
        document: Makes the document of rows with their predictions.
    """

    def __init__(self, document: Callable[[list[Row]], Mapping[str, Any]]) -> None:
        super().__init__([], None)
        self.document = document

    def write(self, path: Path, chunks: Chunks) -> None:
        """Write a whole file."""
        rows = [{**row, **found} for chunk in chunks() for row, found in zip(*chunk, strict=True)]
        with path.open("w", encoding="utf-8") as stream:
            json.dump(self.document(rows), stream, ensure_ascii=False)


FORMATS: dict[str, type[Format]] = {".csv": Csv, ".tsv": Tsv, ".jsonl": Jsonl, ".parquet": Parquet}
SUFFIXES = (*FORMATS, ".json")


def flat(output: Mapping[str, Any]) -> Row:
    """Return what was predicted for a row, with a column for each class's probability."""
    row = {}
    for name, value in output.items():
        if name == "probabilities":
            row |= {f"probability_{label}": share for label, share in value.items()}
        else:
            row[name] = value
    return row


def column_names(output: Mapping[str, Any]) -> list[str]:
    """Return the names of all columns that any form gives a row's output."""
    return list({**output, **_cells(output)})


def _cells(output: Mapping[str, Any]) -> Row:
    """Return what was predicted for a row as a table of texts has it: probabilities and the best ones side by side."""
    row: Row = {}
    for name, value in output.items():
        if name == "top":
            for place, found in enumerate(value, 1):
                row[f"top_{place}"] = found["label"]
                row[f"top_{place}_probability"] = round(found["probability"], 6)
        elif name == "probabilities":
            row |= {f"probability_{label}": round(share, 6) for label, share in value.items()}
        else:
            row[name] = value
    return row


def _text(value: Any) -> Any:
    """Return a cell: names or numbers between |, and what has parts as JSON."""
    if isinstance(value, list) and not any(isinstance(part, list | dict) for part in value):
        return "|".join(map(str, value))
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else value


def _table(arrow: Any, names: Sequence[str], rows: Sequence[Row]) -> Any:
    """Return rows as an Arrow table with the types that fit them.

    Raises:
        ValueError: If a column holds what has no type in common.
    """
    columns = {}
    for name in names:
        try:
            columns[name] = arrow.array([row.get(name) for row in rows])
        except (arrow.ArrowInvalid, arrow.ArrowTypeError) as error:
            raise ValueError(f"column {name!r} has no one type, as Parquet needs ({error}); write .jsonl") from error
    return arrow.table(columns)


def _together(arrow: Any, before: Any, schema: Any) -> Any:
    return schema if before is None else arrow.unify_schemas([before, schema], promote_options="permissive")


def _known(arrow: Any, kind: Any) -> Any:
    """Return a type in which what was never anything but nothing is text."""
    if arrow.types.is_null(kind):
        return arrow.string()
    if arrow.types.is_list(kind):
        return arrow.list_(_known(arrow, kind.value_type))
    if arrow.types.is_struct(kind):
        fields: Iterable[Any] = (kind.field(place) for place in range(kind.num_fields))
        return arrow.struct([field.with_type(_known(arrow, field.type)) for field in fields])
    return kind
