"""Tables of rows from files and from the hub, read by the datasets library."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft.bounds import check_unpacked
from lightning_ft.extras import require
from lightning_ft.resources import existing, nearest_path, resolve

if TYPE_CHECKING:
    from datasets import Dataset

# RecBole's tables, whose columns have their type behind their name
ATOMIC = (".inter", ".item", ".user")
READERS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
READERS |= dict.fromkeys(ATOMIC, "csv")


def read_table(source: str, what: str, needed_by: str, extra: str = "text", *, as_text: bool = False) -> "Dataset":
    """Read a table.

    Args:
        source: A CSV, TSV, JSONL or Parquet file (``.gz`` too), an ``.inter``, ``.item`` or ``.user`` table of RecBole
            (https://recbole.io/docs/user_guide/data/atomic_files.html), a folder that ``datasets`` saved,
            ``package://``, or the name of a data set on the hub; ``name:part`` takes another part than the argument
            says.
        what: What it is for, as messages say it: ``"train_file"``.
        needed_by: The class that reads it, for the message where ``datasets`` is missing.
        extra: The extra that installs what this class needs.
        as_text: Whether cells of CSV are to be the texts that stand there: ``007``, ``1.0``, and nothing for nothing.

    Returns:
        All its rows.

    Raises:
        FileNotFoundError: If it is neither here nor to be had from the hub.
        ValueError: If it has no rows, or cannot be read as what its name says.
    """
    datasets = require("datasets", extra=extra, needed_by=needed_by)
    path = Path(resolve(source)).expanduser()
    if path.is_dir():
        table = _saved(datasets, path, what)
    elif path.exists():
        table = _file(datasets, path, what, as_text=as_text)
    else:
        table = _hub(datasets, source, path, what)
    if not len(table):
        raise ValueError(f"{what} {source!r} has no rows")
    return _with_class_names(datasets, table)


def check_columns(table: "Dataset", columns: Mapping[str, str | None], where: str) -> None:
    """Raise unless a table has all the columns asked for.

    Args:
        table: The table.
        columns: From the argument that names a column to its name: ``{"text_column": "text"}``; None for none.
        where: The file, for the message.

    Raises:
        ValueError: If one is missing; lists those that are there.
    """
    for argument, column in columns.items():
        if column is not None and column not in table.column_names:
            near = get_close_matches(column, table.column_names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{where} has no column {column!r} ({argument}); it has {', '.join(table.column_names)}{hint}"
            )


def filtered(table: "Dataset", where: Mapping[str, Any], place: str) -> "Dataset":
    """Return the rows whose columns have the values asked for.

    Args:
        table: The table.
        where: From column to value, or to a list of values.
        place: The file, for messages.

    Raises:
        ValueError: If a column is missing, or no row is left; lists the values that are there.
    """
    for column, value in where.items():
        check_columns(table, {"where": column}, place)
        wanted = {str(item) for item in (value if isinstance(value, list | tuple) else [value])}
        values = [str(item) for item in table[column]]
        if strange := sorted(wanted - set(values)):
            there = sorted(set(values))
            near = get_close_matches(strange[0], there, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{place}: no row has {column} = {strange[0]}; there are {', '.join(there[:20])}{hint}")
        rows = [row for row, item in enumerate(values) if item in wanted]
        table = table.select(rows)
        if not rows:
            raise ValueError(f"{place}: no row has all of {dict(where)}")
    return table


def kind_of(path: Path) -> str | None:
    """Return what reads a file: ``"csv"``, ``"json"`` or ``"parquet"``; None where nothing does."""
    return READERS.get(_suffix_of(path))


def read_lines(path: Path) -> "Dataset":
    """Return the lines of a text file, blank ones left out, in the column ``text``."""
    datasets = require("datasets", extra="text", needed_by="predict_file")
    check_unpacked(path, "predict_file")
    lines = datasets.load_dataset("text", data_files={"train": _literal(path)}, split="train")
    blank = {row for row, line in enumerate(lines["text"]) if not line.strip()}
    return lines.select([row for row in range(len(lines)) if row not in blank]) if blank else lines


def _suffix_of(path: Path) -> str:
    suffixes = [suffix for suffix in path.suffixes if suffix not in (".gz", ".bz2", ".xz", ".zst")]
    return suffixes[-1].lower() if suffixes else ""


def _literal(path: Path) -> str:
    """Return a path for ``datasets``, which would read glob characters in a file's own name as a pattern."""
    return str(path).replace("[", "[[]").replace("*", "[*]").replace("?", "[?]")


def _file(datasets: Any, path: Path, what: str, *, as_text: bool) -> "Dataset":
    suffix = _suffix_of(path)
    kind = READERS.get(suffix)
    if kind is None:
        raise ValueError(
            f"{what} {str(path)!r}: cannot read {path.suffix or 'a file without a suffix'}; "
            f"known are {', '.join(READERS)}, a saved folder, and names of the hub"
        )
    if path.stat().st_size == 0:
        raise ValueError(f"{what} {str(path)!r} is empty")
    check_unpacked(path, what)
    options: dict[str, Any] = {"sep": "\t"} if suffix in (".tsv", *ATOMIC) else {}
    try:
        if as_text and kind == "csv":
            options |= _text_options(datasets, path, options)
        table = datasets.load_dataset(kind, data_files={"train": _literal(path)}, split="train", **options)
    except Exception as error:
        if "corresponds to no data" in str(error):
            raise ValueError(f"{what} {str(path)!r} has no rows") from error
        # datasets wraps the reader's error in one of its own that names no file
        cause = error.__cause__ or error
        raise ValueError(f"{what} {str(path)!r} cannot be read as {kind}: {str(cause).splitlines()[0]}") from error
    return table.rename_columns({n: n.partition(":")[0] for n in table.column_names}) if suffix in ATOMIC else table


def _text_options(datasets: Any, path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what keeps the cells of a CSV file as they stand."""
    import pandas  # datasets reads CSV by it

    names = pandas.read_csv(path, nrows=0, **options).columns
    return {"features": datasets.Features({name: datasets.Value("string") for name in names}), "keep_default_na": False}


def _saved(datasets: Any, path: Path, what: str) -> "Dataset":
    try:
        table = datasets.load_from_disk(str(path))
    except IndexError as error:  # its way to say that there is none
        raise ValueError(f"{what} {str(path)!r} has no rows") from error
    except FileNotFoundError as error:
        raise ValueError(f"{what} {str(path)!r} is a folder, but none that the datasets library saved") from error
    if isinstance(table, dict):
        for part in _parts(what):
            if part in table:
                return table[part]
        raise ValueError(f"{what} {str(path)!r} has the parts {', '.join(table)}; give the folder of one")
    return table


def _hub(datasets: Any, source: str, path: Path, what: str) -> "Dataset":
    name, _, part = source.partition(":")
    if path.suffix in READERS or source.startswith((".", "/", "~")) or name.count("/") > 1:
        existing(source, what)
    try:
        there = datasets.get_dataset_split_names(name)
        # validation by the training part would be no validation
        chosen = part or next((part for part in _parts(what) if part in there), None)
        if chosen is not None:
            return datasets.load_dataset(name, split=chosen)
    except Exception as error:
        raise FileNotFoundError(
            f"{what}: {source!r} is no file here{nearest_path(path.absolute())}, and no data set that the hub gives "
            f"({str(error).splitlines()[0]})"
        ) from error
    raise ValueError(f"{what}: {name!r} has no part for it; name one of {', '.join(there)}, as in {name}:{there[0]}")


def _parts(what: str) -> tuple[str, ...]:
    """Return the names under which data sets have the part that an argument asks for."""
    part = what.removesuffix("_file")
    return ("val", "validation", "dev") if part == "val" else ("predict", "test") if part == "predict" else (part,)


def _with_class_names(datasets: Any, table: "Dataset") -> "Dataset":
    """Return a table whose class columns hold names instead of numbers."""
    for column, feature in table.features.items():
        if isinstance(feature, datasets.ClassLabel):
            names = [None if number is None or number < 0 else feature.names[number] for number in table[column]]
            table = table.remove_columns(column).add_column(column, names)
    return table
