"""Laws of read_table: the same rows from every kind of file, and what it says of files that are none."""

import bz2
import gzip
import lzma

import datasets
import pytest

from lightning_ft.data.labels import Labels
from lightning_ft.data.tables import check_columns, filtered, read_table

ROWS = [
    {"text": 'a "quoted", comma', "label": "good", "stars": 4},
    {"text": "two\nlines", "label": "bad", "stars": 1},
    {"text": "größer, 好", "label": "good", "stars": 5},
]


@pytest.fixture
def table() -> datasets.Dataset:
    return datasets.Dataset.from_list(ROWS)


def read(path):
    return read_table(str(path), "train_file", "TextClassificationData")


@pytest.fixture
def write(table, tmp_path):
    """Return a function that writes the rows as what a file's suffix says."""

    def write_as(name):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        writers = {
            ".csv": table.to_csv,
            ".tsv": lambda path: table.to_csv(path, sep="\t"),
            ".jsonl": table.to_json,
            ".parquet": table.to_parquet,
        }
        writers[path.suffix.lower()](str(path))
        return path

    return write_as


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet", "A.CSV", "a.b.csv", "a b.jsonl"])
def test_each_kind_of_file_gives_the_same_rows(write, name):
    assert read(write(name)).to_list() == ROWS


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.tsv"])
@pytest.mark.parametrize(("suffix", "packer"), [(".gz", gzip), (".bz2", bz2), (".xz", lzma)])
def test_a_packed_file_gives_the_same_rows(write, name, suffix, packer):
    path = write(name)
    packed = path.with_name(path.name + suffix)
    packed.write_bytes(packer.compress(path.read_bytes()))
    path.unlink()
    assert read(packed).to_list() == ROWS


def test_a_saved_folder_gives_the_same_rows(table, tmp_path):
    table.save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved").to_list() == ROWS


def test_a_saved_folder_of_parts_gives_the_part_asked_for(table, tmp_path):
    parts = {"train": table, "test": table.select([0])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved").to_list() == ROWS
    assert read_table(str(tmp_path / "saved"), "test_file", "").to_list() == ROWS[:1]
    with pytest.raises(ValueError, match="has the parts train, test"):
        read_table(str(tmp_path / "saved"), "val_file", "")


@pytest.mark.parametrize("name", ["a[1].csv", "a[!b].csv", "a*.csv", "what?.csv", "[x]/a.csv", "{a,b}.csv", "a[.csv"])
def test_a_name_with_glob_characters_is_a_name(write, name):
    path = write(name)
    (path.parent / "a1.csv").write_text("text,label\nanother,file\n")
    assert read(path).to_list() == ROWS


def test_a_changed_file_is_read_anew(write):
    path = write("a.jsonl")
    read(path)
    path.write_text('{"text": "new", "label": "good"}\n')
    assert read(path).to_list() == [{"text": "new", "label": "good"}]


def test_a_column_of_whole_floats_keeps_its_classes(tmp_path):
    path = tmp_path / "gaps.csv"
    path.write_text("text,label\na,1\nb,2\nc,\n")  # the gap makes floats of them
    values = [value for value in read(path)["label"] if value is not None]
    assert values == [1.0, 2.0]
    assert Labels.of(values, None, "").names == ("1", "2")


def test_a_home_folder_is_found(write, monkeypatch):
    path = write("a.csv")
    monkeypatch.setenv("HOME", str(path.parent))
    assert read("~/a.csv").to_list() == ROWS


def test_a_file_of_a_package_is_found():
    table = read("package://sklearn/datasets/data/iris.csv")
    assert len(table) == 150


@pytest.mark.parametrize("name", ["none.csv", "./none", "/nowhere/none.jsonl", "~/none.parquet"])
def test_a_missing_file_is_not_asked_of_the_hub(name, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(FileNotFoundError, match="train_file: no such file or folder"):
        read(name)


def test_a_name_that_the_hub_does_not_give_is_refused_with_the_nearest_file(write, monkeypatch):
    path = write("reviews.csv")
    monkeypatch.chdir(path.parent)
    with pytest.raises(FileNotFoundError, match="train_file: 'review' is no file here"):
        read("review")


@pytest.mark.parametrize(("name", "content"), [("a.csv", ""), ("a.csv", "text,label\n"), ("a.jsonl", "\n")])
def test_a_table_without_rows_is_refused_as_such(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"train_file '.*{name}' (is empty|has no rows)"):
        read(tmp_path / name)


def test_a_saved_table_without_rows_is_refused_as_such(table, tmp_path):
    table.select([]).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"train_file '.*saved' has no rows"):
        read(tmp_path / "saved")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_broken_file_is_named_with_its_kind(tmp_path, suffix):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(b'{"text": "\xff\xfe\n"')
    with pytest.raises(ValueError, match=r"train_file '.*broken.*' cannot be read as "):
        read(path)


def test_a_missing_column_is_named_beside_those_there(table):
    with pytest.raises(ValueError, match=r"a.csv has no column 'txt' \(text_column\); it has text, label, stars; did "):
        check_columns(table, {"text_column": "txt"}, "a.csv")
    check_columns(table, {"text_column": "text", "text_pair_column": None}, "a.csv")


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ({}, [0, 1, 2]),
        ({"label": "good"}, [0, 2]),
        ({"label": ["good", "bad"], "stars": 5}, [2]),
        ({"stars": "4"}, [0]),
    ],
)
def test_where_keeps_the_rows_of_its_values(table, where, rows):
    assert filtered(table, where, "a.csv").to_list() == [ROWS[row] for row in rows]


def test_where_without_a_match_lists_the_values_there(table):
    with pytest.raises(ValueError, match=r"a.csv: no row has label = nice; there are bad, good"):
        filtered(table, {"label": "nice"}, "a.csv")
    with pytest.raises(ValueError, match=r"no column 'lable' \(where\).* did you mean 'label'"):
        filtered(table, {"lable": "nice"}, "a.csv")


def test_a_table_of_recbole_has_names_without_types(tmp_path):
    file = tmp_path / "films.item"
    file.write_text("item_id:token\tmovie_title:token_seq\n1\tToy Story\n")
    assert read_table(str(file), "train_file", "Test").to_list() == [{"item_id": 1, "movie_title": "Toy Story"}]
