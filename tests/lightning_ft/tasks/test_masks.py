"""Mask files: numbers come back as they were written, and what holds none is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_ft.tasks.masks import read_mask, write_mask


@pytest.mark.parametrize(("largest", "mode"), [(1, "L"), (255, "L"), (256, "I;16"), (65535, "I;16")])
def test_numbers_come_back_as_they_were_written(tmp_path: Path, largest: int, mode: str) -> None:
    numbers = np.random.default_rng(0).integers(0, largest, (5, 7), endpoint=True).astype(np.int32)
    numbers[0, 0] = largest
    file = tmp_path / "new" / "mask.png"
    write_mask(file, numbers)
    with Image.open(file) as image:
        assert image.mode == mode
    assert np.array_equal(read_mask(str(file)), numbers)


def test_black_and_white_is_0_and_1(tmp_path: Path) -> None:
    numbers = np.eye(4, dtype=bool)
    Image.fromarray(numbers).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(str(tmp_path / "mask.png")), numbers.astype(np.int32))


def test_colours_floats_and_what_is_no_image_are_refused(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2)).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match=r"mask.png: expected a class number a pixel, but it holds RGBA values"):
        read_mask(str(tmp_path / "mask.png"))
    Image.new("F", (2, 2)).save(tmp_path / "mask.tiff")
    with pytest.raises(ValueError, match=r"mask.tiff: expected a class number a pixel, but it holds F values"):
        read_mask(str(tmp_path / "mask.tiff"))
    with pytest.raises(OSError, match=r"none.png: no such file"):
        read_mask(str(tmp_path / "none.png"))
