"""DetectionData: boxes go with their pixels, whatever the file, the tiles and the augmentation."""

import json
import logging
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_parts import trainer_of
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from lightning_ft import DetectionData
from lightning_ft.data.tiles import Objects, Tile, objects_by_tile, objects_within, tiles_of

CONFIG = {"input_size": (3, 64, 64), "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear"}
# the boxes of three images of 120 x 80 pixels: x, y, width, height
CATS, DOGS = (
    {1: [(10, 10, 30, 20)], 2: [(0, 0, 12, 12), (100, 60, 20, 20)], 3: []},
    {1: [(60, 30, 40, 50)], 2: [], 3: []},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Draw three images, cats in red and dogs in blue."""
    root = tmp_path / "animals"
    root.mkdir()
    for number in (1, 2, 3):
        picture = Image.new("RGB", (120, 80), "black")
        for boxes, colour in ((CATS, "red"), (DOGS, "blue")):
            for x, y, width, height in boxes[number]:
                ImageDraw.Draw(picture).rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
        picture.save(root / f"{number}.png")
    return root


def write_coco(folder: Path, **changes: Any) -> Path:
    content = {
        "images": [{"id": 10 * n, "file_name": f"{n}.png", "width": 120, "height": 80} for n in (1, 2, 3)],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {"id": len(boxes), "image_id": 10 * n, "category_id": kind, "bbox": list(box), "iscrowd": 0}
            for kind, boxes in ((3, CATS), (7, DOGS))
            for n in (1, 2, 3)
            for box in boxes[n]
        ],
    }
    path = folder / "animals.json"
    path.write_text(json.dumps(content | changes))
    return path


def write_voc(folder: Path) -> Path:
    for number in (1, 2, 3):
        objects = "".join(
            f"<object><name>{kind}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + width}</xmax>"
            f"<ymax>{y + height}</ymax></bndbox></object>"
            for kind, boxes in (("cat", CATS), ("dog", DOGS))
            for x, y, width, height in boxes[number]
        )
        size = "<size><width>120</width><height>80</height></size>"
        text = f"<annotation><filename>{number}.png</filename>{size}{objects}</annotation>"
        (folder / f"{number}.xml").write_text(text)
    return folder


def data(file: Any, stage: str = "fit", **options: Any) -> DetectionData:
    key = "predict_file" if stage == "predict" else "train_file"
    found = DetectionData(**({key: str(file), "val_size": 0, "test_size": 0, "batch_size": 2} | options))
    found.trainer = trainer_of(CONFIG)
    found.setup(stage)
    return found


def test_coco_and_voc_say_the_same(folder: Path) -> None:
    coco, voc = data(write_coco(folder)), data(write_voc(folder))
    assert coco.labels == voc.labels
    assert coco.labels.names == ("cat", "dog")
    for column in ("image", "width", "height", "label", "boxes"):
        assert coco.read("train")[column] == voc.read("train")[column]
    assert coco.read("train")["boxes"][1] == [[0, 0, 12, 12], [100, 60, 120, 80]]


def test_an_image_without_objects_is_a_sample_without_rows(folder: Path) -> None:
    samples = data(write_coco(folder))._samples["train"]
    assert len(samples) == 3
    assert samples[2]["labels"].shape == (1, 2, 5)
    assert (samples[2]["labels"][..., 0] == -1).all()


def pixels_in_boxes(sample: dict[str, torch.Tensor]) -> list[tuple[int, float, float]]:
    """Return for each object its class and how much of it, and of what surrounds it, has its colour."""
    found = []
    for tile, rows in enumerate(sample["labels"]):
        for kind, *box in rows[rows[:, 0] >= 0].tolist():
            x1, y1, x2, y2 = (round(side) for side in box)
            colour = sample["pixel_values"][tile, 0 if kind == 0 else 2] > 0.4
            inner = colour[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].float().mean().item()
            outer = colour.clone()
            outer[max(y1 - 1, 0) : y2 + 1, max(x1 - 1, 0) : x2 + 1] = False
            found.append((int(kind), inner, outer.sum().item()))
    return found


@pytest.mark.parametrize("augment", [False, {"hflip": 1.0, "color_jitter": 0.0}, {"vflip": 1.0}, {"vflip": 0.5}])
@pytest.mark.parametrize("tile_size", [None, 50])
def test_a_box_stays_around_its_object(folder: Path, augment: Any, tile_size: int | None) -> None:
    found = data(write_coco(folder), augment=augment, tile_size=tile_size, min_visible=0.01)
    seen = [objects for sample in found._samples["train"] for objects in pixels_in_boxes(sample)]
    assert len(seen) >= 4
    assert all(inner > 0.98 for _, inner, _ in seen)
    if tile_size is None:
        assert [outer for kind, _, outer in seen if kind == 1] == [0]


def test_a_tile_is_a_function_of_seed_epoch_and_number(folder: Path) -> None:
    file = write_coco(folder)

    def pixels(epoch: int, seed: int = 0) -> torch.Tensor:
        samples = data(file, tile_size=40)._samples["train"]
        samples.epoch, samples.seed = torch.tensor(epoch), seed
        torch.rand(int(torch.randint(5, ())))
        return torch.cat([samples[number]["pixel_values"] for number in range(len(samples))])

    assert torch.equal(pixels(1), pixels(1))
    assert not torch.equal(pixels(1), pixels(2))
    assert not torch.equal(pixels(1), pixels(1, seed=1))


def test_tiles_can_be_sent_to_workers(folder: Path) -> None:
    samples = data(write_coco(folder), tile_size=40)._samples["train"]
    sent = pickle.loads(pickle.dumps(samples))
    assert all(torch.equal(samples[3][name], sent[3][name]) for name in samples[3])


def test_a_resumed_epoch_goes_on_with_the_tiles_it_would_have_met(folder: Path) -> None:
    def batches(resumed_at: tuple[int, int]) -> list[dict[str, torch.Tensor]]:
        found = data(write_coco(folder), tile_size=40)
        found._resumed_at = resumed_at
        return list(found.train_dataloader())

    whole, rest = batches((2, 0)), batches((2, 3))
    assert len(whole) - len(rest) == 3
    for one, other in zip(whole[3:], rest, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


@settings(max_examples=80, deadline=None)
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    tile_size=st.integers(8, 120),
    overlap=st.integers(0, 7),
    seed=st.integers(0, 1000),
)
def test_tiles_cover_their_image_and_hold_each_object_once(
    size: tuple[int, int], tile_size: int, overlap: int, seed: int
) -> None:
    tiles = tiles_of(0, size, tile_size, overlap)
    covered = np.zeros(size[::-1], bool)
    for tile in tiles:
        assert tile.x + tile.width <= size[0]
        assert tile.y + tile.height <= size[1]
        assert (tile.width, tile.height) == (min(tile_size, size[0]), min(tile_size, size[1]))
        covered[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width] = True
    assert covered.all()
    columns = sorted({tile.x for tile in tiles})
    assert all(left + tile_size - right >= overlap for left, right in pairwise(columns))
    corners = np.sort(np.random.default_rng(seed).random((5, 2, 2)), 1) * size
    boxes = corners.reshape(5, 4).astype(np.float32)
    objects = Objects(np.zeros(5, np.float32), boxes, np.zeros(5, bool))
    told = np.concatenate(objects_by_tile(tiles, [objects]))
    assert sorted(told[:, 6].tolist()) == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(told[told[:, 6].argsort(), 1:5], boxes)


def test_what_lies_in_a_tile_by_too_small_a_share_is_not_there() -> None:
    boxes = np.array([[0, 0, 10, 10], [7, 0, 17, 10], [8, 0, 18, 10], [0, 0, 30, 30]], np.float32)
    objects = Objects(np.arange(4, dtype=np.float32), boxes, np.array([False, False, False, False]))
    rows = objects_within(Tile(0, 0, 0, 10, 10), objects, 0.3)
    assert rows.tolist() == [[0, 0, 0, 10, 10], [1, 7, 0, 10, 10]]


def test_tiles_tell_where_they_lie(folder: Path) -> None:
    found = data(write_coco(folder), val_size=1, tile_size=50, min_visible=1.0)
    samples, table = found._samples["val"], found.tables["val"]
    told = torch.cat([samples[number]["objects"][0] for number in range(len(samples))])
    assert sorted(told[told[:, 0] >= 0, 1:5].tolist()) == sorted(table["boxes"][0])
    for number in range(len(samples)):
        sample = samples[number]
        image, x, y, scale, width, height = sample["tiles"][0].tolist()
        assert (image, scale, width, height) == pytest.approx((0, 64 / 50, 64, 64))
        rows = sample["labels"][0]
        for box in rows[rows[:, 0] >= 0, 1:]:
            assert (box / scale + torch.tensor([x, y, x, y])).round().tolist() in table["boxes"][0]


def test_a_picture_that_is_no_square_fills_a_part_of_it(folder: Path) -> None:
    sample = data(write_coco(folder), val_size=1)._samples["val"][0]
    assert sample["tiles"][0, 3:].tolist() == pytest.approx([64 / 120, 64, 43])
    assert sample["pixel_values"].shape == (1, 3, 64, 64)
    assert (sample["pixel_values"][..., 43:, :] == 0).all()


def test_images_go_to_one_part_as_a_whole(folder: Path) -> None:
    found = data(write_coco(folder), tile_size=40, val_size=1)
    paths = {part: set(found.tables[part]["image"]) for part in ("train", "val")}
    assert len(paths["train"]) == 2
    assert not paths["train"] & paths["val"]
    assert len(found._samples["val"]) == 12


def test_batches_have_one_shape(folder: Path) -> None:
    found = data(write_coco(folder), batch_size=1)
    assert {tuple(batch["labels"].shape) for batch in found.train_dataloader()} == {(1, 2, 5)}


def test_crowds_and_difficult_objects_are_neither_learned_nor_judged(folder: Path) -> None:
    crowd = [{"id": 1, "image_id": 10, "category_id": 3, "bbox": [1, 1, 9, 9], "iscrowd": 1}]
    sample = data(write_coco(folder, annotations=crowd), labels=["cat"], val_size=2)._samples["val"]
    rows = torch.cat([sample[number]["objects"][0] for number in range(2)])
    assert (sample[0]["labels"][..., 0] == -1).all()
    assert rows[rows[:, 0] >= 0][:, 5].tolist() in ([1.0], [])
    file = write_voc(folder) / "1.xml"
    file.write_text(file.read_text().replace("<bndbox>", "<difficult>1</difficult><bndbox>"))
    assert data(folder).read("train")["ignored"][0] == [True, True]


def test_boxes_are_cut_at_the_edge_and_empty_ones_dropped_with_a_notice(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    boxes = [[-5, -5, 20, 20], [110, 70, 30, 30], [130, 10, 5, 5], [10, 10, 0, 8], [1, 1, 5, 5]]
    entries = [{"id": n, "image_id": 10, "category_id": 3, "bbox": box} for n, box in enumerate(boxes)]
    with caplog.at_level(logging.INFO):
        table = data(write_coco(folder, annotations=entries)).read("train")
    assert table["boxes"][0] == [[0, 0, 15, 15], [110, 70, 120, 80], [1, 1, 6, 6]]
    assert "of 5 boxes 2 reach beyond their image and are cut at its edge, 2 are empty or outside" in caplog.text
    assert caplog.text.count("of 5 boxes") == 1


def test_an_image_turned_by_its_camera_is_upright_with_its_boxes(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / "1.png").rotate(90, expand=True).save(folder / "1.png", exif=exif)
    found = data(write_coco(folder), augment=False)
    assert all(inner > 0.98 for _, inner, _ in pixels_in_boxes(found._samples["train"][0]))


def test_classes_can_become_one(folder: Path) -> None:
    assert data(write_coco(folder), rename={"dog": "pet", "cat": "pet"}).labels.names == ("pet",)


def test_rows_to_predict_are_images_with_all_their_tiles(folder: Path) -> None:
    for file, num_images in ((folder, 3), (write_coco(folder), 3), (folder / "2.png", 1)):
        found = data(file, "predict", labels=["cat", "dog"], tile_size=40)
        rows = found.predict_rows(0, num_images)
        assert len(rows) == len(found._samples["predict"]) == num_images
        batches = list(found.predict_dataloader())
        assert "labels" not in batches[0]
        images = [number for batch in batches for number in batch["tiles"][:, 0].tolist()]
        assert images == [number for number in range(num_images) for _ in range(12)]
        assert (rows[0]["width"], rows[0]["height"]) == (120, 80)


def test_predictions_are_a_coco_file_with_the_ids_of_the_file_to_predict(folder: Path) -> None:
    file = write_coco(folder)
    found = data(file, "predict", labels=["cat", "dog"])
    boxes = [{"label": "dog", "box": [1.0, 2.0, 11.0, 7.0], "score": 0.5}]
    rows = [{**row, "prediction": boxes if row["image_id"] == 20 else []} for row in found.predict_rows(0, 3)]
    content = found.document(rows)
    (box,) = content["annotations"]
    assert (box["image_id"], box["category_id"], box["bbox"], box["area"]) == (20, 7, [1, 2, 10, 5], 50)
    assert COCO(str(file)).loadRes(content["annotations"]).getAnnIds(imgIds=[20])
    (folder / "found.json").write_text(json.dumps(content))
    again = data(folder / "found.json")
    assert again.read("train")["boxes"][1] == [[1, 2, 11, 7]]
    plain = data(folder / "2.png", "predict", labels=["cat", "dog"])
    content = plain.document([{**row, "prediction": boxes} for row in plain.predict_rows(0, 1)])
    assert [entry["id"] for entry in content["categories"]] == [1, 2]
    assert content["annotations"][0]["image_id"] == content["images"][0]["id"] == 1


def entry(**changes: Any) -> list[dict[str, Any]]:
    return [{"id": 5, "image_id": 10, "category_id": 3, "bbox": [1, 1, 5, 5]} | changes]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"annotations": entry(category_id=4)},
            "annotation 5: category_id 4 is that of no category; there are 7 dog, 3",
        ),
        ({"annotations": entry(image_id=11)}, "annotation 5: image_id 11 is that of no image"),
        ({"annotations": entry(bbox=[1, 2, 3])}, r"annotation 5: expected a box of four numbers, but got \[1, 2, 3\]"),
        ({"annotations": entry(bbox=[1, 2, 3, float("nan")])}, "annotation 5: expected a box of four numbers"),
        ({"annotations": []}, "there are no objects in 3 images"),
        ({"images": []}, "animals.json' has no images"),
        ({"images": None}, "is no COCO file, which has 'images', 'annotations' and 'categories'"),
        (
            {"images": [{"id": 10, "file_name": "4.png"}], "annotations": entry()},
            "1 of 1 images cannot be read: .*4.png",
        ),
        (
            {"images": [{"id": 10, "file_name": "1.png", "width": 80, "height": 120}], "annotations": entry()},
            "1.png' is 120 x 80 pixels, but its annotation says 80 x 120",
        ),
    ],
)
def test_a_wrong_coco_file_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data(write_coco(folder, **changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "animals.json' is empty"),
        ('{"images": [', "animals.json' is cut short, or no JSON: .*line 1"),
        ("[1]", "is no COCO file"),
    ],
)
def test_a_damaged_coco_file_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / "animals.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        data(folder / "animals.json")


def test_wrong_xml_files_are_refused_by_name(folder: Path) -> None:
    whole = (write_voc(folder) / "2.xml").read_text()
    for text, message in (
        (whole[:90], "2.xml is cut short, or no XML"),
        ("", "2.xml is cut short, or no XML"),
        (whole.replace("<xmin>100</xmin>", ""), "2.xml, object 2: expected a box of four numbers"),
        (whole.replace("<name>cat</name>", ""), "2.xml, object 1: no name"),
        (whole.replace("2.png", "9.png").replace("<width>120", "<width>240"), "2.png' is 120 x 80 pixels"),
    ):
        (folder / "2.xml").write_text(text)
        with pytest.raises(ValueError, match=message):
            data(folder)
    (folder / "2.xml").write_text(whole)
    (folder / "2.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 images cannot be read: .*2.png: no such file. Mend them, say where"):
        data(folder)


def test_missing_images_are_dropped_when_asked_and_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (write_voc(folder) / "2.png").unlink()
    with caplog.at_level(logging.INFO):
        assert len(data(folder, skip_unreadable=True).read("train")) == 2
    assert "1 of 3 images cannot be read; dropped" in caplog.text
    assert "2.png" in caplog.text


def test_images_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    whole = write_voc(folder).rename(tmp_path / "JPEGImages")
    annotations = tmp_path / "Annotations"
    annotations.mkdir()
    for file in whole.glob("*.xml"):
        file.rename(annotations / file.name)
    assert len(data(annotations).read("train")) == 3
    whole.rename(tmp_path / "pictures")
    assert len(data(annotations, image_folder=str(tmp_path / "pictures")).read("train")) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile_size": 0}, "tile_size to be a positive number of pixels, but got 0"),
        ({"tile_overlap": 5}, "tile_overlap=5 has no effect without tile_size"),
        ({"tile_size": 40, "tile_overlap": 40}, "tile_overlap to be at least 0 and below tile_size=40, but got 40"),
        ({"min_visible": 0.0}, "min_visible to be above 0 and at most 1, but got 0.0"),
        ({"rename": {"cow": "cat"}}, "rename: no object is a 'cow'; there are cat, dog"),
        ({"labels": ["cat"]}, "row 1: label 'dog' is not among those of the training data: cat"),
        ({"augment": {"vflp": 0.5}}, "augment: there is no 'vflp'; did you mean 'vflip'"),
        ({"augment": {"hflip": 2}}, "augment: expected hflip to be between 0 and 1, but got 2"),
    ],
)
def test_wrong_options_are_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data(write_coco(folder), **options)


def test_folders_without_annotations_or_images_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no XML files; it needs one for each image, or give a COCO file"):
        data(folder)
    with pytest.raises(ValueError, match=r"is no COCO file \(.json\) and no folder of VOC's XML files"):
        data(folder / "1.png")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="is no image, no folder of images, and no COCO file"):
        data(tmp_path / "none", "predict", labels=["cat"])


def test_real_tree_crowns_are_all_there() -> None:
    found = data("package://deepforest/data", rename={"Dead": "Tree", "Alive": "Tree"})
    table = found.read("train")
    assert [Path(path).name[:4] for path in table["image"]] == ["2019", "2019", "OSBS", "SOAP"]
    assert sum(map(len, table["boxes"])) == 951
    assert found.labels.names == ("Tree",)
