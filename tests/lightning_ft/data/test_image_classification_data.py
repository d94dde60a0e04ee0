"""Laws of ImageClassificationData: its batches, their random numbers, and what it refuses."""

import logging
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from image_parts import CONFIG, digits, trainer_of, write_class_folders, write_mnist, write_photos
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_ft.data.image_classification import ImageClassificationData

DIGITS = "package://sklearn/datasets/data/digits.csv.gz"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_FT_CACHE", str(tmp_path / "cache"))


def data_of(train_file, stage="fit", config=None, **options):
    data = ImageClassificationData(None if train_file is None else str(train_file), **options)
    data.trainer = trainer_of(config)
    data.setup(stage)
    return data


def pixels_of(loader):
    return torch.cat([batch["pixel_values"] for batch in loader])


def test_a_batch_has_pixels_and_class_numbers(tmp_path):
    data = data_of(write_class_folders(tmp_path / "digits"), batch_size=16)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        batch = next(iter(loader))
        size = len(batch["labels"])
        assert set(batch) == {"pixel_values", "labels"}
        assert (batch["pixel_values"].shape, batch["pixel_values"].dtype) == ((size, 3, 24, 24), torch.float32)
        assert batch["labels"].dtype == torch.int64
    assert data.labels.names == tuple("0123456789")


@pytest.mark.parametrize("write", [write_class_folders, write_mnist, lambda _: DIGITS])
def test_each_image_keeps_its_label_through_split_and_order(tmp_path, write):
    plain = {"input_size": (3, 8, 8), "mean": (0, 0, 0), "std": (1, 1, 1), "crop_pct": 1.0}
    data = data_of(write(tmp_path / "digits"), config=plain, augment=False, test_size=0.2)
    data.setup("test")
    images, labels = digits(1797)
    known = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    seen = [
        (np.rint(image[0].numpy() * 255).astype(np.uint8).tobytes(), int(label))
        for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
        for batch in loader
        for image, label in zip(batch["pixel_values"], batch["labels"], strict=True)
    ]
    assert len(set(seen)) == len(seen) >= 60
    assert all(known[image] == label for image, label in seen)


def test_several_classes_an_image_are_rows_of_0_and_1(tmp_path):
    china, flower = write_photos(tmp_path)
    (tmp_path / "tags.csv").write_text(f"image,label\n{china.name},house|sky\n{flower.name},red\n")
    data = data_of(tmp_path / "tags.csv", task="multilabel", val_file=str(tmp_path / "tags.csv"), test_size=0)
    assert data.labels.names == ("house", "red", "sky")
    batch = next(iter(data.val_dataloader()))
    assert batch["labels"].tolist() == [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    assert batch["labels"].dtype == torch.float32


def test_a_regression_has_a_number_an_image(tmp_path):
    china, flower = write_photos(tmp_path)
    (tmp_path / "ages.csv").write_text(f"image,age\n{china.name},600.5\n{flower.name},0.5\n")
    table = str(tmp_path / "ages.csv")
    data = data_of(table, val_file=table, test_size=0, label_column="age")
    batch = next(iter(data.val_dataloader()))
    assert (batch["labels"].tolist(), batch["labels"].dtype) == ([600.5, 0.5], torch.float32)


def test_labels_given_name_the_numbers_of_an_idx_file(tmp_path):
    names = [f"digit {number}" for number in range(10)]
    data = data_of(write_mnist(tmp_path), labels=names, task="multiclass")
    assert data.labels.names == tuple(names)
    assert data.tables["train"]["label"][0] in names


def test_labels_given_that_are_the_numbers_themselves_keep_their_meaning(tmp_path):
    data = data_of(write_mnist(tmp_path), labels=[*"9876543210"], val_size=0, test_size=0)
    assert data.labels.names == tuple("9876543210")
    assert [str(label) for label in data.tables["train"]["label"]] == [str(label) for label in digits(60)[1]]


def test_predictions_have_no_labels_and_keep_the_order_of_the_folder(tmp_path):
    write_photos(tmp_path / "flat")
    data = data_of(None, "predict", predict_file=str(tmp_path / "flat"), labels=["a", "b"], batch_size=1)
    batches = list(data.predict_dataloader())
    assert [list(batch) for batch in batches] == [["pixel_values"]] * 2
    rows = data.predict_rows(0, 2)
    assert [Path(row["image"]).name for row in rows] == ["china.jpg", "flower.jpg"]
    assert not torch.equal(*(batch["pixel_values"] for batch in batches))


def test_a_test_needs_no_training_file(tmp_path):
    data = data_of(None, "test", test_file=str(write_class_folders(tmp_path / "t", 20)), labels=[*"0123456789"])
    assert sum(len(batch["labels"]) for batch in data.test_dataloader()) == 20


def test_augmented_images_are_the_same_with_any_number_of_workers():
    def epoch(num_workers):
        torch.manual_seed(num_workers)
        augment = {"auto_augment": "rand-m9-mstd0.5", "re_prob": 0.5, "re_mode": "pixel"}
        return pixels_of(
            data_of(DIGITS, num_workers=num_workers, val_size=1600, test_size=97, augment=augment).train_dataloader()
        )

    assert torch.equal(epoch(0), epoch(2))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_augmented_images_differ_between_epochs_and_between_seeds(num_workers):
    data = data_of(DIGITS, num_workers=num_workers, val_size=1600, test_size=97)
    order = [3, 0, 5]

    def images(seed, epoch):
        data.seed = seed
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        drawn = dict(zip(list(loader.sampler), pixels_of(loader), strict=True))
        return torch.stack([drawn[index] for index in order])

    first = images(0, 0)
    assert torch.equal(images(0, 0), first)
    for other in (images(0, 1), images(1, 0)):
        assert all(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_two_rows_of_one_image_are_augmented_differently(tmp_path):
    china, _ = write_photos(tmp_path)
    (tmp_path / "twice.csv").write_text("image,label\n" + f"{china.name},a\n{china.name},b\n" * 2)
    loader = data_of(tmp_path / "twice.csv", val_size=0, test_size=0).train_dataloader()
    assert len({image.numpy().tobytes() for image in pixels_of(loader)}) == 4


def test_loading_leaves_the_global_generators_as_they_are():
    data = data_of(DIGITS, val_size=1600, test_size=97)
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    pixels_of(data.train_dataloader())
    assert (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()) == before


def test_the_seed_of_a_checkpoint_counts_though_it_comes_after_setup():
    first, second = data_of(DIGITS, val_size=1600, test_size=97), data_of(DIGITS, val_size=1600, test_size=97)
    first.seed = 123
    second.load_state_dict(first.state_dict())
    assert torch.equal(pixels_of(first.train_dataloader()), pixels_of(second.train_dataloader()))


def test_without_augmentation_training_images_are_those_of_the_evaluation(tmp_path):
    folder = str(write_class_folders(tmp_path / "digits"))
    data = data_of(folder, val_file=folder, test_size=0, augment=False)
    train, val = (
        {image.numpy().tobytes() for image in pixels_of(loader)}
        for loader in (data.train_dataloader(), data.val_dataloader())
    )
    assert train == val


def test_only_training_images_are_augmented(tmp_path):
    folder = str(write_class_folders(tmp_path / "digits"))
    files = {"val_file": folder, "test_file": folder, "predict_file": folder}
    for part, stage in (("val", "validate"), ("test", "test"), ("predict", "predict")):
        augmented, plain = (
            pixels_of(getattr(data_of(folder, stage, augment=augment, **files), f"{part}_dataloader")())
            for augment in (True, False)
        )
        assert torch.equal(augmented, plain)


def test_another_fit_takes_the_config_of_its_own_backbone():
    data = data_of(DIGITS, image_size=None, val_size=1600, test_size=97)
    data.trainer = trainer_of(CONFIG | {"input_size": (3, 32, 32)})
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["pixel_values"].shape[-2:] == (32, 32)


class Recorder(LightningModule):
    """A linear classifier that writes down the images it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(3 * 24 * 24, 10)
        self.backbone.data_config = CONFIG
        self.seen = []

    def training_step(self, batch, _):
        self.seen.append((self.current_epoch, batch["pixel_values"].clone()))
        return nn.functional.cross_entropy(self.backbone(batch["pixel_values"].flatten(1)), batch["labels"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(root, max_steps, num_workers=0, ckpt_path=None):
    module = Recorder()
    trainer = Trainer(
        max_steps=max_steps, accelerator="cpu", logger=False, enable_progress_bar=False, limit_val_batches=0,
        enable_model_summary=False, default_root_dir=root,
        callbacks=[ModelCheckpoint(root, every_n_train_steps=1, save_top_k=-1, filename="{step}")],
    )  # fmt: skip
    data = ImageClassificationData(DIGITS, val_size=1660, test_size=37, num_workers=num_workers)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module.seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("stopped_at", "num_workers"), [(2, 0), (4, 0), (6, 2)])
def test_a_resumed_run_meets_the_same_augmented_images(tmp_path, stopped_at, num_workers):
    whole = run(tmp_path / "whole", 10)
    assert [epoch for epoch, _ in whole] == [0] * 4 + [1] * 4 + [2] * 2
    resumed = run(tmp_path / "resumed", 10, num_workers, tmp_path / "whole" / f"step={stopped_at}.ckpt")
    assert len(resumed) == 10 - stopped_at
    for (epoch, images), (again, same) in zip(whole[stopped_at:], resumed, strict=True):
        assert epoch == again
        assert torch.equal(images, same)


def broken_folder(root):
    folder = write_class_folders(root / "digits", 60)
    bad = sorted(folder.rglob("*.png"))[::8]
    for path in bad:
        path.write_bytes(path.read_bytes()[:60])
    return folder, bad


def test_unreadable_images_are_counted_and_the_first_named(tmp_path):
    folder, bad = broken_folder(tmp_path)
    with pytest.raises(ValueError, match=r"train_file '.*digits': 8 of 60 images cannot be read") as caught:
        data_of(folder)
    named = [path.name for path in bad if path.name in str(caught.value)]
    assert named == [path.name for path in bad[:5]]
    assert "skip_unreadable=True" in str(caught.value)


def test_unreadable_images_are_dropped_when_asked_and_named(tmp_path, caplog):
    folder, bad = broken_folder(tmp_path)
    with caplog.at_level(logging.INFO):
        data = data_of(folder, skip_unreadable=True, val_size=0, test_size=0)
    assert "8 of 60 images cannot be read; dropped" in caplog.text
    assert str(bad[0]) in caplog.text
    assert len(pixels_of(data.train_dataloader())) == 52
    data = data_of(None, "predict", predict_file=str(folder), skip_unreadable=True)
    assert len(pixels_of(data.predict_dataloader())) == 52
    assert not {row["image"] for row in data.predict_rows(0, 52)} & set(map(str, bad))


def test_nothing_left_to_read_is_an_error_also_when_asked_to_skip(tmp_path):
    china, flower = write_photos(tmp_path / "flat")
    for path in (china, flower):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="2 of 2 images cannot be read"):
        data_of(None, "predict", predict_file=str(tmp_path / "flat"), skip_unreadable=True)


def test_a_missing_image_of_a_table_is_unreadable(tmp_path):
    write_photos(tmp_path)
    (tmp_path / "table.csv").write_text("image,label\nchina.jpg,a\nflower.jpg,b\nflowr.jpg,b\n")
    with pytest.raises(ValueError, match=r"1 of 3 images cannot be read: .*flowr\.jpg: no such file"):
        data_of(tmp_path / "table.csv")


def test_ranks_find_the_outcome_of_the_check_and_all_tell_of_an_error(tmp_path):
    folder = write_class_folders(tmp_path / "digits", 60)
    first = ImageClassificationData(str(folder))
    first.trainer = trainer_of(state=SimpleNamespace(fn=SimpleNamespace(value="fit")))
    first.trainer.world_size = 2
    first.prepare_data()
    for path in folder.rglob("*.png"):
        status = path.stat()
        path.write_bytes(bytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    data_of(folder)
    (folder / "0" / "new.png").touch()
    first._sources.clear()
    first.prepare_data()
    for _ in range(2):
        with pytest.raises(ValueError, match="cannot be read"):
            data_of(folder)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"train_file": "nowhere"}, FileNotFoundError, "train_file: no such file or folder"),
        ({"train_file": DIGITS, "val_file": "nowhere.csv"}, FileNotFoundError, "val_file: no such file or folder"),
        ({"train_file": "package://sklearn/nowhere"}, FileNotFoundError, "package 'sklearn' has no 'nowhere'"),
        ({"train_file": None}, ValueError, "needs train_file"),
        ({"train_file": DIGITS, "image_size": 0}, ValueError, "image_size to be a positive number of pixels"),
        ({"train_file": DIGITS, "label_column": "image"}, ValueError, "label_column to be another column"),
        ({"train_file": DIGITS, "augment": {"hflipp": 1}}, ValueError, "did you mean 'hflip'"),
    ],
)
def test_arguments_that_cannot_be_are_refused(options, error, sentence):
    with pytest.raises(error, match=sentence):
        data_of(**options)


def test_a_single_class_is_refused(tmp_path):
    write_photos(tmp_path / "root" / "only")
    with pytest.raises(ValueError, match="all 2 rows have the label 'only'"):
        data_of(tmp_path / "root", val_size=0, test_size=0)


def test_predicting_without_a_file_says_so():
    with pytest.raises(ValueError, match="ImageClassificationData needs predict_file"):
        data_of(DIGITS, "predict")


@pytest.mark.parametrize("trainer", [None, SimpleNamespace(lightning_module=None), SimpleNamespace(lightning_module=3)])
def test_a_module_without_a_data_config_is_told_what_to_do(trainer):
    data = ImageClassificationData(DIGITS)
    data.trainer = trainer
    with pytest.raises(ValueError, match=r"backbone\.data_config, but .*; train a FineTuner with a TimmBackbone"):
        data.setup("fit")


def test_importing_it_imports_no_vision_library():
    code = (
        # torchmetrics, which Lightning needs, imports torchvision by itself where it is installed
        "import sys, lightning.pytorch; before = set(sys.modules);"
        "from lightning_ft.data.image_classification import ImageClassificationData as D; D('x.csv');"
        "print(*{'timm', 'datasets', 'torchvision', 'PIL.Image'} & (set(sys.modules) - before))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
