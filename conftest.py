"""The pages' code blocks are tests: each page has a folder and a namespace of its own."""

import os
import sys
import tempfile
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE
from pathlib import Path
from typing import Any

import torch
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

from docs.console import Console, write_recipe

REPOSITORY = Path(__file__).parent
CACHE = tempfile.TemporaryDirectory(prefix="cache-of-pages-")
VARIABLES = {
    **os.environ,
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_CACHE": f"{CACHE.name}/datasets",
    "LIGHTNING_FT_CACHE": f"{CACHE.name}/lightning_ft",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "COLUMNS": "100",
}


def enter_page(namespace: dict[str, Any]) -> None:
    """Give a page a folder with the recipes in it, one thread of the CPU, and the variables of its commands."""
    folder = tempfile.TemporaryDirectory(prefix="page-")
    (Path(folder.name) / "recipes").symlink_to(REPOSITORY / "recipes")
    namespace["__name__"] = "page"
    namespace["__before__"] = (folder, Path.cwd(), dict(os.environ), torch.get_num_threads())
    os.environ.update(VARIABLES)
    torch.set_num_threads(1)
    os.chdir(folder.name)


def leave_page(namespace: dict[str, Any]) -> None:
    """Put everything back."""
    folder, working_folder, variables, num_threads = namespace["__before__"]
    os.chdir(working_folder)
    os.environ.clear()
    os.environ.update(variables)
    torch.set_num_threads(num_threads)
    folder.cleanup()


pytest_collect_file = Sybil(
    parsers=[
        PythonCodeBlockParser(doctest_optionflags=ELLIPSIS | NORMALIZE_WHITESPACE),
        CodeBlockParser("console", Console(VARIABLES)),
        CodeBlockParser("yaml", write_recipe),
        SkipParser(),
    ],
    patterns=["README.md", "docs/*.md", "docs/tasks/*.md"],
    setup=enter_page,
    teardown=leave_page,
).pytest()
