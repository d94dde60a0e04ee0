"""Console blocks: the lines that start with ``$`` are run, and what they print is compared with what stands below.

YAML blocks whose first line is a comment with a file's name, ``# mails.yaml``, are written to that file.
"""

import multiprocessing
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, OutputChecker
from pathlib import Path

from sybil import Example

PROMPT = "$ "
SHELL_ONLY = set("|&;<>$*?`(){}")
ERROR = "lightning-ft: "
TIMEOUT = 300  # seconds

# The command's imports take longer than most of what the pages show. So one process imports them for all command lines,
# and each line runs in a fork of it.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["lightning_ft.cli", "transformers.models.bert.modeling_bert", "datasets", "timm"])


class Console:
    """Runs console blocks.

    Args:
        variables: The environment of the commands.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables = dict(variables)

    def __call__(self, example: Example) -> str:
        """Run a block; return what differs from the page, or an empty string."""
        for command, wanted in commands(example.parsed):
            status, output = self.run(command)
            shows_error = any(line.startswith(ERROR) for line in wanted.splitlines())
            if (status != 0) != shows_error:
                return f"$ {command}\nexit status {status}\n{output}"
            if wanted.strip() and not OutputChecker().check_output(wanted, output, ELLIPSIS | NORMALIZE_WHITESPACE):
                return f"$ {command}\nexpected:\n{wanted}\ngot:\n{output}"
        return ""

    def run(self, command: str) -> tuple[int, str]:
        """Run a command line in the working folder; return its exit status and all that it prints."""
        words = shlex.split(command)
        if words[0] != "lightning-ft" or SHELL_ONLY & set(command):
            line = ["bash", "-c", command]
            done = subprocess.run(
                line, env=self.variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT
            )
            return done.returncode, done.stdout
        with tempfile.NamedTemporaryFile() as output:
            process = FORKS.Process(target=_command, args=(words[1:], self.variables, str(Path.cwd()), output.name))
            process.start()
            process.join(TIMEOUT)
            process.kill()
            return 0 if process.exitcode == 0 else process.exitcode or 1, Path(output.name).read_text(encoding="utf-8")


def commands(block: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a block, and the output that the page shows for it.

    A line that ends with a backslash goes on in the next one.
    """
    joined = block.replace("\\\n", " ")
    for part in f"\n{joined}".split(f"\n{PROMPT}")[1:]:
        command, _, output = part.partition("\n")
        yield command, f"{output.rstrip()}\n"


def write_recipe(example: Example) -> None:
    """Write a YAML block to the file that its first line names."""
    name = example.parsed.partition("\n")[0].removeprefix("# ")
    if name.endswith(".yaml") and " " not in name:
        Path(name).write_text(example.parsed, encoding="utf-8")


def _command(arguments: list[str], variables: Mapping[str, str], folder: str, output: str) -> None:
    """Be ``lightning-ft``, in a process of its own."""
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    stream = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.argv = ["lightning-ft", *arguments]
    from lightning_ft.__main__ import main

    sys.exit(main())
