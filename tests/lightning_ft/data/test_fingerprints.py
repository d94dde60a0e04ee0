"""Data sets are named by all that their samples follow from, so that what is kept of them serves a later run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fingerprint_parts import KINDS, training_data, write

SCRIPT = Path(__file__).with_name("fingerprint_parts.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fingerprints")
    write(folder)
    return folder


def test_another_process_gives_the_same_names(folder: Path) -> None:
    done = subprocess.run([sys.executable, SCRIPT, folder], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    assert theirs == {kind: training_data(kind, folder).fingerprint for kind in KINDS}
    assert len({*theirs.values()}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [{"image_size": 32}, {"augment": True}, {"seed": 1}, {"val_size": 6}])
def test_other_samples_have_another_name(kind: str, change: dict[str, Any], folder: Path) -> None:
    assert training_data(kind, folder, **change).fingerprint != training_data(kind, folder).fingerprint


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("tiles", {"tile_size": 16}),
        ("tiles", {"augment": {"vflip": 0.5}}),
        ("masks", {"augment": {"rotation": 10.0}}),
        ("masks", {"ignore_index": 2}),
        ("volumes", {"axis": 0}),
    ],
)
def test_so_have_those_of_options_of_their_kind(kind: str, change: dict[str, Any], folder: Path) -> None:
    common = {"augment": True} if "augment" in change else {}
    assert training_data(kind, folder, **change).fingerprint != training_data(kind, folder, **common).fingerprint


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["inputs", "targets"])
def test_and_those_of_files_that_changed(kind: str, what: str, tmp_path: Path) -> None:
    write(tmp_path)
    before = training_data(kind, tmp_path).fingerprint
    if kind == "images" and what == "targets":
        table = tmp_path / "digits.csv"
        table.write_text(table.read_text().replace(".png,3", ".png,4"))
    elif kind == "tiles" and what == "targets":
        file = tmp_path / "images" / "boxes.json"
        file.write_text(file.read_text().replace("[2, 3, 8, 8]", "[2, 3, 8, 9]"))
    elif kind == "volumes":
        change_volume(tmp_path / ("volume.nii.gz" if what == "inputs" else "classes.nii.gz"))
    else:
        place = {"images": "digits", "tiles": "images", "masks": "images" if what == "inputs" else "masks"}[kind]
        for file in (tmp_path / place).rglob("*.png"):
            os.utime(file, ns=(1, 1))
    assert training_data(kind, tmp_path).fingerprint != before


def change_volume(path: Path) -> None:
    """Write a volume with one voxel changed."""
    import nibabel
    import numpy as np

    volume: Any = nibabel.load(path)
    values = np.asarray(volume.dataobj).copy()
    values[3, 3, 7] = 1 - min(values[3, 3, 7], 1)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
