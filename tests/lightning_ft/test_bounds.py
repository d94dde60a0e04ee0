"""Small files that claim to be large are refused in one sentence, before they are unpacked."""

import bz2
import gzip
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
import zstandard
from pyarrow import parquet

from lightning_ft import TextClassificationData, load_checkpoint
from lightning_ft.bounds import BYTES, PIXELS, largest
from lightning_ft.data.boxed_images import upright_size
from lightning_ft.data.idx import read_idx
from lightning_ft.data.image_check import unreadable_images
from lightning_ft.data.images import read_image
from lightning_ft.data.volumes import VolumeSlices
from lightning_ft.tasks.masks import inside, read_mask

CLAIMS = "its header claims 2,500,000,000 pixels, but 178,956,970 are allowed; set LIGHTNING_FT_MAX_PIXELS"


def png(width: int, height: int, colours: int = 0) -> bytes:
    """Return a real grey PNG file of zeros, a few kilobytes for gigabytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer, row = zlib.compressobj(9), bytes(width + 1)
    rows = b"".join([*(packer.compress(row) for _ in range(min(height, 100))), packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, 8, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("images") / "bomb.png"
    file.write_bytes(png(50_000, 50_000))
    assert file.stat().st_size < 20_000
    return file


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("read", [read_image, read_mask, upright_size])
def test_an_image_that_claims_too_many_pixels_is_refused_with_its_name(
    read: Callable[[str], object], bomb: Path
) -> None:
    with pytest.raises(OSError, match=CLAIMS) as caught:
        read(str(bomb))
    assert str(caught.value).startswith(f"{bomb}: ")


@pytest.mark.filterwarnings("error")
def test_what_pil_would_only_warn_of_is_refused_or_read_as_the_limit_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "small.png"
    file.write_bytes(png(100, 100))
    assert read_image(str(file)).size == (100, 100)
    monkeypatch.setenv(PIXELS, "9999")
    with pytest.raises(OSError, match="claims 10,000 pixels, but 9,999 are allowed"):
        read_image(str(file))


def test_the_check_before_the_first_step_names_an_image_bomb(
    bomb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTNING_FT_CACHE", str(tmp_path))
    fine = tmp_path / "fine.png"
    fine.write_bytes(png(8, 8))
    (reason,) = unreadable_images([str(bomb), str(fine)]).values()
    assert reason.startswith(f"{bomb}: {CLAIMS}")


@pytest.mark.parametrize(
    ("suffix", "opener"),
    [(".gz", gzip.open), (".bz2", bz2.open), (".xz", lzma.open), (".zst", zstandard.open), ("", gzip.open)],
)
def test_a_table_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, opener: Callable
) -> None:
    monkeypatch.setenv(BYTES, "1000000")
    file = tmp_path / f"table.csv{suffix}"
    with opener(file, "wb") as stream:
        stream.write(b"text,label\n" + bytes(1_100_000))
    with pytest.raises(ValueError, match=r"train_file: 'table.csv.*' unpacks to more than the 1,000,000 bytes"):
        TextClassificationData(str(file)).labels  # noqa: B018


def test_a_parquet_file_whose_columns_unpack_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BYTES, "1000000")
    file = tmp_path / "table.parquet"
    table = pyarrow.table({"text": ["a" * 100] * 20_000, "label": ["x", "y"] * 10_000})
    parquet.write_table(table, file, compression="zstd", use_dictionary=False)
    assert file.stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"train_file: 'table.parquet' unpacks to more than the 1,000,000 bytes"):
        TextClassificationData(str(file)).labels  # noqa: B018


def test_a_compressed_table_within_the_limit_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BYTES, "1000")
    file = tmp_path / "table.csv.gz"
    file.write_bytes(gzip.compress(b"text,label\n" + b"a,x\nb,y\n" * 20))
    labels = TextClassificationData(str(file)).labels
    assert labels is not None
    assert labels.names == ("x", "y")


def test_an_idx_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BYTES, "1000000")
    file = tmp_path / "images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(bytes((0, 0, 8, 3)) + struct.pack(">3I", 2000, 100, 100) + bytes(2_000_000)))
    with pytest.raises(ValueError, match="unpacks to more than the 1,000,000 bytes"):
        read_idx(file, "train_file", num_dims=3)


def test_a_volume_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    volume = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4))
    nibabel.save(volume, tmp_path / "small.nii")
    content = bytearray((tmp_path / "small.nii").read_bytes())
    content[40:48] = struct.pack("<4h", 3, 30_000, 30_000, 30_000)
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(ValueError, match=r"train_file: 'bomb.nii.gz' unpacks to more than the 17,179,869,184 bytes"):
        VolumeSlices(tmp_path / "bomb.nii.gz", None, "train_file", "train_masks")


def test_a_checkpoint_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BYTES, "1000000")
    plain, packed = tmp_path / "plain.ckpt", tmp_path / "packed.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(300_000)}, "pytorch-lightning_version": "2"}, plain)
    assert load_checkpoint(plain)["state_dict"]["a"].shape == (300_000,)  # it is as large as it says
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(ValueError, match=r"'packed\.ckpt' unpacks to more than"):
        load_checkpoint(packed)


@pytest.mark.parametrize("text", ["many", "0", "-5", "1e9"])
def test_a_limit_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(BYTES, text)
    with pytest.raises(ValueError, match=f"expected {BYTES} to be a positive whole number, but got '{text}'"):
        largest(BYTES)


@pytest.mark.parametrize("name", ["../x.png", "../../x.png", "a/../../x.png", "/etc/x.png", "out/x.png"])
def test_a_predicted_name_never_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "out").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="leads out of the folder"):
        inside(tmp_path / "masks", name)
    assert inside(tmp_path / "masks", "a/b.png") == tmp_path / "masks" / "a" / "b.png"
