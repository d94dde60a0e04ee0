"""Language models from end to end: a small GPT-2 learns reviews, goes on with prompts, and a BERT fills gaps."""

import csv
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from task_fits import Task

from lightning_ft import CausalLMHead, FineTuner, LanguageModelingData, MaskedLMHead, TransformersBackbone
from lightning_ft.tasks.targets import IGNORED

Command = Callable[..., Any]


def unigram_perplexity(data: LanguageModelingData) -> float:
    """Return the perplexity of a model that knows how frequent each token is in training, and nothing else."""
    counts = Counter(t for row in data._samples["train"] for t in row["labels"] if t != IGNORED)
    total, size = sum(counts.values()), len(data.tokenizer)
    tokens = [t for row in data._samples["test"] for t in row["labels"] if t != IGNORED]
    return math.exp(-sum(math.log((counts[t] + 1) / (total + size)) for t in tokens) / len(tokens))


def trained(command: Command, backbone: Path, head: str, table: Path, *options: str) -> Any:
    result = command(
        "fit",
        *("--model.backbone", "TransformersBackbone", "--model.backbone.name", backbone, "--model.head", head),
        *("--data", "LanguageModelingData", "--data.train_file", table, *options),
    )
    assert result.code == 0, result.err
    return result


def scores(command: Command) -> dict[str, float]:
    lines = command("test", "--run", "last").out.splitlines()
    return {name: float(value) for name, value in (line.split() for line in lines if line.startswith("test/"))}


def test_gpt2_beats_word_frequencies_shows_what_it_writes_and_goes_on_with_prompts(
    command: Command, tiny_gpt2: Path, reviews: Callable[..., Path], tmp_path: Path
) -> None:
    meanings = {"red": "stop", "green": "go", "blue": "look", "white": "wait"}
    table = reviews(rows=[(f"{colour} means {work}", "") for colour, work in meanings.items()] * 60)
    recipe = tmp_path / "samples.yaml"
    recipe.write_text(
        "trainer:\n  callbacks:\n"
        "    - {class_path: lightning_ft.SampleGenerations, init_args: {prompts: [red means]}}\n"
    )
    trained(
        command,
        tiny_gpt2,
        "CausalLMHead",
        table,
        *("--config", str(recipe), "--model.lr", "0.01", "--model.head.max_new_tokens", "30"),
        *("--trainer.max_epochs", "10", "--data.batch_size", "2"),
    )
    data = LanguageModelingData(str(table), tokenizer=str(tiny_gpt2))
    data.setup("fit")
    data.setup("test")
    found, frequencies = scores(command), unigram_perplexity(data)
    assert found["test/perplexity"] < 0.5 * frequencies
    assert found["test/perplexity"] == pytest.approx(math.exp(found["test/loss"]), rel=1e-3)
    (run,) = (tmp_path / "runs").iterdir()
    written = [json.loads(line) for line in (run / "generations.jsonl").read_text().splitlines()]
    assert len(written) == 10
    assert all(row["prompt"] == "red means" and row["text"] for row in written)
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("text\nred means\ngreen means\n")
    asked = ("--data.predict_file", prompts, "--predictions.file", "more.csv")
    assert command("predict", "--run", "last", *asked).code == 0
    with (tmp_path / "more.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["text"] for row in rows] == ["red means", "green means"]
    assert [row["prediction"] for row in rows] == [" stop", " go"]


def test_bert_fills_gaps(command: Command, tiny_bert: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n\n".join(["red means stop", "green means go"] * 60))
    trained(
        command,
        tiny_bert,
        "MaskedLMHead",
        texts,
        *("--data.objective", "masked", "--data.mask_share", "0.3", "--model.lr", "0.01", "--trainer.max_epochs", "6"),
    )
    gaps = tmp_path / "gaps.jsonl"
    gaps.write_text(json.dumps({"text": "red [MASK] [MASK]"}) + "\n")
    asked = ("--data.predict_file", gaps, "--predictions.file", "filled.jsonl")
    assert command("predict", "--run", "last", *asked).code == 0
    assert json.loads((tmp_path / "filled.jsonl").read_text())["prediction"] == ["means", "stop"]


def test_a_run_starts_from_the_language_model_of_another(
    command: Command, tiny_bert: Path, reviews: Callable[..., Path], tmp_path: Path
) -> None:
    table = reviews(num_rows=60)
    masked = ("--data.objective", "masked", "--trainer.max_epochs", "1", "--model.lr", "0.01")
    trained(command, tiny_bert, "MaskedLMHead", table, *masked)
    (first,) = (tmp_path / "runs").iterdir()
    backbone = TransformersBackbone(str(first))
    again = MaskedLMHead(backbone.features)
    from lightning_ft import load_checkpoint

    saved = load_checkpoint(first / "checkpoints" / "best.ckpt")["state_dict"]
    for name, value in again.state_dict().items():
        assert value.equal(saved[f"head.{name}"])


def test_phases_rates_and_the_cache(tiny_gpt2: Path, reviews: Callable[..., Path]) -> None:
    table = reviews(num_rows=60)
    task = Task(
        lambda: FineTuner(TransformersBackbone(str(tiny_gpt2)), CausalLMHead, lr=3e-3),
        lambda: LanguageModelingData(str(table), batch_size=2),
    )
    schedule: list[Any] = [{"train": ["backbone.h.1"], "epochs": 2}, {"train": ["*"]}]
    task.assert_the_cache_changes_nothing(schedule)
    task.assert_a_rate_is_found()


def test_the_cache_is_refused_where_other_words_are_hidden_in_each_epoch(
    tiny_bert: Path, reviews: Callable[..., Path]
) -> None:
    table = reviews(num_rows=60)
    task = Task(
        lambda: FineTuner(TransformersBackbone(str(tiny_bert)), MaskedLMHead, lr=3e-3),
        lambda: LanguageModelingData(str(table), objective="masked"),
    )
    with pytest.raises(
        ValueError, match="training data: MaskedRows gives another sample for the same number each time"
    ):
        task.assert_the_cache_changes_nothing()
    task.assert_a_rate_is_found()
