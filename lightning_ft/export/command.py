"""``lightning-ft export RUN_FOLDER``: the command."""

import os
import shutil
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from jsonargparse import ArgumentParser

from lightning_ft.config_errors import explain
from lightning_ft.export.check import TOLERANCES, NotEqualError, check_equal, outputs
from lightning_ft.export.format import Format
from lightning_ft.export.model_card import write_card
from lightning_ft.export.onnx_file import OnnxFile
from lightning_ft.export.peft_adapter import PeftAdapter
from lightning_ft.export.preprocessing import check_tokenizer
from lightning_ft.export.rows import real_batches
from lightning_ft.export.tensors_folder import TensorsFolder
from lightning_ft.export.timm_folder import TimmFolder
from lightning_ft.export.torch_program import TorchProgram
from lightning_ft.export.transformers_folder import TransformersFolder
from lightning_ft.run.arguments import RUNS
from lightning_ft.run.finished_run import FinishedRun, find_run, finished_run
from lightning_ft_callbacks.whole_file import sync

FORMATS: dict[str, type[Format]] = {
    kind.name: kind for kind in (TransformersFolder, TimmFolder, TensorsFolder, OnnxFile, TorchProgram, PeftAdapter)
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TOKENIZER = "tokenizer_config.json"
# tried in this order where none is asked for
BY_DEFAULT = (TransformersFolder, TimmFolder, TensorsFolder)


class Parser(ArgumentParser):
    """A parser whose errors are one sentence."""

    arguments: Sequence[str] = ()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what is wrong as one sentence.

        Raises:
            ValueError: Always.
        """
        raise ValueError(explain(message, self, self.arguments)) from ex


def export_command(arguments: Sequence[str], *, safe: bool = False) -> None:
    """Run ``lightning-ft export``.

    Args:
        arguments: The command line behind ``export``.
        safe: Whether to refuse other people's classes in the run's configuration.

    Raises:
        FileNotFoundError: If there is no such run, or its data is gone.
        FileExistsError: If the output folder is there, and ``--overwrite`` is not.
        ValueError: If the command line is wrong, the format has no place for the run's model, or what was written does
            not give the model's outputs.
    """
    parser = Parser(
        prog="lightning-ft export",
        description="Write a finished run's model as a folder that other programs load.",
        allow_abbrev=False,
    )
    parser.arguments = arguments
    parser.add_argument("run", type=str, help="A run's folder, or `last`.")
    parser.add_argument(
        "--format",
        type=Literal[tuple(FORMATS)] | None,  # type: ignore[valid-type]
        default=None,
        help="What to write; by default transformers or timm where the model fits exactly, else safetensors.",
    )
    parser.add_argument("--output", type=str | None, default=None, help="The new folder; by default in the run's own.")
    parser.add_argument("--overwrite", type=bool, default=False, nargs="?", const=True, help="Replace that folder.")
    parser.add_argument(
        "--dtype", type=Literal["float32", "float16", "bfloat16"], default="float32", help="The weights' numbers."
    )
    parser.add_argument(
        "--rows", type=str | None, default=None, help="A file of rows to check on, instead of the run's own data."
    )
    parser.add_argument("--trainer.default_root_dir", type=str, default=RUNS, help="Where `last` is looked for.")
    options = parser.parse_args(list(arguments))
    run = find_run(options.run, options.trainer.default_root_dir)
    folder, kind, found = export(
        run,
        options.format,
        output=options.output,
        overwrite=options.overwrite,
        dtype=options.dtype,
        rows=options.rows,
        safe=safe,
    )
    print(f"format: {kind}, equal to the run's model on real rows: largest difference {found:.1g}")
    print(f"exported: {folder}")


def export(
    run: Path,
    format: str | None = None,  # noqa: A002 - the command's name for it
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    dtype: str = "float32",
    rows: str | None = None,
    safe: bool = False,
) -> tuple[Path, str, float]:
    """Write a run's model as a folder that others load, once its outputs are seen to be the model's.

    Args:
        run: The run's folder.
        format: One of ``FORMATS``; None for transformers or timm where the model fits exactly, else safetensors.
        output: The new folder; None for ``export/FORMAT`` in the run's.
        overwrite: Whether a folder that is there is replaced.
        dtype: The numbers that weights are written as: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        rows: A file of rows to check on, which need no labels; None for the run's validation rows.
        safe: Whether to refuse other people's classes in the run's configuration.

    Returns:
        The folder, the format, and the largest difference between its outputs and the model's.

    Raises:
        FileNotFoundError: If there is no such run, or its data is gone.
        FileExistsError: If the folder is there and must not be replaced.
        ValueError: If the format has no place for the run's model.
        NotEqualError: If what was written does not give the model's outputs.
    """
    if format is not None and format not in FORMATS:
        near = get_close_matches(format, FORMATS, n=1)
        raise ValueError(
            f"no format {format!r}; there are {', '.join(FORMATS)}" + f"; did you mean {near[0]!r}?" * bool(near)
        )
    kinds = BY_DEFAULT if format is None else (FORMATS[format],)
    for kind in kinds:
        if DTYPES[dtype] not in kind.dtypes and format is not None:
            raise ValueError(f"--format {kind.name} is written in float32 only, but --dtype is {dtype}")
    for kind in kinds:
        _target(run, kind, output, overwrite)  # before any work
    finished = finished_run(
        run, merge=kinds[0].merges, data=None if rows is None else {"predict_file": rows}, safe=safe
    )
    candidates = [kind(finished) for kind in kinds]
    reasons = {one.name: one.refusal() for one in candidates}
    candidates = [one for one in candidates if reasons[one.name] is None]
    if not candidates:
        raise ValueError(f"--format {format}: {reasons[str(format)]}; {_others(finished, str(format))}")
    batches = real_batches(finished)
    wanted = outputs(finished.model, batches)
    for number, one in enumerate(candidates):
        try:
            return _written(one, _target(run, type(one), output, overwrite), batches, wanted, DTYPES[dtype])
        except NotEqualError as error:
            if number + 1 == len(candidates):
                raise NotEqualError(f"--format {one.name}: {error}; {_others(finished, one.name)}") from error
            print(f"no {one.name} folder: {error}")
    raise AssertionError("unreachable")


def _written(one: Format, target: Path, batches: Any, wanted: Any, dtype: torch.dtype) -> tuple[Path, str, float]:
    """Write beside the folder's place, load what was written, compare, and rename."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        one.write(partial, batches, wanted, dtype)
        tolerance = max(one.exact, TOLERANCES[dtype] if dtype != torch.float32 else 0.0)
        found = check_equal(
            one.reader(partial), batches, wanted, tolerance=tolerance, what=f"what was written as {one.name}"
        )
        if (partial / TOKENIZER).is_file():
            check_tokenizer(one.run, partial, batches)
        write_card(one, partial, name=target.name, difference=found, num_rows=sum(map(len, wanted)), dtype=dtype)
        _sync(partial)
        _replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target, one.name, found


def _target(run: Path, kind: type[Format], output: str | Path | None, overwrite: bool) -> Path:
    """Return the folder to be written.

    Raises:
        FileExistsError: If it is there and must not be replaced, or holds what no export wrote.
    """
    target = Path(output) if output is not None else run / "export" / kind.name
    if not target.exists():
        return target
    if not overwrite:
        raise FileExistsError(f"{str(target)!r} is there already: give --overwrite, or another --output")
    if not target.is_dir() or (any(target.iterdir()) and not (target / "README.md").is_file()):
        raise FileExistsError(f"{str(target)!r} is no folder that an export wrote, so it is not replaced")
    return target


def _replace(partial: Path, target: Path) -> None:
    """Give a folder its name; the one that stood there goes only when this one is whole."""
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        target.replace(old)
    try:
        partial.replace(target)
    except OSError:
        if old.exists():
            old.replace(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    """See to it that files are on the disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            sync(file)


def _others(run: FinishedRun, name: str) -> str:
    """Return the formats that are not refused, for a message."""
    others = [other for other, kind in FORMATS.items() if other != name and kind(run).refusal() is None]
    return f"formats for it: {', '.join(others)}"
