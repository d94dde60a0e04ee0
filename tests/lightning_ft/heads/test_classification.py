"""Laws of the classification heads: their pooling, losses and metrics against hand computation and scikit-learn."""

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from scipy.stats import pearsonr, spearmanr
from sklearn import metrics as sklearn_metrics
from torch.nn import functional

from lightning_ft import FeatureInfo, ImageClassificationHead, MapFeatures, SequenceClassificationHead, TokenFeatures

TOKENS = FeatureInfo(6, "tokens")
MAPS = FeatureInfo(6, "maps", (3, 6), (4, 8))


def head_of(num_classes=3, task=None, **options):
    return SequenceClassificationHead(TOKENS, num_classes=num_classes, task=task, **options)


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def logits(draw):
    return 2 * torch.randn(40, 3, generator=draw)


@pytest.fixture
def classes(draw):
    return torch.randint(0, 3, (40,), generator=draw)


@pytest.fixture
def several(draw):
    return torch.randint(0, 2, (40, 3), generator=draw).float()


# pooling


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_pooling_reads_the_tokens_that_are_no_padding(draw, pooling, side):
    lengths, longest = [1, 3, 7, 5], 7
    states = torch.randn(4, longest, 6, generator=draw)
    mask = torch.zeros(4, longest, dtype=torch.long)
    expected = []
    for row, length in enumerate(lengths):
        tokens = range(length) if side == "right" else range(longest - length, longest)
        mask[row, list(tokens)] = 1
        if pooling == "mean":
            expected.append(sum(states[row, token] for token in tokens) / length)
        else:
            expected.append(states[row, tokens[0] if pooling == "cls" else tokens[-1]])
    pooled = head_of(pooling=pooling).pool(TokenFeatures(states, mask))
    torch.testing.assert_close(pooled, torch.stack(expected))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_padding_has_no_say_and_no_gradient(draw, pooling):
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]])
    states = torch.randn(2, 4, 6, generator=draw, requires_grad=True)
    head = head_of(pooling=pooling).eval()
    prediction = head(TokenFeatures(states, mask))
    prediction.sum().backward()
    assert not states.grad[mask == 0].any()
    other = torch.where(mask[..., None] == 1, states, 1e6)
    torch.testing.assert_close(head(TokenFeatures(other, mask)), prediction)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_text_of_no_tokens_gives_a_number(pooling):
    pooled = head_of(pooling=pooling).pool(TokenFeatures(torch.ones(1, 3, 6), torch.zeros(1, 3, dtype=torch.long)))
    assert pooled.isfinite().all()


def test_an_image_is_the_mean_of_its_last_map(draw):
    maps = (torch.randn(2, 3, 8, 8, generator=draw), torch.randn(2, 6, 4, 4, generator=draw))
    head = ImageClassificationHead(MAPS, num_classes=3).eval()
    mean = torch.stack([sum(maps[1][row, :, y, x] for y in range(4) for x in range(4)) / 16 for row in range(2)])
    torch.testing.assert_close(
        head(MapFeatures(maps)), functional.linear(mean, head.layers[-1].weight, head.layers[-1].bias)
    )


# layers


def test_a_hidden_layer_is_a_gelu_between_two_linear_ones(draw):
    head = head_of(hidden_size=5).eval()
    first, last = (layer for layer in head.layers if isinstance(layer, torch.nn.Linear))
    assert (first.weight.shape, last.weight.shape) == ((5, 6), (3, 5))
    states = torch.randn(4, 1, 6, generator=draw)
    expected = functional.gelu(states[:, 0] @ first.weight.T + first.bias) @ last.weight.T + last.bias
    torch.testing.assert_close(head(TokenFeatures(states, torch.ones(4, 1))), expected)


def test_without_a_hidden_layer_it_is_linear():
    assert sum(parameter.numel() for parameter in head_of().parameters()) == 6 * 3 + 3


@pytest.mark.parametrize("hidden_size", [None, 64])
def test_dropout_zeroes_its_share_in_training_alone(hidden_size):
    head = head_of(dropout=0.4, hidden_size=hidden_size)
    dropped = [layer for layer in head.layers if isinstance(layer, torch.nn.Dropout)]
    assert len(dropped) == (1 if hidden_size is None else 2)
    for layer in dropped:
        torch.manual_seed(0)
        assert (layer(torch.ones(10_000)) == 0).float().mean().item() == pytest.approx(0.4, abs=0.02)
    features = TokenFeatures(torch.ones(2, 3, 6), torch.ones(2, 3))
    assert not torch.equal(head(features), head(features))
    head.eval()
    assert torch.equal(head(features), head(features))


# losses


@pytest.mark.parametrize("weights", [None, [1.0, 5.0, 0.5]])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_classes_is_their_cross_entropy(logits, classes, weights, smoothing):
    loss = head_of(class_weights=weights, label_smoothing=smoothing).loss(logits, classes).item()
    probabilities = softmax(logits.double().numpy(), axis=1)
    given = np.array(weights or [1.0, 1.0, 1.0])
    target = np.eye(3)[classes.numpy()] * (1 - smoothing) + smoothing / 3
    # torch divides by the weights of the true classes
    expected = -(target * given * np.log(probabilities)).sum() / given[classes.numpy()].sum()
    assert loss == pytest.approx(expected, rel=1e-5)
    reference = functional.cross_entropy(
        logits, classes, None if weights is None else torch.tensor(weights), label_smoothing=smoothing
    )
    assert loss == pytest.approx(reference.item(), rel=1e-6)


@pytest.mark.parametrize("weights", [None, [1.0, 5.0, 0.5]])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_several_classes_is_their_binary_cross_entropy(logits, several, weights, smoothing):
    head = head_of(task="multilabel", class_weights=weights, label_smoothing=smoothing)
    probabilities = expit(logits.double().numpy())
    target = several.numpy() * (1 - smoothing) + smoothing / 2
    entropy = -(target * np.log(probabilities) + (1 - target) * np.log(1 - probabilities))
    expected = (entropy * np.array(weights or [1.0, 1.0, 1.0])).mean()
    assert head.loss(logits, several).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("num", [1, 2])
def test_the_loss_of_numbers_is_their_mean_squared_error(draw, num):
    prediction, target = torch.randn(2, 40, num, generator=draw)
    loss = head_of(num, "regression").loss(prediction, target[:, 0] if num == 1 else target)
    assert loss.item() == pytest.approx(((prediction - target) ** 2).mean().item(), rel=1e-6)
    assert head_of(num, "regression").loss(prediction, target.double()).dtype == torch.float32


def test_a_heavier_class_counts_more():
    logits, classes = torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1])
    losses = [head_of(2, class_weights=[1.0, weight]).loss(logits, classes).item() for weight in (0.1, 1.0, 10.0)]
    assert losses == sorted(losses)


def test_class_weights_are_no_part_of_a_checkpoint():
    assert "class_weights" not in head_of(class_weights=[1.0, 2.0, 3.0]).state_dict()


# metrics


def measured(head, prediction, target):
    """Return a head's metrics, updated in batches of uneven size as an epoch does."""
    collection = head.metrics()
    for rows in torch.split(torch.arange(len(prediction)), [1, 16, 16, 7]):
        collection.update(prediction[rows], target[rows])
    return {name: value.numpy() for name, value in collection.compute().items()}


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_metrics_of_classes_equal_scikit_learn(draw, num_classes):
    logits, classes = torch.randn(40, num_classes, generator=draw), torch.arange(40) % num_classes
    probabilities, predicted = logits.softmax(1).numpy(), logits.argmax(1).numpy()
    scores = probabilities[:, 1] if num_classes == 2 else probabilities
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(classes, predicted),
        "macro_f1": sklearn_metrics.f1_score(classes, predicted, average="macro"),
        "auroc": sklearn_metrics.roc_auc_score(classes, scores, multi_class="ovr", average="macro"),
        "confusion_matrix": sklearn_metrics.confusion_matrix(classes, predicted),
    }
    for name, value in measured(head_of(num_classes), logits, classes).items():
        np.testing.assert_allclose(value, expected.pop(name), rtol=1e-5, err_msg=name)
    assert not expected


def test_metrics_of_several_classes_equal_scikit_learn(logits, several):
    predicted = (logits > 0).int().numpy()
    expected = {
        "accuracy": (predicted == several.numpy()).mean(),
        "macro_f1": sklearn_metrics.f1_score(several, predicted, average="macro"),
        "auroc": sklearn_metrics.roc_auc_score(several, logits.sigmoid(), average="macro"),
        "confusion_matrix": sklearn_metrics.multilabel_confusion_matrix(several, predicted),
    }
    for name, value in measured(head_of(task="multilabel"), logits, several.int()).items():
        np.testing.assert_allclose(value, expected.pop(name), rtol=1e-5, err_msg=name)
    assert not expected


@pytest.mark.filterwarnings("ignore:Metric `SpearmanCorrcoef` will save all targets")
def test_metrics_of_numbers_equal_scikit_learn(draw):
    target = torch.randn(40, generator=draw)
    prediction = target + 0.5 * torch.randn(40, generator=draw)
    expected = {
        "r2": sklearn_metrics.r2_score(target, prediction),
        "mae": sklearn_metrics.mean_absolute_error(target, prediction),
        "pearson": pearsonr(target, prediction).statistic,
        "spearman": spearmanr(target, prediction).statistic,
    }
    for name, value in measured(head_of(None, "regression"), prediction, target).items():
        np.testing.assert_allclose(value, expected.pop(name), rtol=1e-4, err_msg=name)
    assert not expected


def test_metrics_are_fresh_each_time():
    head = head_of()
    first = head.metrics()
    first.update(torch.eye(3), torch.arange(3))
    assert head.metrics()["accuracy"] is not first["accuracy"]


# decoding


def test_a_prediction_is_the_most_probable_class_by_name(logits):
    rows = head_of().decode(logits, ["good", "fair", "bad"])
    for row, expected in zip(rows, softmax(logits.numpy(), axis=1), strict=True):
        assert list(row["probabilities"]) == ["good", "fair", "bad"]
        np.testing.assert_allclose(list(row["probabilities"].values()), expected, rtol=1e-5)
        assert row["prediction"] == ["good", "fair", "bad"][expected.argmax()]


def test_a_prediction_of_several_classes_lists_those_above_a_half(logits):
    rows = head_of(task="multilabel").decode(logits, ["a", "b", "c"])
    for row, values in zip(rows, logits, strict=True):
        assert row["prediction"] == [name for name, value in zip("abc", values, strict=True) if value >= 0]
        np.testing.assert_allclose(list(row["probabilities"].values()), expit(values.numpy()), rtol=1e-5)


def test_a_prediction_of_a_number_is_a_number():
    assert head_of(1, "regression").decode(torch.tensor([[1.5], [2.0]]), None) == [
        {"prediction": 1.5},
        {"prediction": 2.0},
    ]
    assert head_of(2, "regression").decode(torch.tensor([[1.5, 2.0]]), None) == [{"prediction": [1.5, 2.0]}]


def test_classes_without_names_are_numbered(logits):
    rows = head_of().decode(logits.bfloat16(), None)
    assert {row["prediction"] for row in rows} == {"0", "1", "2"}


# what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": None}, r"needs num_classes, as in partial\(SequenceClassificationHead, num_classes=2\)"),
        ({"num_classes": 1}, "num_classes to be at least 2, but got 1"),
        ({"num_classes": 0, "task": "multilabel"}, "num_classes to be at least 1, but got 0"),
        ({"task": "binary"}, "task to be .* but got 'binary'"),
        ({"class_weights": [1.0, 2.0]}, "2 class_weights for 3 classes"),
        ({"label_smoothing": 1.0}, "label_smoothing to be at least 0 and below 1, but got 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing to be at least 0 and below 1, but got -0.1"),
        ({"pooling": "max"}, "pooling to be 'mean', 'cls' or 'last', but got 'max'"),
        ({"dropout": 1.5}, "dropout .*1.5"),
        ({"num_classes": 1, "task": "regression", "class_weights": [1.0]}, "have no effect in a regression"),
        ({"num_classes": 1, "task": "regression", "label_smoothing": 0.1}, "have no effect in a regression"),
    ],
)
def test_an_option_that_does_not_go_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        head_of(**options)


def test_a_head_for_other_features_is_refused():
    with pytest.raises(ValueError, match="ImageClassificationHead reads maps, but this backbone gives tokens"):
        ImageClassificationHead(TOKENS, num_classes=2)
    with pytest.raises(ValueError, match="SequenceClassificationHead reads tokens, but this backbone gives maps"):
        SequenceClassificationHead(MAPS, num_classes=2)


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="num_clases"):
        head_of(num_clases=3)


def test_an_untrained_regression_predicts_around_the_mean_and_its_loss_is_in_units_of_the_spread():
    features = FeatureInfo(16, "tokens")
    options = {"num_classes": 1, "task": "regression", "dropout": 0.0}
    torch.manual_seed(0)
    plain = SequenceClassificationHead(features, **options)
    torch.manual_seed(0)
    scaled = SequenceClassificationHead(features, **options, target_mean=40.0, target_std=10.0)
    states = TokenFeatures(torch.randn(64, 3, 16), torch.ones(64, 3))
    torch.testing.assert_close(scaled(states), 40 + 10 * plain(states))
    target = torch.randn(64)
    torch.testing.assert_close(scaled.loss(scaled(states), 40 + 10 * target), plain.loss(plain(states), target))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "regression", "target_std": 0.0}, "expected target_std to be positive, but got 0.0"),
        ({"num_classes": 2, "target_mean": 1.0}, "target_mean and target_std have an effect in a regression only"),
    ],
)
def test_a_scale_that_cannot_be_is_said(options, said):
    with pytest.raises(ValueError, match=said):
        SequenceClassificationHead(FeatureInfo(16, "tokens"), **options)


def test_the_scale_of_a_regression_is_in_its_checkpoint():
    features = FeatureInfo(16, "tokens")
    head = SequenceClassificationHead(features, task="regression", target_mean=40.0, target_std=10.0)
    assert {"target_mean", "target_std"} <= head.state_dict().keys()
    other = SequenceClassificationHead(features, task="regression", target_mean=0.0, target_std=1.0)
    other.load_state_dict(head.state_dict())
    assert (other.target_mean.item(), other.target_std.item()) == (40.0, 10.0)
    assert "target_mean" not in SequenceClassificationHead(features, num_classes=2).state_dict()
