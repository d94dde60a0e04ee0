"""MaskedSamples: images and the classes of their pixels, opened and transformed one by one."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_ft.data.mask_transforms import MaskTransform, extent_of
from lightning_ft.data.masked_images import MaskedImages
from lightning_ft_callbacks.caching.kept_caches import digest
from lightning_ft_callbacks.state.seeded import seeded


class MaskedSamples(Dataset):
    """Images and the classes of their pixels, transformed as they are asked for.

    What the transform draws is a function of ``seed``, ``epoch`` and the index, as that of ``Images`` is.

    Args:
        source: The images.
        rows: Their numbers in the source.
        classes: The class of each number in a mask, shape (number,); None to predict.
        transform: Turns an image and the classes of its pixels into tensors.

    Attributes:
        seed: Seed of the run.
        epoch: The epoch, a 0-dim tensor; a shared one tells it to worker processes.
    """

    def __init__(
        self, source: MaskedImages, rows: Sequence[int], classes: np.ndarray | None, transform: MaskTransform
    ) -> None:
        self.source = source
        self.rows = rows
        self.classes = classes
        self.transform = transform
        self.seed = 0
        self.epoch = torch.tensor(0)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    @cached_property
    def fingerprint(self) -> str:
        """What the samples follow from: images and masks, their classes, transform and seed.

        By it FrozenPrefixCache knows in a later run what it has kept.
        """
        classes = None if self.classes is None else torch.tensor(self.classes)
        return digest(self.transform, self.seed, self.source.fingerprint, [*map(int, self.rows)], classes)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return ``pixel_values`` and ``labels``, or ``sizes`` and ``extents`` where there are no masks."""
        row = int(self.rows[index])
        image = self.source.image(row)
        classes = None if self.classes is None else self.classes[self.source.mask(row)]
        with seeded(self.seed, int(self.epoch), index):
            pixels, labels = self.transform(image, classes)
        if labels is not None:
            return {"pixel_values": pixels, "labels": labels}
        size = (image.height, image.width)
        extent = torch.tensor(extent_of(size, self.transform.size))
        return {"pixel_values": pixels, "sizes": torch.tensor(size), "extents": extent}
