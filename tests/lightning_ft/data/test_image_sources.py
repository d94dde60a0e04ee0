"""Laws of the files that images come from."""

import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from image_parts import digits, write_class_folders, write_idx, write_mnist, write_photos
from PIL import Image

from lightning_ft.data.image_sources import ImageSource, read_images
from lightning_ft.data.images import read_image
from lightning_ft.resources import existing

NUM = 60
DIGITS = "package://sklearn/datasets/data/digits.csv.gz"


def read(path: Path | str, *, labelled: bool = True, **columns: str) -> ImageSource:
    columns = {"image_column": "image", "label_column": "label"} | columns
    return read_images(existing(path, "train_file"), "train_file", **columns, labelled=labelled)


def rows_of(source: ImageSource) -> list[tuple[bytes, str]]:
    """Return the bytes of each RGB image with its label, sorted: the order is the file's own."""
    if source.pixels is None:
        images = [np.asarray(read_image(path)) for path in source.table["image"]]
    else:
        images = [np.repeat(source.pixels[row][..., None], 3, axis=2) for row in source.table["image"]]
    labels = [str(label) for label in source.table["label"]]
    return sorted((image.tobytes(), label) for image, label in zip(images, labels, strict=True))


def write_pixels(path: Path, *, header: bool, num: int = NUM, label: str = "label") -> Path:
    """Write digits as MNIST's table on Kaggle has them, or as scikit-learn's table."""
    images, labels = digits(num)
    pixels = images.reshape(len(images), -1).tolist()
    lines = [[label, *(f"pixel{i}" for i in range(64))]] if header else []
    lines += [[y, *x] if header else [*x, y] for x, y in zip(pixels, labels, strict=True)]
    text = "\n".join(",".join(map(str, line)) for line in lines).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def write_table(root: Path, suffix: str) -> Path:
    """Write a table of the digits in ``root/digits``, paths relative to ``root``."""
    from datasets import Dataset

    images = sorted(write_class_folders(root / "digits", NUM).rglob("*.png"))
    table = Dataset.from_dict(
        {
            "image": [str(image.relative_to(root)) for image in images],
            "label": [int(image.parent.name) for image in images],
            "writer": [f"w{row}" for row in range(len(images))],
        }
    )
    path = root / f"table{suffix}"
    match suffix:
        case ".csv":
            table.to_csv(str(path), index=False)
        case ".csv.gz":
            table.to_csv(str(path), index=False)
            path.write_bytes(gzip.compress(path.read_bytes()))
        case ".tsv":
            table.to_csv(str(path), sep="\t", index=False)
        case ".jsonl":
            table.to_json(str(path))
        case ".parquet":
            table.to_parquet(str(path))
    return path


@pytest.fixture
def expected() -> list[tuple[bytes, str]]:
    images, labels = digits(NUM)
    return sorted(
        (np.repeat(image[..., None], 3, axis=2).tobytes(), str(label))
        for image, label in zip(images, labels, strict=True)
    )


def test_class_folders_give_their_images_and_names(tmp_path, expected):
    assert rows_of(read(write_class_folders(tmp_path / "digits", NUM))) == expected


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".jsonl", ".parquet"])
def test_tables_give_the_images_at_paths_beside_them(tmp_path, expected, suffix):
    assert rows_of(read(write_table(tmp_path, suffix))) == expected


def test_idx_files_give_their_images_and_labels_in_order(tmp_path, expected):
    source = read(write_mnist(tmp_path, NUM))
    assert rows_of(source) == expected
    assert source.table["label"][:] == digits(NUM)[1]


def test_idx_images_and_labels_may_be_gzipped_or_not(tmp_path, expected):
    images = write_mnist(tmp_path, NUM)
    plain = images.with_suffix("")
    plain.write_bytes(gzip.decompress(images.read_bytes()))
    assert rows_of(read(plain)) == expected


@pytest.mark.parametrize("name", ["pixels.csv", "pixels.csv.gz"])
@pytest.mark.parametrize("header", [True, False])
def test_pixel_tables_give_their_images_and_labels(tmp_path, expected, name, header):
    assert rows_of(read(write_pixels(tmp_path / name, header=header))) == expected


def test_grey_values_to_16_are_stretched_to_255():
    source = read(DIGITS)
    images, labels = digits(1797)
    assert source.pixels is not None
    assert np.array_equal(source.pixels, images)
    assert source.table["label"][:] == labels


@pytest.mark.parametrize("white", [1, 16, 255, 65535])
def test_a_dark_part_is_stretched_as_a_bright_one(tmp_path, white):
    values = np.full((2, 64), white // 2 + (white == 1) * 0.5)
    table = tmp_path / "pixels.csv"
    np.savetxt(table, np.column_stack([values, [0, 1]]), delimiter=",")
    pixels = read(table).pixels
    assert pixels is not None
    assert 120 <= pixels.max() <= 128


def test_pixels_to_predict_need_no_label(tmp_path):
    labelled = write_pixels(tmp_path / "train.csv", header=True)
    unlabelled = tmp_path / "test.csv"
    unlabelled.write_text("\n".join(line.partition(",")[2] for line in labelled.read_text().splitlines()))
    for path in (labelled, unlabelled):
        source = read(path, labelled=False)
        assert source.table.column_names == ["image"]
        assert np.array_equal(np.asarray(source.pixels), digits(NUM)[0])
    with pytest.raises(ValueError, match="none is the label"):
        read(unlabelled)


def test_a_narrow_table_of_numbers_is_no_pixel_table(tmp_path):
    (tmp_path / "iris.csv").write_text("a,b,c,d,label\n1,2,3,4,0\n5,6,7,8,1\n")
    with pytest.raises(ValueError, match=r"no column 'image' \(image_column\); it has a, b, c, d, label"):
        read(tmp_path / "iris.csv")


def test_a_table_with_the_image_column_is_one_of_paths_whatever_its_width(tmp_path):
    names = ["image", *(f"pixel{i}" for i in range(63)), "label"]
    (tmp_path / "wide.csv").write_text(",".join(names) + "\n" + ",".join(["7"] * 65) + "\n")
    with pytest.raises(ValueError, match=r"row 1: column 'image' holds 7 where a path should be"):
        read(tmp_path / "wide.csv")


def test_a_missing_column_is_named_with_those_there_and_the_nearest(tmp_path):
    table = write_table(tmp_path, ".csv")
    with pytest.raises(
        ValueError, match=r"'labels' \(label_column\); it has image, label, writer; did you mean 'label'"
    ):
        read(table, label_column="labels")
    with pytest.raises(ValueError, match=r"'images' \(image_column\); .* did you mean 'image'"):
        read(table, image_column="images")
    pixels = write_pixels(tmp_path / "pixels.csv", header=True, label="labels")
    with pytest.raises(ValueError, match=r"'label' \(label_column\); it has labels, pixel0, .* did you mean 'labels'"):
        read(pixels)


def test_a_table_to_predict_keeps_its_other_columns_and_order(tmp_path):
    table = write_table(tmp_path, ".csv")
    rows = read(table, labelled=False).table.to_list()
    assert [row["writer"] for row in rows] == [f"w{row}" for row in range(NUM)]
    assert all(Path(row["image"]).is_file() for row in rows)


def test_a_table_may_name_its_columns_and_have_absolute_paths(tmp_path):
    china, flower = write_photos(tmp_path / "far")
    (tmp_path / "table.tsv").write_text(f"file\tkind\n{china}\tbuilding\n{flower}\tplant\n")
    source = read(tmp_path / "table.tsv", image_column="file", label_column="kind")
    assert source.table.to_list() == [
        {"kind": "building", "image": str(china)},
        {"kind": "plant", "image": str(flower)},
    ]


def test_a_row_without_a_path_is_named(tmp_path):
    (tmp_path / "table.csv").write_text("image,label\na.png,0\n,1\n")
    with pytest.raises(ValueError, match=r"row 2: column 'image' holds nothing where a path should be"):
        read(tmp_path / "table.csv")


def test_an_idx_file_without_labels_beside_it_is_refused(tmp_path):
    images = write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-labels-idx1-ubyte.* is missing"):
        read(images)
    assert len(read(images, labelled=False).table) == NUM


def test_idx_labels_of_another_number_are_refused(tmp_path):
    images = write_mnist(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(59))
    with pytest.raises(ValueError, match=r"60 images, but 59 labels in 'train-labels-idx1-ubyte.gz'"):
        read(images)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("shape", [(61, 8, 8), (59, 8, 8), (4_000_000_000, 4_000, 4_000), (0, 8, 8)])
def test_an_idx_header_that_lies_is_refused_at_the_cost_of_the_real_data(tmp_path, suffix, shape):
    path = write_idx(tmp_path / f"x-images-idx3-ubyte{suffix}", digits(60)[0], shape)
    tracemalloc.start()
    with pytest.raises(ValueError, match="by its header"):
        read(path, labelled=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6


@pytest.mark.parametrize("kept", [3, 30, 500])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_truncated_idx_file_is_refused(tmp_path, kept, suffix):
    path = write_idx(tmp_path / f"x-images-idx3-ubyte{suffix}", digits(60)[0])
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"train_file .*(damaged|by its header|no idx3 file)"):
        read(path, labelled=False)


def test_idx_labels_are_no_images(tmp_path):
    write_mnist(tmp_path)
    with pytest.raises(ValueError, match="no idx3 file of unsigned bytes"):
        read(tmp_path / "train-labels-idx1-ubyte.gz")


def test_images_lie_at_any_depth_and_hidden_files_are_none(tmp_path):
    root = write_class_folders(tmp_path / "digits", 10)
    (root / "3" / "deep" / "deeper").mkdir(parents=True)
    (root / ".thumbnails").mkdir()
    (root / "3" / ".checkpoints").mkdir()
    for path in ("3/deep/deeper/a.PNG", "3/._a.png", "3/.checkpoints/a.png", ".thumbnails/a.png"):
        Image.fromarray(digits(1)[0][0]).save(root / path)
    (root / "3" / "notes.txt").touch()
    source = read(root)
    assert len(source.table) == 11
    assert {row["label"] for row in source.table.to_list()} == set("0123456789")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (Path.exists, "has no images; it needs one sub-folder a class"),
        (write_photos, "has 2 images, but no sub-folders"),
        (lambda root: [write_class_folders(root / part, 3) for part in ("train", "val")], "holds parts, not classes"),
        (lambda root: [write_photos(root / "a"), (root / "b").mkdir()], "class folder 'b' has no images"),
        (lambda root: [write_photos(root / "a"), write_photos(root)], "2 images lie outside its class folders a"),
    ],
)
def test_a_folder_that_is_not_one_of_classes_says_why(tmp_path, make, sentence):
    (tmp_path / "root").mkdir()
    make(tmp_path / "root")
    with pytest.raises(ValueError, match=sentence):
        read(tmp_path / "root")


def test_a_flat_folder_is_predicted_in_the_order_of_its_names(tmp_path):
    for name in ("b.png", "a10.png", "a2.png", "c/a.png", "z.jpg"):
        (tmp_path / "flat" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits(1)[0][0]).save(tmp_path / "flat" / name)
    source = read(tmp_path / "flat", labelled=False)
    names = [str(Path(path).relative_to(tmp_path / "flat")) for path in source.table["image"]]
    assert names == ["a10.png", "a2.png", "b.png", "c/a.png", "z.jpg"]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="has no images"):
        read(tmp_path / "nothing", labelled=False)


def test_a_single_image_is_predicted_but_not_trained_on(tmp_path):
    china, _ = write_photos(tmp_path)
    assert read(china, labelled=False).table.to_list() == [{"image": str(china)}]
    with pytest.raises(ValueError, match="single image, which has no label"):
        read(china)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.txt", b"hello"),
        ("broken.csv.gz", b"no gzip"),
        ("empty.csv", b""),
        ("header.csv", b"image,label\n"),
        ("pixels.csv", b",".join([b"1"] * 65) + b"\n" + b",".join([b"x"] * 65)),
        ("ragged.csv", b",".join([b"1"] * 65) + b"\n" + b",".join([b"1"] * 65) + b"\n1,2,3\n"),
        ("negative.csv", b",".join([b"1"] * 65) + b"\n" + b",".join([b"-1"] * 65)),
        ("hole.csv", b",".join([b"1"] * 65) + b"\n" + b",".join([b"1"] * 65) + b"\n" + b",".join([b""] * 65)),
        ("binary.csv", bytes(range(256))),
    ],
)
def test_other_files_are_refused_in_one_sentence(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^train_file '.*{name}'[^\n]*$"):
        read(tmp_path / name)
