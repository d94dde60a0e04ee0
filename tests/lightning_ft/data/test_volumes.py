"""VolumeSlices: slices keep their masks and stand upright, whatever the file's axes; and what is refused."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from masked_parts import MNI, data_of

from lightning_ft.data.volumes import VolumeSlices
from lightning_ft.resources import resolve

SHAPE = (6, 8, 12)


def write(path: Path, values: np.ndarray, axes: str = "RAS") -> Path:
    """Write a volume, shape (right, front, top), in a file with other axes."""
    image = nibabel.Nifti1Image(values, np.eye(4))
    turned = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(np.eye(4)), nibabel.orientations.axcodes2ornt(axes)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image.as_reoriented(turned), path)
    return path


def head() -> np.ndarray:
    """Return a volume whose every voxel has its own value, with nothing in the lowest slice."""
    volume = np.arange(np.prod(SHAPE), dtype=np.int32).reshape(SHAPE)
    volume[:, :, 0] = 0
    return (volume % 251).astype(np.uint8)


def slices_of(path: Path, masks: Any, **options: Any) -> VolumeSlices:
    return VolumeSlices(path, masks, "train_file 'a'", "train_masks 'b'", **options)


@pytest.mark.parametrize("axes", ["RAS", "LPI", "SRA"])
def test_slices_stand_upright_with_their_masks_whatever_the_axes_of_the_file(tmp_path: Path, axes: str) -> None:
    volume = head()
    path = write(tmp_path / "head.nii.gz", volume, axes)
    masks = write(tmp_path / "mask.nii.gz", (volume % 3).astype(np.int16), "RAS")
    found = slices_of(path, masks, axis=1)
    assert [row["slice"] for row in found.rows] == list(range(8))
    for number in range(8):
        shown = np.asarray(found.image(number))[..., 0]
        assert shown.shape == (12, 6)
        # the first row is the top, the first column the left
        assert np.array_equal(shown, volume[:, number, ::-1].T)
        assert np.array_equal(found.mask(number), shown % 3)


def test_blank_slices_are_left_out_of_training_and_predicted(tmp_path: Path) -> None:
    path = write(tmp_path / "head.nii", head())
    masks = write(tmp_path / "mask.nii", (head() > 100).astype(np.uint8))
    assert [row["slice"] for row in slices_of(path, masks).rows] == list(range(1, 12))
    found = slices_of(path, None)
    assert found.names == [f"head_{number:03}.png" for number in range(12)]


def test_regions_of_a_volume_are_neighbours_and_volumes_stay_whole(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / "heads" / f"{name}.nii.gz", head())
        write(tmp_path / "masks" / f"{name}.nii", (head() > 100).astype(np.uint8))
    one = slices_of(tmp_path / "heads/a.nii.gz", tmp_path / "masks/a.nii", axis=1)
    assert one.groups is not None
    assert one.groups == sorted(one.groups)
    several = slices_of(tmp_path / "heads", tmp_path / "masks", axis=1)
    assert several.groups == ["a"] * 8 + ["b"] * 8 + ["c"] * 8
    assert [*several.values.values()] == [[0, 1]] * 3


def test_a_voxel_is_of_the_map_that_has_most_above_the_threshold(tmp_path: Path) -> None:
    grey, white = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
    grey[0], white[0] = 0.9, 0.1
    grey[1], white[1] = 0.45, 0.55
    grey[2], white[2] = 0.4, 0.3
    grey[3], white[3] = 1.0, 1.0
    maps = {
        "grey": write(tmp_path / "grey.nii", grey),
        "white": write(tmp_path / "white.nii", (white * 200).astype(np.uint8)),
    }
    path = write(tmp_path / "head.nii", head())
    for threshold, expected in ((0.5, [1, 2, 0, 1, 0, 0]), (0.35, [1, 2, 1, 1, 0, 0])):
        mask = slices_of(path, maps, threshold=threshold).mask(3)
        assert mask[0].tolist() == expected


def test_other_numbers_than_bytes_are_stretched(tmp_path: Path) -> None:
    volume = head().astype(np.float32) * 40 - 1000
    volume[0, 0, 5] = np.nan
    found = slices_of(write(tmp_path / "head.nii", volume), None, axis=1)
    shown = np.stack([np.asarray(found.image(number))[..., 0] for number in range(8)])
    assert (shown.min(), shown.max()) == (0, 255)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.zeros((6, 8, 11), np.uint8), r"has the shape \(6, 8, 11\), but the volume \(6, 8, 12\)"),
        (np.full(SHAPE, 0.5, np.float32), "numbers that are not whole; for maps of tissue give a mapping"),
        (np.zeros((*SHAPE, 2), np.uint8), "to have three dimensions, but it has 4"),
    ],
)
def test_masks_that_do_not_fit_are_refused(tmp_path: Path, masks: np.ndarray, message: str) -> None:
    path = write(tmp_path / "head.nii", head())
    nibabel.save(nibabel.Nifti1Image(masks, np.eye(4)), tmp_path / "mask.nii")
    with pytest.raises(ValueError, match=message):
        slices_of(path, tmp_path / "mask.nii")


def test_a_damaged_file_a_missing_mask_and_a_blank_volume_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "heads/head.nii", head())
    write(tmp_path / "masks/other.nii", head())
    with pytest.raises(ValueError, match=r"train_masks 'b' lacks a mask for '.*head.nii'"):
        slices_of(tmp_path / "heads", tmp_path / "masks")
    with pytest.raises(ValueError, match="expected a folder of masks for a folder of volumes"):
        slices_of(path, tmp_path / "masks")
    with pytest.raises(ValueError, match="has no slices that are not blank"):
        slices_of(write(tmp_path / "blank.nii", np.zeros(SHAPE, np.uint8)), path)
    for content in (b"", b"no volume" * 100, path.read_bytes()[:500]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"train_file 'a': '.*head.nii' cannot be read as a NIfTI file"):
            slices_of(path, None)


def test_a_number_that_is_no_class_is_named_with_its_file(tmp_path: Path) -> None:
    path = write(tmp_path / "head.nii", head())
    masks = write(tmp_path / "mask.nii", (head() > 100).astype(np.uint8) * 5)
    with pytest.raises(ValueError, match=r"mask.nii holds the number 5, which is no class; there are 0 a, 1 b"):
        data_of(path, str(masks), labels=["a", "b"])


def test_a_group_of_volumes_has_no_effect_and_is_refused() -> None:
    with pytest.raises(ValueError, match="group has no effect on volumes"):
        data_of(MNI.format("t1"), {"grey": MNI.format("gm")}, group="a")


def test_labels_that_differ_from_the_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="but train_masks are of background, grey"):
        data_of(MNI.format("t1"), {"grey": MNI.format("gm")}, labels=["grey", "white"])


def test_the_brain_is_in_its_slices() -> None:
    files = {kind: Path(resolve(MNI.format(kind))) for kind in ("t1", "gm", "wm")}
    found = slices_of(files["t1"], {"grey": files["gm"], "white": files["wm"]})
    middle = next(number for number, row in enumerate(found.rows) if row["slice"] == 80)
    grey, white = (np.asarray(found.image(middle))[..., 0][found.mask(middle) == number] for number in (1, 2))
    assert len(grey) > 5000
    assert len(white) > 5000
    assert grey.mean() + 30 < white.mean()
