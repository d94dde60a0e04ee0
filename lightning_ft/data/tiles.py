"""Tiles: pieces of large images with the objects in them, cut and transformed as they are asked for."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_ft.data.image_boxes import TileTransform
from lightning_ft.data.images import read_image, stamps
from lightning_ft.tasks.boxes import NOTHING
from lightning_ft_callbacks.caching.kept_caches import digest
from lightning_ft_callbacks.state.seeded import seeded

if TYPE_CHECKING:
    from PIL import Image

MOST_PIXELS = 2**26  # of decoded images that are kept, 192 MiB


@dataclass(frozen=True, slots=True)
class Tile:
    """A piece of an image.

    Attributes:
        image: The number of its image.
        x: Its left edge in the image [pixel].
        y: Its upper edge [pixel].
        width: Its width [pixel].
        height: Its height [pixel].
    """

    image: int
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """The objects of an image.

    Attributes:
        classes: Shape (object,).
        boxes: x1, y1, x2, y2 [pixel], shape (object, 4).
        ignored: Whether it is neither learned nor judged, shape (object,).
    """

    classes: np.ndarray
    boxes: np.ndarray
    ignored: np.ndarray


class Tiles(Dataset):
    """Samples of one tile, or of all tiles of an image, with their objects.

    What the transform draws is a function of ``seed``, ``epoch`` and the sample's number alone.

    Args:
        paths: The images.
        tiles: The tiles of each sample.
        objects: The objects of each image; None where there is nothing but the images.
        transform: Makes the network's input of a tile.
        judged: Whether samples tell where they lie, and the whole objects of their images.
        min_visible: Share of an object's box that must lie in a tile for the object to be in it.

    Attributes:
        seed: Seed of the run.
        epoch: The epoch, a 0-dim tensor; a shared one tells it to worker processes.
    """

    def __init__(
        self,
        paths: Sequence[str],
        tiles: Sequence[Sequence[Tile]],
        objects: Sequence[Objects] | None,
        transform: TileTransform,
        *,
        judged: bool,
        min_visible: float,
    ) -> None:
        self.paths = paths
        self.tiles = tiles
        self.transform = transform
        self.judged = judged
        self.seed = 0
        self.epoch = torch.tensor(0)
        self._images = RecentImages()
        self._within: list[np.ndarray] | None = None
        self._whole: list[np.ndarray] = []
        if objects is not None:
            singles = [sample[0] for sample in tiles]
            self._within = [objects_within(tile, objects[tile.image], min_visible) for tile in singles]
            self._whole = objects_by_tile(singles, objects) if judged else []
        # a batch has as many rows of objects as any other, so that FrozenPrefixCache can keep them
        self._num_within = max((len(rows) for rows in self._within or ()), default=0)
        self._num_whole = max((len(rows) for rows in self._whole), default=0)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.tiles)

    @cached_property
    def fingerprint(self) -> str:
        """What the samples follow from: images (files by path, size and time), tiles, objects, transform and seed.

        By it FrozenPrefixCache knows in a later run what it has kept.
        """
        objects = [torch.from_numpy(rows) for rows in (*(self._within or ()), *self._whole)]
        return digest(self.transform, self.seed, stamps(self.paths), self.tiles, self.judged, *objects)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return ``pixel_values``, and ``labels``, ``tiles`` and ``objects`` where there are any: rows of its tiles."""
        pixels, places, within = [], [], None
        for tile in self.tiles[index]:
            image = self._images.get(self.paths[tile.image])
            picture = image.crop((tile.x, tile.y, tile.x + tile.width, tile.y + tile.height))
            rows = np.zeros((0, 5), np.float32) if self._within is None else self._within[index]
            with seeded(self.seed, int(self.epoch), index):
                values, boxes, (width, height), scale = self.transform(picture, torch.from_numpy(rows[:, 1:]))
            pixels.append(values)
            places.append([tile.image, tile.x, tile.y, scale, width, height])
            within = torch.cat([torch.from_numpy(rows[:, :1]), boxes], 1)
        sample = {"pixel_values": torch.stack(pixels)}
        if self._within is not None and within is not None:
            sample["labels"] = _filled(within, self._num_within)
        if self.judged:
            sample["tiles"] = torch.tensor(places, dtype=torch.float32)
        if self._whole:
            sample["objects"] = _filled(torch.from_numpy(self._whole[index]), self._num_whole)
        return sample


class RecentImages:
    """Decoded images, the last ones kept as far as they take little memory."""

    def __init__(self) -> None:
        self._images: OrderedDict[str, Image.Image] = OrderedDict()

    def get(self, path: str) -> "Image.Image":
        """Return an image."""
        if path not in self._images:
            self._images[path] = read_image(path)
            while len(self._images) > 1 and self._num_pixels() > MOST_PIXELS:
                self._images.popitem(last=False)
        self._images.move_to_end(path)
        return self._images[path]

    def _num_pixels(self) -> int:
        return sum(image.width * image.height for image in self._images.values())


def tiles_of(image: int, size: tuple[int, int], tile_size: int | None, overlap: int) -> list[Tile]:
    """Return the tiles of an image, row by row; they are spread evenly.

    Args:
        image: The image's number.
        size: Its width and height [pixel].
        tile_size: Width and height of a tile [pixel]; None for the image as it is.
        overlap: Pixels that neighbouring tiles share at least.
    """
    width, height = size
    if tile_size is None:
        return [Tile(image, 0, 0, width, height)]
    return [
        Tile(image, x, y, min(tile_size, width), min(tile_size, height))
        for y in _starts(height, tile_size, overlap)
        for x in _starts(width, tile_size, overlap)
    ]


def objects_within(tile: Tile, objects: Objects, min_visible: float) -> np.ndarray:
    """Return the class and the box in a tile [pixel of the tile] of each object in it, shape (object, 5)."""
    corner = np.array([tile.x, tile.y, tile.x, tile.y], np.float32)
    size = np.array([tile.width, tile.height, tile.width, tile.height], np.float32)
    boxes = np.clip(objects.boxes - corner, 0, size)
    share = _areas(boxes) / np.maximum(_areas(objects.boxes), 1e-9)
    kept = (share >= min_visible) & (_areas(boxes) > 0) & ~objects.ignored
    return np.concatenate([objects.classes[kept, None], boxes[kept]], 1).astype(np.float32)


def objects_by_tile(tiles: Sequence[Tile], objects: Sequence[Objects]) -> list[np.ndarray]:
    """Return for each tile the objects whose centre it is the first to hold, shape (object, 7).

    Columns are class, x1, y1, x2, y2 [pixel of the image], ignored, and the object's number in its image.

    Args:
        tiles: Tiles that cover their images.
        objects: The objects of each image.
    """
    told = [np.zeros(len(here.classes), bool) for here in objects]
    found = []
    for tile in tiles:
        here = objects[tile.image]
        x, y = (here.boxes[:, :2] + here.boxes[:, 2:]).T / 2
        # an edge belongs to both, so that none is lost to rounding
        inside = (x >= tile.x) & (x <= tile.x + tile.width) & (y >= tile.y) & (y <= tile.y + tile.height)
        new = inside & ~told[tile.image]
        told[tile.image] |= new
        columns = [here.classes[new, None], here.boxes[new], here.ignored[new, None], np.flatnonzero(new)[:, None]]
        found.append(np.concatenate(columns, 1).astype(np.float32))
    return found


def collate_tiles(samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return a batch of all tiles of some samples."""
    return {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}


def _starts(length: int, tile_size: int, overlap: int) -> list[int]:
    if length <= tile_size:
        return [0]
    num_tiles = -(-(length - overlap) // (tile_size - overlap))
    return np.linspace(0, length - tile_size, num_tiles).round().astype(int).tolist()


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _filled(rows: Tensor, num_rows: int) -> Tensor:
    """Return rows as those of one tile, shape (1, row, column), filled up with rows that are nothing."""
    filled = torch.zeros(1, max(num_rows, 1), rows.shape[1])
    filled[0, :, 0] = NOTHING
    filled[0, : len(rows)] = rows
    return filled
