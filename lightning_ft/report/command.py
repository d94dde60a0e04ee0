"""``lightning-ft report``: the page of a run, or of several side by side."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser

from lightning_ft.report.page import run_page, runs_page
from lightning_ft.report.story import story
from lightning_ft.run.finished_run import find_run
from lightning_ft.run.folder import CONFIG
from lightning_ft_callbacks.whole_file import write_whole

REPORT = "report.html"
MOST_RUNS = 12


def report_command(arguments: Sequence[str], *, safe: bool = False) -> None:
    """Run ``lightning-ft report``.

    Args:
        arguments: What stands behind it on the command line.
        safe: Whether to refuse other people's classes in the runs' configurations.

    Raises:
        FileNotFoundError: As ``report`` does.
        ValueError: As ``report`` does, and if an argument is unknown.
    """
    parser = ArgumentParser(prog="lightning-ft report", exit_on_error=False, description=report.__doc__)
    parser.add_argument("runs", nargs="+", type=str, help="Folders of runs, or `last` for the newest one.")
    parser.add_argument("--output", type=str | None, default=None, help="The file that is written.")
    try:
        given = parser.parse_args(list(arguments))
    except ArgumentError as error:
        raise ValueError(
            f"report: {' '.join(str(error).split())}; expected RUN_FOLDER [RUN_FOLDER ...] [--output FILE]"
        ) from error
    print(f"report: {report([find_run(run) for run in given.runs], given.output, safe=safe)}")


def report_of_fit(run: Path) -> str:
    """Make the report of a run that has just ended; return the line that says where it is, or why there is none."""
    try:
        return f"report: {report([run])}"
    except Exception as error:  # the run itself is whole, whatever its report met
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"no report: {reason}"


def report(runs: Sequence[str | Path], output: str | Path | None = None, *, safe: bool | None = None) -> Path:
    """Write the report of finished runs, whole or not at all.

    Args:
        runs: Their folders; one, or several to be compared.
        output: The file; None for ``report.html``, in the folder of a single run, of several in the working folder.
        safe: Whether to refuse other people's classes in their configurations; None to trust them.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If a folder is none, or has no configuration or checkpoint.
        ValueError: If there are no runs or too many, one is given twice, or one of a run's files cannot be read.
    """
    folders = [Path(run) for run in runs]
    if not 1 <= len(folders) <= MOST_RUNS:
        raise ValueError(f"expected 1 to {MOST_RUNS} runs to report on, but got {len(folders)}")
    places = [folder.resolve() for folder in folders]
    if twice := next((folder for folder, place in zip(folders, places, strict=True) if places.count(place) > 1), None):
        raise ValueError(f"the run {str(twice)!r} is given twice")
    file = Path(output) if output is not None else (folders[0] if len(folders) == 1 else Path()) / REPORT
    if file.suffix not in (".html", ".htm"):
        raise ValueError(f"a report is written as .html, but the file is {str(file)!r}")
    if output is not None and not file.parent.is_dir():
        raise FileNotFoundError(f"output: no such folder: {str(file.parent)!r}")
    for folder in folders:
        if not (folder / CONFIG).exists() and (inside := len([*folder.glob(f"*/{CONFIG}")])):
            raise FileNotFoundError(
                f"{str(folder)!r} is no run's folder, but the folder of {inside} of them; did you mean {folder}/*?"
            )
    told = [story(folder, safe=safe) for folder in folders]
    html = run_page(told[0]) if len(told) == 1 else runs_page(told)
    write_whole(file, html)
    return file
