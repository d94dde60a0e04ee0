"""Laws of the transforms that a backbone's data config asks for."""

import numpy as np
import pytest
import torch
from image_parts import CONFIG
from PIL import Image
from sklearn.datasets import load_sample_images

from lightning_ft.data.image_transforms import image_transform
from lightning_ft_callbacks.state.seeded import seeded


def photo(*, colour: int | None = None) -> Image.Image:
    picture = load_sample_images().images[0]
    return Image.fromarray(picture if colour is None else np.full_like(picture, colour))


def transformed(augment: bool | dict = False, image_size: int | None = None, colour: int | None = None, **config):
    transform = image_transform(CONFIG | config, image_size=image_size, augment=augment)
    with seeded(0):
        return transform(photo(colour=colour))


@pytest.mark.parametrize("augment", [True, False])
def test_the_size_is_the_backbones_unless_one_is_given(augment):
    assert transformed(augment).shape == (3, 24, 24)
    assert transformed(augment, input_size=(3, 16, 48)).shape == (3, 16, 48)
    assert transformed(augment, image_size=40).shape == (3, 40, 40)


@pytest.mark.parametrize("augment", [{"color_jitter": 0.0}, False])
def test_mean_and_standard_deviation_are_the_backbones(augment):
    expected = (torch.full((3,), 51 / 255) - torch.tensor(CONFIG["mean"])) / torch.tensor(CONFIG["std"])
    image = transformed(augment, colour=51)
    assert image.dtype == torch.float32
    assert torch.allclose(image, expected[:, None, None].expand(3, 24, 24), atol=1e-6)


def test_the_crop_is_the_backbones():
    whole, centre = transformed(crop_pct=1.0), transformed(crop_pct=0.5)
    assert not torch.equal(whole, centre)
    assert transformed(crop_pct=1.0, crop_mode="squash").ne(whole).any()


def test_the_training_transform_is_random_and_the_evaluations_is_not():
    train = image_transform(CONFIG, image_size=None, augment=True)
    evaluation = image_transform(CONFIG, image_size=None, augment=False)
    assert not torch.equal(train(photo()), train(photo()))
    assert torch.equal(evaluation(photo()), evaluation(photo()))


def test_a_mapping_changes_the_training_transform():
    still = {"scale": [1.0, 1.0], "ratio": [640 / 427, 640 / 427], "hflip": 0.0, "color_jitter": 0.0}
    upright, mirrored = transformed(still), transformed(still | {"hflip": 1.0})
    assert torch.allclose(upright.flip(-1), mirrored, atol=0.02)
    assert transformed(still | {"auto_augment": "rand-m9-n2"}).ne(upright).any()
    assert transformed(still | {"re_prob": 1.0}).ne(upright).any()
    assert transformed({}).equal(transformed(True))


@pytest.mark.parametrize(
    ("augment", "sentence"),
    [
        ({"color_jiter": 0.1}, "no key 'color_jiter'; did you mean 'color_jitter'"),
        ({"mixup": 0.1}, "no key 'mixup'"),
        ({"input_size": 3}, "'input_size' is no augmentation; the size is set by image_size"),
        ({"crop_pct": 0.9}, "'crop_pct' is no augmentation"),
        ({"train_crop_mode": "square"}, "augment=.*square.*does not take it"),
        ({"hflip": "often"}, "augment=.*often.*does not take it"),
    ],
)
def test_what_timm_does_not_know_is_refused(augment, sentence):
    with pytest.raises(ValueError, match=sentence):
        transformed(augment)


def test_a_config_that_lacks_a_key_or_is_not_for_rgb_is_refused():
    lacking = {key: value for key, value in CONFIG.items() if key != "std"}
    with pytest.raises(ValueError, match="no 'std'; it has 'input_size', 'mean', 'interpolation'"):
        image_transform(lacking, image_size=None, augment=True)
    with pytest.raises(ValueError, match="takes images of 1 channels"):
        transformed(input_size=(1, 24, 24))
