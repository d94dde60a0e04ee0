"""The check of masks before the first step: each is read once, and compared with its image."""

import os
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool

import numpy as np

from lightning_ft.data.file_memory import memory_of, recall, remember
from lightning_ft.data.image_check import with_bar
from lightning_ft.data.images import read_image
from lightning_ft.tasks.masks import read_mask

NUM_NAMED = 5


def mask_values(images: Sequence[str], masks: Sequence[str], place: str) -> dict[str, list[int]]:
    """Decode images and their masks once and return the numbers in each mask.

    What is found is kept, as that of ``unreadable_images`` is, for as long as no file changes.

    Args:
        images: Absolute paths.
        masks: The mask of each, absolute paths.
        place: Where they come from, for messages.

    Returns:
        The numbers that occur, rising, by the mask's path.

    Raises:
        ValueError: If files cannot be read, or a mask has another size than its image; names the first of them.
    """
    pairs = list(zip(images, masks, strict=True))
    memory = memory_of([file for pair in pairs for file in pair], "mask_check")
    if (known := recall(memory)) is not None:
        return known
    with ThreadPool(min(16, os.cpu_count() or 1)) as pool:
        found = list(with_bar(pool.imap(_values, pairs, chunksize=16), len(pairs)))
    wrong = [one for one in found if isinstance(one, str)]
    if wrong:
        named = "; ".join(wrong[:NUM_NAMED]) + ("; ..." if len(wrong) > NUM_NAMED else "")
        raise ValueError(f"{place}: {len(wrong)} of {len(pairs)} images or masks cannot be used: {named}")
    values = {mask: one for mask, one in zip(masks, found, strict=True) if not isinstance(one, str)}
    remember(memory, values)
    return values


def _values(pair: tuple[str, str]) -> list[int] | str:
    """Return the numbers in a mask, or what is wrong."""
    image, mask = pair
    try:
        width, height = read_image(image).size
        numbers = read_mask(mask)
    except (OSError, ValueError) as error:
        return str(error)
    if numbers.shape != (height, width):
        rows, columns = numbers.shape
        return f"{mask} has {columns}x{rows} pixels, but its image {image} has {width}x{height}"
    return np.unique(numbers).tolist()
