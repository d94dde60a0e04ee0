"""Laws of opening an image file and of the random numbers of its transform."""

import random
import struct
import zlib

import numpy as np
import pytest
import torch
from image_parts import write_photos
from PIL import Image
from sklearn.datasets import load_sample_images

from lightning_ft.data.images import Images, read_image
from lightning_ft_callbacks.state.seeded import seeded


def global_states():
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


def draws(*key):
    with seeded(*key):
        return random.random(), np.random.rand(), torch.rand(()).item()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(tmp_path, orientation):
    upright = Image.fromarray(load_sample_images().images[0][:40, :64])
    stored = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]
    turned = upright
    for step in stored:
        turned = turned.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned.save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(str(tmp_path / "photo.png"))), np.asarray(upright))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    ("name", "exif"), [("photo.png", b"no TIFF header"), ("photo.jpg", b"II*\0\xff\xff\xff\x7f" + bytes(20))]
)
def test_a_broken_exif_block_does_not_make_an_image_unreadable(tmp_path, name, exif):
    photo = Image.fromarray(load_sample_images().images[0])
    photo.save(tmp_path / name, exif=b"Exif\0\0" + exif)
    assert read_image(str(tmp_path / name)).size == photo.size


def test_16_bit_grey_keeps_its_range(tmp_path):
    values = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "deep.png")
    read = np.asarray(read_image(str(tmp_path / "deep.png")))
    assert read.shape == (8, 8, 3)
    assert np.array_equal(read[..., 0], (values / 257).round())


def test_float_images_are_stretched_to_the_whole_range(tmp_path):
    Image.fromarray(np.linspace(-3, 5, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "float.tif")
    read = np.asarray(read_image(str(tmp_path / "float.tif")))
    assert (read.min(), read.max()) == (0, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_become_white(tmp_path, mode):
    picture = np.zeros((8, 8, 4), np.uint8)
    picture[:, 4:, 3] = 255
    Image.fromarray(picture).convert(mode).save(tmp_path / "clear.png")
    read = np.asarray(read_image(str(tmp_path / "clear.png")))
    assert (read[:, :4] == 255).all()
    assert (read[:, 4:] == 0).all()


def test_a_palette_is_looked_up(tmp_path):
    photo = Image.fromarray(load_sample_images().images[1][:32, :32])
    photo.quantize(16).save(tmp_path / "few.gif")
    assert np.array_equal(read_image(str(tmp_path / "few.gif")), photo.quantize(16).convert("RGB"))


def test_a_draft_reads_an_eighth_of_a_jpeg(tmp_path):
    china, _ = write_photos(tmp_path)
    assert read_image(str(china)).size == (640, 427)
    assert read_image(str(china), draft=True).size == (80, 54)


def test_more_pixels_than_pil_allows_cannot_be_read(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    with pytest.raises(OSError, match=r"bomb\.png: .*claims 2,500,000,000 pixels"):
        read_image(str(tmp_path / "bomb.png"))


def test_draws_are_a_function_of_the_key_alone():
    torch.manual_seed(1)
    first = draws(7, 3, 11)
    torch.rand(5), random.random(), np.random.rand()
    assert draws(7, 3, 11) == first
    assert len({first, draws(8, 3, 11), draws(7, 4, 11), draws(7, 3, 12), draws(3, 7, 11)}) == 5


def test_global_generators_stay_as_they_are_even_after_an_error():
    before = global_states()
    draws(4, 5, 6)

    @seeded(1, 2, 3)
    def fail():
        torch.randn(3), np.random.rand(), random.random()
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert global_states() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_generator_of_the_accelerator_stays_as_it_is():
    before = torch.cuda.get_rng_state()
    draws(1, 2, 3)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_an_image_that_breaks_after_the_check_is_named(tmp_path):
    china, flower = write_photos(tmp_path)
    images = Images([str(china), str(flower)], None, [0, 1], lambda _: torch.zeros(3, 1, 1))
    flower.write_bytes(flower.read_bytes()[:9000])
    assert images[0]["labels"] == 0
    with pytest.raises(OSError, match=r"flower\.jpg: .*truncated"):
        images[1]
