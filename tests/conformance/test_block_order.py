"""Where the last blocks alone are trained, the backward pass reaches no other: blocks are in the order of the data."""

from typing import Any

import pytest
import timm
import torch
import transformers
from block_order import out_of_order
from torch import nn

from lightning_ft_callbacks import BlockMap
from lightning_ft_callbacks.phases.freezing import Freezer

TIMM = (
    "cait_xxs24_224",
    "coat_tiny",
    "convnext_atto",
    "densenet121",
    "dpn48b",
    "efficientnet_b0",
    "hrnet_w18_small",
    "inception_resnet_v2",
    "levit_128s",
    "maxvit_rmlp_pico_rw_256",
    "mobilenetv4_conv_small",
    "nasnetalarge",
    "pit_ti_224",
    "rdnet_tiny",
    "regnety_002",
    "resnet18",
    "swin_tiny_patch4_window7_224",
    "twins_svt_small",
    "vgg11_bn",
    "vit_srelpos_small_patch16_224",
    "vit_tiny_patch16_224",
)
# added to what a later block gives, or overlapping the last layers by timm's own grouping
BESIDE = ("pos_embed", "cls_token", "blocks_token_only.")

SIZE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = SIZE | {"vocab_size": 60, "max_position_embeddings": 40}
IMAGE = SIZE | {"image_size": 32, "patch_size": 16}
PAIR = {
    "vocab_size": 60,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
SOUND = SIZE | {
    "vocab_size": 60,
    "conv_dim": (8, 8),
    "conv_stride": (2, 2),
    "conv_kernel": (3, 3),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 2,
}
STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 8]}
XLM = {"vocab_size": 60, "emb_dim": 16, "n_layers": 3, "n_heads": 2, "max_position_embeddings": 40}
DEBERTA = TEXT | {
    "relative_attention": True,
    "position_buckets": 4,
    "norm_rel_ebd": "layer_norm",
    "pos_att_type": ["p2c", "c2p"],
}
LAYOUT = TEXT | {
    "input_size": 32,
    "patch_size": 16,
    "coordinate_size": 2,
    "shape_size": 4,
    "has_relative_attention_bias": True,
    "visual_embed": False,
}
OPT = {"ffn_dim": 32, "word_embed_proj_dim": 8, **{k: v for k, v in TEXT.items() if k != "intermediate_size"}}
CLIP = {"text_config": TEXT | {"eos_token_id": 1}, "vision_config": IMAGE, "projection_dim": 8}
WHISPER = {key: value for key, value in PAIR.items() if key != "max_position_embeddings"} | {
    "num_mel_bins": 8,
    "max_source_positions": 20,
    "max_target_positions": 20,
}

IDS = torch.arange(5, 15)[None]
WORDS: dict[str, Any] = {"input_ids": IDS}
PIXELS: dict[str, Any] = {"pixel_values": torch.zeros(1, 3, 32, 32)}
WAVE: dict[str, Any] = {"input_values": torch.zeros(1, 400)}
BOXES: dict[str, Any] = {**WORDS, "bbox": torch.zeros(1, 10, 4, dtype=torch.long)}
SPECTRUM: dict[str, Any] = {"input_features": torch.zeros(1, 8, 40), "decoder_input_ids": IDS}

# the model, its configuration, and what it reads
TRANSFORMERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Bart": (PAIR, WORDS),
    "MBart": (PAIR, WORDS),
    "Bert": (TEXT, WORDS),
    "CLIP": (CLIP, {**WORDS, **PIXELS}),
    "DebertaV2": (DEBERTA, WORDS),
    "DINOv3ViT": (IMAGE, PIXELS),
    "GLPN": ({"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 8], "num_attention_heads": [1, 1, 1, 1]}, PIXELS),
    "Hubert": (SOUND, WAVE),
    "LayoutLMv3": (LAYOUT, BOXES),
    "MarkupLM": (TEXT, WORDS),
    "MPNet": (TEXT, WORDS),
    "OPT": (OPT, WORDS),
    "PoolFormer": (STAGES, PIXELS),
    "SEW": (SOUND | {"squeeze_factor": 1}, WAVE),
    "UniSpeech": (SOUND, WAVE),
    "Wav2Vec2": (SOUND, WAVE),
    "WavLM": (SOUND, WAVE),
    "Whisper": (WHISPER, SPECTRUM),
    "XLM": (XLM, WORDS),
}


def of_transformers(name: str) -> nn.Module:
    """Return a small model with random weights."""
    config = getattr(transformers, f"{name}Config")(**TRANSFORMERS[name][0])
    return getattr(transformers, f"{name}Model")(config).eval()


@pytest.mark.parametrize("name", TIMM)
def test_no_block_of_a_timm_model_reads_a_higher_one(name: str) -> None:
    with torch.device("meta"):  # shapes alone
        model = timm.create_model(name, num_classes=3).eval()
        outputs = model(torch.zeros(1, *model.default_cfg["input_size"]))
    found = out_of_order(BlockMap.of(model), outputs)
    assert [parameter for parameter in found if not parameter.startswith(BESIDE)] == []


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_no_block_of_a_transformers_model_reads_a_higher_one(name: str) -> None:
    model = of_transformers(name)
    outputs = model(**TRANSFORMERS[name][1])
    assert out_of_order(BlockMap.of(model), list(outputs.values())) == []


def vision_encoder_decoder() -> nn.Module:
    encoder = transformers.ViTModel(transformers.ViTConfig(**IMAGE))
    decoder = transformers.BertConfig(is_decoder=True, add_cross_attention=True, **TEXT)
    return transformers.VisionEncoderDecoderModel(encoder=encoder, decoder=transformers.BertLMHeadModel(decoder))


def test_embeddings_of_a_decoder_are_no_part_of_the_encoder() -> None:
    names = BlockMap.of(vision_encoder_decoder()).names
    assert names.index("encoder.layers.2") < names.index("decoder.bert.embeddings")
    assert BlockMap.of(of_transformers("CLIP")).names[4] == "vision_model.embeddings"


@pytest.mark.parametrize(
    ("name", "train", "frozen"),
    [
        ("Bart", "encoder.layers.1", "encoder.layers.0"),
        ("Bart", "decoder.layers.1", "decoder.layers.0"),
        ("DebertaV2", "encoder.layer.2", "encoder.layer.0"),
        ("LayoutLMv3", "encoder.layer.2", "encoder.layer.0"),
        ("XLM", "*.2", "layer_norm2.1"),
    ],
)
def test_what_enters_the_lowest_trained_block_needs_no_gradient(name: str, train: str, frozen: str) -> None:
    model = of_transformers(name)
    blocks = BlockMap.of(model)
    Freezer(blocks, []).train_only(blocks.match([train]))
    seen: list[bool] = []

    def note(_: nn.Module, __: Any, given: Any) -> None:
        seen.append((given if torch.is_tensor(given) else given[0]).requires_grad)

    model.get_submodule(frozen).register_forward_hook(note)
    model(**TRANSFORMERS[name][1])
    assert seen == [False]
