"""DetectionHead: torchvision's FCOS on maps of ours, and boxes put together from the tiles of an image."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator

from lightning_ft import DetectionHead, FeatureInfo, MapFeatures

INFO = FeatureInfo(16, "maps", (4, 8, 16), (4, 8, 16))
NAMES = ("tree", "bush")
SIZE = 64
TARGET = torch.tensor(
    [
        [[0, 4.0, 6, 30, 28], [1, 20, 20, 60, 64]],
        [[1, 10, 12, 22, 40], [-1, 0, 0, 0, 0]],
        [[-1, 0, 0, 0, 0], [-1, 0, 0, 0, 0]],
    ]
)


def head_of(num_classes: int | None = 2, **options: Any) -> DetectionHead:
    torch.manual_seed(0)
    return DetectionHead(INFO, num_classes, **({"width": 64, "num_convs": 1} | options)).eval()


def maps_of(num_tiles: int = 3) -> MapFeatures:
    draw = torch.Generator().manual_seed(0)
    sizes = zip(INFO.channels, INFO.strides, strict=True)
    return MapFeatures(tuple(torch.randn(num_tiles, c, SIZE // s, SIZE // s, generator=draw) * 20 for c, s in sizes))


def certain_of(head: DetectionHead, boxes: list[list[tuple[int, list[float]]]]) -> Tensor:
    """Return a prediction that is certain of one box at the place nearest to its centre in each tile."""
    prediction = head(maps_of(len(boxes)))
    prediction[..., :7] = torch.tensor([-20.0, -20, 0, 0, 0, 0, -20])
    for tile, found in enumerate(boxes):
        for kind, box in found:
            x1, y1, x2, y2 = box
            x, y, stride = prediction[tile, :, -3:].unbind(-1)
            place = ((x - (x1 + x2) / 2).abs() + (y - (y1 + y2) / 2).abs() + stride / 1000).argmin()
            here = prediction[tile, place]
            here[kind] = here[6] = 20.0
            x, y, stride = here[-3:].tolist()
            here[2:6] = torch.tensor([x - x1, y - y1, x2 - x, y2 - y]) / stride
    return prediction


class Given(nn.Module):
    """Stands for a backbone in torchvision's FCOS: the pyramid of maps that are there already."""

    def __init__(self, head: DetectionHead, maps: MapFeatures) -> None:
        super().__init__()
        self.pyramid = head.fcos.model.backbone
        self.maps = maps.maps[1:]  # without that of stride 4
        self.out_channels = 64

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        assert len(images) == len(self.maps[0])
        return self.pyramid({str(level): values for level, values in enumerate(self.maps)})


def theirs(head: DetectionHead, maps: MapFeatures) -> FCOS:
    """Return torchvision's own model with the same weights."""
    return FCOS(
        Given(head, maps),
        num_classes=2,
        min_size=SIZE,
        max_size=SIZE,
        anchor_generator=AnchorGenerator(((8,), (16,), (32,), (64,)), ((1.0,),) * 4),
        head=head.fcos.model.head,
        score_thresh=0.05,
    )


def test_the_loss_of_a_tile_is_torchvisions_but_for_what_it_is_divided_by() -> None:
    head = head_of()
    # torchvision divides by the places in objects, of which there is a whole number
    num_places = []
    for tile in (0, 1):
        for scale in (1, 3):
            maps = MapFeatures(tuple(scale * values[tile : tile + 1] for values in maps_of().maps))
            target = TARGET[tile : tile + 1]
            objects = target[target[..., 0] >= 0]
            truth = [{"boxes": objects[:, 1:], "labels": objects[:, 0].long()}]
            expected = sum(theirs(head, maps).train()([torch.zeros(3, SIZE, SIZE)], truth).values())
            summed = head.loss(head(maps), target) * (9 * len(objects) + 1)
            num_places.append((summed / expected).item())
    assert num_places[0] == pytest.approx(num_places[1], rel=1e-4)
    assert num_places == pytest.approx([round(number) for number in num_places], rel=1e-4)
    assert all(1 <= number <= 18 for number in num_places)
    empty = MapFeatures(tuple(values[2:] for values in maps_of().maps))
    nothing = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}]
    expected = sum(theirs(head, empty).train()([torch.zeros(3, SIZE, SIZE)], nothing).values())
    torch.testing.assert_close(head.loss(head(empty), TARGET[2:]), expected)


def test_the_boxes_of_an_image_are_torchvisions() -> None:
    head = head_of(score_threshold=0.05)
    prediction = head(maps_of())
    assert isinstance(head.fcos.model, FCOS)
    with torch.no_grad():
        head.fcos.model.head.classification_head.cls_logits.bias.zero_()
        prediction = head(maps_of())
        expected = theirs(head, maps_of()).eval()([torch.zeros(3, SIZE, SIZE)] * 3)
    rows = head.decode(prediction, None, {})
    for row, boxes in zip(rows, expected, strict=True):
        assert len(row["prediction"]) == len(boxes["boxes"]) > 10
        found = torch.tensor([box["box"] for box in row["prediction"]])
        torch.testing.assert_close(found, boxes["boxes"], atol=0.01, rtol=0)


def test_the_loss_is_a_mean_whatever_the_batches() -> None:
    head, prediction = head_of(), head_of()(maps_of())
    parts = [TARGET[tile : tile + 1] for tile in range(3)]
    losses = torch.stack([head.loss(prediction[tile : tile + 1], part) for tile, part in enumerate(parts)])
    weights = torch.tensor([float(head.count(part)) for part in parts])
    assert weights.tolist() == [19, 10, 1]
    torch.testing.assert_close(head.loss(prediction, TARGET), (losses * weights).sum() / head.count(TARGET))


def test_a_batch_without_objects_has_a_loss_and_a_gradient() -> None:
    prediction = head_of()(maps_of()).detach().requires_grad_()
    loss = head_of().loss(prediction, torch.full((3, 1, 5), -1.0))
    loss.backward()
    assert loss.isfinite()
    assert prediction.grad is not None
    assert prediction.grad.abs().sum() > 0


def test_places_are_exact_in_low_precision() -> None:
    head = head_of()
    with torch.autocast("cpu", torch.bfloat16):
        low = head(maps_of())
    assert torch.equal(low[..., -3:], head(maps_of())[..., -3:])
    assert head.loss(low, TARGET).dtype == torch.float32


def test_a_certain_prediction_is_told_with_names_and_pixels() -> None:
    head = head_of()
    prediction = certain_of(head, [[(0, [4.0, 6, 30, 28]), (1, [20, 20, 60, 64])], []])
    first, second = head.decode(prediction, NAMES, {})
    found = {box["label"]: box["box"] for box in first["prediction"]}
    assert found == {"tree": pytest.approx([4, 6, 30, 28], abs=0.01), "bush": pytest.approx([20, 20, 60, 64], abs=0.01)}
    assert all(box["score"] > 0.99 for box in first["prediction"])
    assert second["prediction"] == []


def test_tiles_are_put_together_in_pixels_of_their_image() -> None:
    head = head_of()
    # two tiles of image 4, at half its size, share an object; image 7 is one tile
    prediction = certain_of(head, [[(0, [40.0, 10, 60, 30])], [(0, [8.0, 10, 28, 30])], [(1, [5.0, 5, 25, 25])]])
    tiles = torch.tensor([[4, 0, 0, 0.5, 64, 64], [4, 64, 0, 0.5, 64, 64], [7, 0, 0, 1, 64, 64]])
    first, second = head.decode(prediction, NAMES, {"tiles": tiles})
    (tree,) = first["prediction"]
    assert tree["box"] == pytest.approx([80, 20, 120, 60], abs=0.02)
    assert [box["label"] for box in second["prediction"]] == ["bush"]
    objects = torch.full((3, 1, 7), -1.0)
    objects[0, 0] = torch.tensor([0.0, 80, 20, 120, 60, 0, 0])
    objects[2, 0] = torch.tensor([1.0, 5, 5, 25, 25, 0, 0])
    metrics = head.metrics()
    metrics.update(*head.evaluated(prediction, TARGET, {"labels": TARGET, "tiles": tiles, "objects": objects}))
    assert metrics.compute()["map"] == pytest.approx(1.0)


def test_boxes_end_where_the_picture_ends() -> None:
    head = head_of()
    prediction = certain_of(head, [[(0, [20.0, 20, 60, 60])]])
    (row,) = head.decode(prediction, NAMES, {"tiles": torch.tensor([[0.0, 0, 0, 1, 50, 40]])})
    assert row["prediction"][0]["box"] == pytest.approx([20, 20, 50, 40], abs=0.01)


def test_boxes_below_the_threshold_count_in_metrics_only() -> None:
    prediction = certain_of(head_of(), [[(0, [4.0, 6, 30, 28])]])
    prediction[..., 6] = -2.5
    head = head_of(score_threshold=0.5)
    assert head.decode(prediction, NAMES, {})[0]["prediction"] == []
    found, objects = head.compared(prediction, TARGET[:1])
    assert (found[:, 2] > 0.05).any()
    assert objects[:, 1].tolist() == [0, 1]


def test_many_tiles_pass_in_parts_and_give_what_they_give_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_ft.heads.detection.TILES_A_PASS", 2)
    head, maps = head_of(score_threshold=0.1), maps_of(5)
    with torch.no_grad():
        head.fcos.model.head.classification_head.cls_logits.bias.zero_()
    sizes = []

    def backbone(batch: Any) -> MapFeatures:
        sizes.append(len(batch["rows"]))
        return MapFeatures(tuple(values[batch["rows"]] for values in maps.maps))

    tiles = torch.tensor([[image, 10.0 * image, 0, 1, 64, 64] for image in (3, 3, 3, 5, 6)])
    for extra in ({}, {"tiles": tiles}):
        batch = {"rows": torch.arange(5), **extra}
        with torch.no_grad():
            rows = head.predict(backbone, batch, NAMES)
            assert rows == head.decode(head(maps), NAMES, batch)
        assert sum(len(row["prediction"]) for row in rows) > 10
    assert sizes == [2, 2, 1] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": None}, "needs num_classes"),
        ({"num_classes": 0}, "num_classes to be at least 1, but got 0"),
        ({"num_convs": 0}, "num_convs to be at least 1, but got 0"),
        ({"width": 48}, "width to be a multiple of 32, at least 64, but got 48"),
        ({"score_threshold": 1.5}, "score_threshold to be between 0 and 1, but got 1.5"),
        ({"finest_stride": 32}, "finest_stride=32 leaves no map; there are those of 4, 8, 16"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head_of(**options)


def test_pooled_features_and_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="pools them to one; set pyramid: true"):
        DetectionHead(FeatureInfo(8, "maps", (8,)), 2)
    with pytest.raises(ValueError, match="reads maps, but this backbone gives tokens"):
        DetectionHead(FeatureInfo(8, "tokens"), 2)
