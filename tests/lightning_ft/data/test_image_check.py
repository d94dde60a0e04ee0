"""Laws of the check of image files and of its memory."""

import os
from pathlib import Path

import pytest
from image_parts import write_class_folders, write_photos

from lightning_ft.data.image_check import unreadable_images


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_FT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def overwrite_unseen(path: Path, content: bytes) -> None:
    """Change a file's content, but neither its size nor its modification time."""
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size


def test_whole_images_are_readable(tmp_path):
    folder = write_class_folders(tmp_path / "digits", 30)
    assert unreadable_images([str(path) for path in (*folder.rglob("*.png"), *write_photos(tmp_path))]) == {}


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
def test_a_truncated_jpeg_is_found(tmp_path, kept):
    china, flower = write_photos(tmp_path)
    china.write_bytes(china.read_bytes()[: int(china.stat().st_size * kept)])
    reasons = unreadable_images([str(china), str(flower)])
    assert list(reasons) == [str(china)]
    assert "truncated" in reasons[str(china)]


def test_a_text_an_empty_file_a_folder_and_a_missing_one_are_found(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.png").mkdir()
    files = [str(tmp_path / name) for name in ("text.png", "empty.jpg", "folder.png", "missing.png")]
    reasons = unreadable_images(files)
    assert sorted(reasons) == sorted(files)
    assert "no such file" in reasons[files[3]]


def test_a_second_check_does_not_decode_again(tmp_path, cache):
    china, _ = write_photos(tmp_path)
    assert unreadable_images([str(china)]) == {}
    overwrite_unseen(china, bytes(china.stat().st_size))
    assert unreadable_images([str(china)]) == {}
    assert [path.suffix for path in (cache / "image_check").iterdir()] == [".json"]


def test_a_changed_file_is_checked_again(tmp_path):
    china, flower = write_photos(tmp_path)
    assert unreadable_images([str(china), str(flower)]) == {}
    china.write_bytes(bytes(china.stat().st_size))
    assert list(unreadable_images([str(china), str(flower)])) == [str(china)]


def test_what_could_not_be_read_is_tried_again(tmp_path):
    china, flower = write_photos(tmp_path)
    whole = china.read_bytes()
    overwrite_unseen(china, bytes(len(whole)))
    assert list(unreadable_images([str(china), str(flower)])) == [str(china)]
    assert list(unreadable_images([str(china), str(flower)])) == [str(china)]
    overwrite_unseen(china, whole)
    assert unreadable_images([str(china), str(flower)]) == {}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"other": 1}'])
def test_a_damaged_memory_is_as_none(tmp_path, cache, content):
    china, _ = write_photos(tmp_path)
    unreadable_images([str(china)])
    (memory,) = (cache / "image_check").iterdir()
    memory.write_text(content)
    overwrite_unseen(china, bytes(china.stat().st_size))
    assert list(unreadable_images([str(china)])) == [str(china)]


def test_a_cache_that_cannot_be_written_changes_nothing(tmp_path, monkeypatch):
    china, _ = write_photos(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setenv("LIGHTNING_FT_CACHE", str(tmp_path / "file" / "below"))
    assert unreadable_images([str(china)]) == {}


def test_more_than_a_screenful_of_files_are_all_checked(tmp_path):
    folder = write_class_folders(tmp_path / "digits", 600)
    files = sorted(str(path) for path in folder.rglob("*.png"))
    for file in files[7::100]:
        Path(file).write_bytes(b"")
    assert sorted(unreadable_images(files)) == files[7::100]
