"""SegmentationHead: a class for each pixel, its losses, and masks at the size of the image."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lightning_ft import FeatureInfo, MapFeatures, SegmentationHead
from lightning_ft.tasks.masks import IGNORED

INFO = FeatureInfo(12, "maps", (4, 6, 12), (2, 4, 8))


def head_of(num_classes: int | None = 3, **options: Any) -> SegmentationHead:
    torch.manual_seed(0)
    return SegmentationHead(INFO, num_classes, **({"width": 8} | options)).eval()


def maps_of(height: int, width: int) -> MapFeatures:
    sizes = zip(INFO.channels, INFO.strides, strict=True)
    return MapFeatures(tuple(torch.randn(2, channels, height // s, width // s) for channels, s in sizes))


def target_of(*shape: int, ignored: float = 0.3) -> Tensor:
    """Return random classes, some of them not judged."""
    target = torch.randint(3, shape)
    return target.masked_fill(torch.rand(shape) < ignored, IGNORED)


def sure_of(target: Tensor) -> Tensor:
    """Return logits that are certain of a target."""
    return 40.0 * functional.one_hot(target.clamp(min=0), 3).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize("finest_stride", [1, 2, 4, 8])
def test_logits_have_the_size_of_the_images(finest_stride: int) -> None:
    head = head_of(finest_stride=finest_stride)
    assert head(maps_of(32, 64)).shape == (2, 3, 32, 64)


def test_maps_finer_than_the_finest_stride_have_no_effect_and_all_others_have() -> None:
    head, maps = head_of(finest_stride=4), maps_of(32, 32).maps
    before = head(MapFeatures(maps))
    for level, changes in enumerate((False, True, True)):
        changed = tuple(one + (number == level) for number, one in enumerate(maps))
        assert torch.equal(head(MapFeatures(changed)), before) != changes


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "dice", "cross_entropy+dice", "focal+dice"])
def test_pixels_that_nobody_judges_change_no_loss_and_get_no_gradient(loss: str, gamma: float) -> None:
    head, target = head_of(loss=loss, gamma=gamma), target_of(2, 8, 8)
    prediction = torch.randn(2, 3, 8, 8, requires_grad=True)
    value = head.loss(prediction, target)
    value.backward()
    ignored = (target == IGNORED)[:, None].expand_as(prediction)
    assert prediction.grad is not None
    assert prediction.grad.isfinite().all()
    assert not prediction.grad[ignored].any()
    assert prediction.grad[~ignored].any()
    other = torch.where(ignored, torch.randn_like(prediction), prediction)
    assert torch.allclose(head.loss(other, target), value)


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "dice", "cross_entropy+dice"])
def test_a_loss_is_the_mean_over_images_in_whatever_batches_and_zero_where_all_is_right(loss: str) -> None:
    head, target, prediction = head_of(loss=loss), target_of(5, 8, 8), torch.randn(5, 3, 8, 8)
    target[3] = IGNORED
    parts = [slice(0, 2), slice(2, 5)]
    counts = [head.count(target[part]) for part in parts]
    assert counts == [2, 2]
    values = [head.loss(prediction[part], target[part]) for part in parts]
    mean = sum(value * count for value, count in zip(values, counts, strict=True)) / sum(counts)
    assert torch.allclose(head.loss(prediction, target), mean)
    assert head.loss(sure_of(target), target) < 1e-6


def test_cross_entropy_is_torchs_and_focal_without_gamma_too() -> None:
    target, prediction = target_of(4, 8, 8, ignored=0.0), torch.randn(4, 3, 8, 8)
    weights = [1.0, 2.0, 5.0]
    one = head_of(class_weights=weights).loss(prediction[:1], target[:1])
    assert torch.allclose(one, functional.cross_entropy(prediction[:1], target[:1], torch.tensor(weights)))
    some = target_of(1, 8, 8)
    assert torch.allclose(head_of().loss(prediction[:1], some), functional.cross_entropy(prediction[:1], some))
    plain = functional.cross_entropy(prediction, target)
    assert torch.allclose(head_of().loss(prediction, target), plain)
    assert torch.allclose(head_of(loss="focal", gamma=0.0).loss(prediction, target), plain)
    assert head_of(loss="focal").loss(prediction, target) < plain


def test_the_focal_loss_of_two_classes_is_torchvisions() -> None:
    from torchvision.ops import sigmoid_focal_loss

    margin, target = torch.randn(1, 8, 8), torch.randint(2, (1, 8, 8))
    head = SegmentationHead(INFO, 2, loss="focal", gamma=2.0, width=8)
    ours = head.loss(torch.stack([torch.zeros_like(margin), margin], 1), target)
    theirs = sigmoid_focal_loss(margin, target.float(), alpha=-1, gamma=2.0, reduction="mean")
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_the_dice_loss_of_certain_classes_is_1_minus_torchmetrics() -> None:
    from torchmetrics.functional.segmentation import dice_score

    target, found = torch.randint(3, (4, 8, 8)), torch.randint(3, (4, 8, 8))
    ours = head_of(loss="dice").loss(sure_of(found), target)
    theirs = dice_score(found, target, num_classes=3, average="macro", input_format="index")
    assert torch.allclose(ours, 1 - theirs.mean(), atol=1e-5)


def test_a_class_that_an_image_has_not_is_not_in_its_dice() -> None:
    target = torch.zeros(1, 4, 4, dtype=torch.long)
    target[:, 2:] = 1
    assert head_of(loss="dice").loss(sure_of(target), target) < 1e-6


def test_a_batch_that_nobody_judges_has_no_loss_and_a_gradient() -> None:
    prediction = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = head_of(loss="cross_entropy+dice").loss(prediction, torch.full((1, 4, 4), IGNORED))
    loss.backward()
    assert loss.item() == 0.0


def test_a_target_of_another_size_is_judged_at_its_own() -> None:
    head, prediction = head_of(), torch.randn(1, 3, 8, 8)
    target = target_of(1, 6, 7)
    assert head.loss(prediction, target) > 0
    assert head.compared(prediction, target)[0].shape == (1, 6, 7)


def test_a_mask_has_the_size_of_the_image_and_leaves_out_what_was_filled() -> None:
    logits = torch.full((2, 3, 8, 8), 0.0)
    logits[:, 2] = 1.0
    logits[0, 1, :4, :4] = 5.0  # the left half of the part that the image fills
    batch = {"sizes": torch.tensor([[20, 40], [8, 8]]), "extents": torch.tensor([[4, 8], [8, 8]])}
    first, second = (row["prediction"] for row in head_of().decode(logits, None, batch))
    assert first.shape == (20, 40)
    assert first.dtype == torch.int32
    assert (first[:, :17] == 1).all()
    assert (first[:, 23:] == 2).all()
    assert (second == 2).all()


def test_a_mask_is_the_most_likely_class_of_the_scaled_logits() -> None:
    logits = torch.randn(1, 3, 8, 8)
    (row,) = head_of().decode(logits, None, {"sizes": torch.tensor([[21, 13]]), "extents": torch.tensor([[8, 8]])})
    scaled = functional.interpolate(logits, (21, 13), mode="bilinear", align_corners=False)
    assert torch.equal(row["prediction"].long(), scaled.argmax(1)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": None}, "needs num_classes"),
        ({"num_classes": 1}, "at least 2, but got 1"),
        ({"loss": "dise"}, "expected loss to be cross_entropy, focal, dice, or some joined by [+], but got 'dise'"),
        ({"loss": "dice+dice"}, "but got 'dice[+]dice'"),
        ({"class_weights": [1.0]}, "1 class_weights for 3 classes"),
        ({"class_weights": [1.0, 1.0, 1.0], "loss": "dice"}, "class_weights have no effect on loss='dice'"),
        ({"width": 12}, "a positive multiple of 8, but got 12"),
        ({"gamma": -1.0}, "gamma to be at least 0, but got -1.0"),
        ({"finest_stride": 16}, r"finest_stride=16, but the backbone's are \(2, 4, 8\)"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head_of(**options)


def test_pooled_features_and_tokens_are_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="this backbone pools its own: set pyramid: true"):
        SegmentationHead(FeatureInfo(8, "maps", (8,)), 3)
    with pytest.raises(ValueError, match="reads maps, but this backbone gives tokens"):
        SegmentationHead(FeatureInfo(8, "tokens"), 3)
