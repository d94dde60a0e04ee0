"""ImageClassificationHead: classes, or a number, for an image."""

from typing import Any

from torch import Tensor

from lightning_ft.features import FeatureInfo, Features, MapFeatures
from lightning_ft.heads.classification import ClassificationHead


class ImageClassificationHead(ClassificationHead):
    """A classifier or regressor over the mean of the last feature map.

    A backbone that pools by itself gives a map of a single pixel, which the mean leaves as it is. For a vision
    transformer that gives tokens, take a SequenceClassificationHead with ``pooling="cls"``.

    Args:
        features: What the backbone gives.
        **kwargs: What every ClassificationHead takes: num_classes, task, dropout, hidden_size, class_weights,
            label_smoothing.

    Raises:
        ValueError: If the backbone gives tokens, or an option is wrong.
    """

    reads = "maps"

    def __init__(self, features: FeatureInfo, **kwargs: Any) -> None:
        self.expect(features)
        super().__init__(features, **kwargs)

    def pool(self, features: Features) -> Tensor:
        """Return one vector a sample, shape (batch, feature)."""
        assert isinstance(features, MapFeatures)
        return features.maps[-1].mean((2, 3))
