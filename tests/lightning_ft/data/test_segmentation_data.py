"""SegmentationData: images keep their masks, whatever the files, the transform and the part; and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from masked_parts import MNI, data_of, scenes, write_scenes
from PIL import Image

from lightning_ft import SegmentationData
from lightning_ft.tasks.masks import IGNORED

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_FT_CACHE", str(tmp_path / "cache"))


def colours(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the pixels as they were before they were normalised, in 0..1."""
    return batch["pixel_values"] * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]


def batches(data: SegmentationData, epoch: int = 0) -> list[dict[str, torch.Tensor]]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_a_batch_has_pixels_and_a_class_for_each(tmp_path: Path) -> None:
    data = data_of(*write_scenes(tmp_path), batch_size=4)
    assert (data.labels.task, data.labels.names) == ("segmentation", ("0", "1", "2"))
    for loader in (data.train_dataloader(), data.val_dataloader()):
        batch = next(iter(loader))
        size = len(batch["labels"])
        assert (batch["pixel_values"].shape, batch["pixel_values"].dtype) == ((size, 3, 24, 24), torch.float32)
        assert (batch["labels"].shape, batch["labels"].dtype) == ((size, 24, 24), torch.int64)


@pytest.mark.parametrize("augment", [False, True, {"rotation": 40, "vflip": 0.5, "scale": [0.1, 1.0]}])
def test_masks_go_where_their_images_go(tmp_path: Path, augment: Any) -> None:
    data = data_of(*write_scenes(tmp_path, num=30, height=48, width=48), augment=augment, image_size=48)
    seen = 0
    for batch in batches(data):
        pixels, labels = colours(batch), batch["labels"]
        red, blue = pixels[:, 0] - pixels[:, 2], pixels[:, 2] - pixels[:, 0]
        for number, surplus in ((1, red), (2, blue)):
            squares = labels == number
            # what lies under the edge of a mask is a mixture of two colours
            assert (surplus[squares] > 0.3).float().mean() > 0.8
            assert (surplus[(labels >= 0) & ~squares] < 0.3).float().mean() > 0.97
            seen += int(squares.sum())
    assert seen > 1000


def test_what_is_filled_is_the_mean_colour_and_nobody_judges_it(tmp_path: Path) -> None:
    data = data_of(*write_scenes(tmp_path, height=16, width=24), augment=False, val_size=0, test_size=0)
    (batch, *_) = batches(data)
    assert (batch["labels"][:, :16] >= 0).all()
    assert (batch["labels"][:, 16:] == IGNORED).all()
    assert not batch["pixel_values"][:, :, 16:].any()


def test_an_image_of_the_models_size_is_left_as_it_is(tmp_path: Path) -> None:
    data = data_of(*write_scenes(tmp_path, num=20, height=24, width=24), augment=False, val_size=0, test_size=0)
    known = {image.tobytes(): mask for image, mask in scenes(20, 24, 24)}
    for batch in batches(data):
        pixels = (colours(batch) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        for image, labels in zip(pixels, batch["labels"], strict=True):
            assert np.array_equal(known.pop(image.numpy().tobytes()), labels.numpy())
    assert not known


def test_augmented_images_are_a_function_of_seed_epoch_and_row(tmp_path: Path) -> None:
    folders = write_scenes(tmp_path)

    def epoch(number: int, num_workers: int = 0) -> torch.Tensor:
        data = data_of(*folders, num_workers=num_workers)
        torch.manual_seed(number * 100 + num_workers)
        found = batches(data, number)
        return torch.cat([torch.cat([batch["pixel_values"], batch["labels"][:, None]], 1) for batch in found])

    first = epoch(1)
    assert torch.equal(epoch(1), first)
    assert torch.equal(epoch(1, num_workers=2), first)
    samples = data_of(*folders).train_dataloader().dataset
    one = samples[3]
    samples.epoch.fill_(1)
    other = samples[3]
    samples.seed = 6
    for name, value in samples[3].items():
        assert not torch.equal(value, other[name])
        assert not torch.equal(other[name], one[name])


def test_without_augmentation_all_epochs_are_alike_and_random_numbers_stay(tmp_path: Path) -> None:
    data = data_of(*write_scenes(tmp_path), augment=False, val_size=0, test_size=0)
    samples = data.train_dataloader().dataset
    state = torch.get_rng_state()
    first = samples[3]
    samples.epoch.fill_(1)
    assert all(torch.equal(value, first[name]) for name, value in samples[3].items())
    assert torch.equal(torch.get_rng_state(), state)


def test_numbers_of_masks_become_classes_by_their_labels(tmp_path: Path) -> None:
    images, masks = write_scenes(tmp_path)
    for file in Path(masks).iterdir():
        values = np.asarray(Image.open(file))
        Image.fromarray(np.array([10, 255, 200], np.uint8)[values]).save(file)
    labels = {"ground": 10, "red": 255, "blue": 200}
    plain = {"augment": False, "val_size": 0, "test_size": 0}
    data = data_of(images, masks, labels=labels, **plain)
    assert data.labels.names == ("ground", "red", "blue")
    assert {int(number) for batch in batches(data) for number in batch["labels"].unique()} == {IGNORED, 0, 1, 2}
    ignoring = data_of(images, masks, labels={"ground": 10, "blue": 200}, **plain)
    classes = {int(number) for batch in batches(ignoring) for number in batch["labels"][:, :16].unique()}
    assert classes == {IGNORED, 0, 1}


def test_a_palette_and_16_bits_hold_numbers_too(tmp_path: Path) -> None:
    images, masks = write_scenes(tmp_path)
    files = sorted(Path(masks).iterdir())
    palette = Image.open(files[0]).convert("P", palette=Image.Palette.ADAPTIVE)
    numbers = np.asarray(Image.open(files[0]))
    palette = Image.fromarray(numbers, "L")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    palette.save(files[0])
    Image.fromarray(np.asarray(Image.open(files[1])).astype(np.uint16)).save(files[1])
    data = data_of(images, masks, val_size=0, test_size=0)
    source = data._source("train")
    for number, (_, mask) in enumerate(scenes(2)):
        assert np.array_equal(source.mask(number), mask)


def test_folders_in_folders_pair_up_and_groups_stay_together(tmp_path: Path) -> None:
    images, masks = write_scenes(tmp_path, num=40, names="patient{0:.0f}/{0:02}")
    data = data_of(images, masks, group=r"\d$", val_size=8, test_size=0.2)
    digits = {part: {name[-5] for name in table["name"]} for part, table in data.tables.items()}
    assert sum(map(len, digits.values())) == 10
    assert {part: len(table) for part, table in data.tables.items()} == {"train": 24, "val": 8, "test": 8}


def test_predictions_have_sizes_instead_of_labels_and_rows_name_their_files(tmp_path: Path) -> None:
    images, _ = write_scenes(tmp_path, num=3, height=10, width=40, names="day/{}")
    data = data_of(None, None, "predict", predict_file=images, labels=["a", "b"], batch_size=2)
    first, last = data.predict_dataloader()
    assert set(first) == {"pixel_values", "sizes", "extents"}
    assert first["sizes"].tolist() == [[10, 40]] * 2
    assert first["extents"].tolist() == [[6, 24]] * 2
    assert len(last["sizes"]) == 1
    rows = data.predict_rows(1, 3)
    assert rows == [{"image": f"{images}/day/{number}.png"} for number in (1, 2)]
    assert data.mask_names(1, 3) == ["day/1.png", "day/2.png"]
    single = data_of(None, None, "predict", predict_file=f"{images}/day/2.png", labels=["a", "b"])
    assert single.mask_names(0, 1) == ["2.png"]


def test_a_test_needs_no_training_file(tmp_path: Path) -> None:
    images, masks = write_scenes(tmp_path)
    data = data_of(None, None, "test", test_file=images, test_masks=masks, labels=["0", "1", "2"])
    assert sum(len(batch["labels"]) for batch in data.test_dataloader()) == 20


def test_what_the_check_found_is_remembered_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_ft.data import mask_check

    images, masks = write_scenes(tmp_path)
    read = []
    real = mask_check.read_mask
    monkeypatch.setattr(mask_check, "read_mask", lambda path: read.append(path) or real(path))
    for _ in range(2):
        assert data_of(images, masks).labels.num_classes == 3
    assert len(read) == 20
    Image.fromarray(np.full((16, 24), 3, np.uint8)).save(f"{masks}/07.png")
    assert data_of(images, masks).labels.num_classes == 4
    assert len(read) == 40


def break_mask(number: int, **change: Any) -> Any:
    """Return a function that writes a mask anew, of other numbers or another shape."""

    def apply(folder: Path) -> None:
        values = np.full(change.get("shape", (16, 24)), change.get("value", 0), np.uint8)
        Image.fromarray(values).save(folder / f"masks/{number:02}.png")

    return apply


def write_text(name: str) -> Any:
    return lambda folder: (folder / name).write_text("no image")


def as_jpeg(folder: Path) -> None:
    Image.open(folder / "masks/03.png").save(folder / "masks/03.jpg")
    (folder / "masks/03.png").unlink()


def in_colour(folder: Path) -> None:
    Image.open(folder / "masks/03.png").convert("RGB").save(folder / "masks/03.png")


def binary(folder: Path) -> None:
    for file in (folder / "masks").iterdir():
        Image.fromarray((np.asarray(Image.open(file)) > 0).astype(np.uint8) * 255).save(file)


def half(folder: Path) -> None:
    for file in (folder / "masks").iterdir():
        Image.fromarray((np.asarray(Image.open(file)) > 0).astype(np.uint8) * 128).save(file)


def emptied(name: str) -> Any:
    return lambda folder: [file.unlink() for file in (folder / name).iterdir()]


THREE = {"labels": ["ground", "red", "blue"]}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda f: (f / "masks/03.png").unlink(), {}, r"train_masks '.*masks' lacks 1 masks for '.*images/03.png'"),
        (lambda f: (f / "images/03.png").unlink(), {}, r"train_file .* lacks 1 images for the masks '.*masks/03.png'"),
        (lambda f: (f / "images/03.png").rename(f / "images/3.png"), {}, "lacks 1 masks for '.*images/3.png'"),
        (emptied("images"), {}, "train_file '.*images' has no images"),
        (emptied("masks"), {}, "train_masks '.*masks' has no images"),
        (break_mask(3, value=7), THREE, "03.png holds the number 7, which is no class; there are 0 ground, 1 red"),
        (break_mask(3, value=7), {}, "masks hold 0, 1, 2, 7, but never 3; give labels"),
        (break_mask(3, shape=(16, 23)), {}, "masks/03.png has 23x16 pixels, but its image .*images/03.png has 24x16"),
        (
            None,
            {"labels": ["ground", "red"]},
            "the number 2, which is no class; there are 0 ground, 1 red, and 255 for",
        ),
        (None, {"labels": {"a": 0, "b": 1, "c": 70000}}, "from 0 to 65535, but 'c' has 70000"),
        (None, {"labels": {"a": 0, "b": 1, "c": 1}}, "numbers of their own"),
        (binary, {}, "masks hold 0 alone, besides pixels of ignore_index=255; .* {background: 0, object: 255}"),
        (half, {}, "masks hold 0, 128, but never 1; give labels, as {background: 0, object: 128}"),
        (as_jpeg, {}, "03.jpg: a JPEG does not keep the numbers of pixels; save masks as PNG"),
        (in_colour, {}, "03.png: expected a class number a pixel, but it holds RGB values"),
        (write_text("images/03.png"), {}, "1 of 20 images or masks cannot be used: .*images/03.png: no image"),
        (write_text("masks/03.png"), {}, "1 of 20 images or masks cannot be used: .*masks/03.png: no image"),
        (None, {"image_size": 20}, "image_size=20 is no multiple of 8, the backbone's coarsest stride .*; take 16"),
        (None, {"augment": {"hflp": 0.0}}, "augment: SegmentationData has no key 'hflp'; did you mean 'hflip'?"),
        (None, {"augment": {"hflip": 2.0}}, "augment: torchvision does not take"),
        (None, {"group": "patient"}, "group 'patient' finds nothing in '00'"),
        (None, {"group": "0"}, "finds nothing in '1"),
        (None, {"axis": 3}, "expected axis to be 0, 1 or 2, but got 3"),
        (None, {"threshold": 0.0}, "expected threshold to be above 0 and at most 1, but got 0.0"),
        (None, {"val_file": "x"}, "needs val_masks beside val_file"),
        (None, {"test_masks": "x"}, "needs test_file beside test_masks"),
    ],
)
def test_wrong_input_is_refused(tmp_path: Path, change: Any, options: dict[str, Any], message: str) -> None:
    folders = write_scenes(tmp_path)
    if change is not None:
        change(tmp_path)
    with pytest.raises(ValueError, match=message):
        data_of(*folders, **options)


def test_a_number_in_the_masks_to_validate_that_training_never_saw_is_refused(tmp_path: Path) -> None:
    images, masks = write_scenes(tmp_path / "train")
    others = write_scenes(tmp_path / "val")
    break_mask(3, value=5)(tmp_path / "val")
    with pytest.raises(ValueError, match=r"val_masks '.*val/masks': .*03.png holds the number 5, which is no class"):
        data_of(images, masks, val_file=others[0], val_masks=others[1])


def test_a_missing_folder_is_named_with_the_nearest(tmp_path: Path) -> None:
    images, masks = write_scenes(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"train_masks: no such file or folder: .*did you mean '.*masks'"):
        data_of(images, masks + "s")


def test_an_unreadable_image_to_predict_is_refused(tmp_path: Path) -> None:
    images, _ = write_scenes(tmp_path)
    Path(images, "04.png").write_text("no image")
    with pytest.raises(ValueError, match=r"predict_file .*: 1 of 20 images cannot be read: .*04.png"):
        data_of(None, None, "predict", predict_file=images, labels=["a", "b"])


def test_maps_by_class_are_for_volumes(tmp_path: Path) -> None:
    images, masks = write_scenes(tmp_path)
    with pytest.raises(ValueError, match="maps by the name of a class are for volumes"):
        data_of(images, {"red": masks})


def test_real_slices_are_held_out_by_region() -> None:
    maps = {"grey": MNI.format("gm"), "white": MNI.format("wm")}
    data = data_of(MNI.format("t1"), maps, strides=(8,))
    assert data.labels.names == ("background", "grey", "white")
    held = [data.tables[part]["slice"][:] for part in ("val", "test")]
    for slices in held:
        assert slices == list(range(slices[0], slices[0] + len(slices)))
        assert 12 <= len(slices) <= 18
    assert not {*held[0]} & {*held[1]}
    assert len(data.tables["train"]) > 100
