"""Blocks of pretrained models, of modules around them, and of any other module."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from lightning.pytorch import LightningModule
from torch import nn

from lightning_ft_callbacks import Block, BlockMap

SIZE = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
GPT2 = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 3, "num_heads": 2}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4}


def hf(kind: str, config: str, **size: Any) -> Callable[[], nn.Module]:
    """Return a maker of a transformers model with random weights."""
    return lambda: getattr(transformers, kind)(getattr(transformers, config)(**size))


def of_timm(name: str, **size: Any) -> Callable[[], nn.Module]:
    """Return a maker of a timm model with random weights and three classes."""
    return partial(timm.create_model, name, pretrained=False, num_classes=3, **size)


def layers(path: str, count: int = 3) -> list[str]:
    return [f"{path}.{index}" for index in range(count)]


# what makes the model, its blocks' names, and the paths of blocks that are more than one module
MODELS: dict[str, tuple[Callable[[], nn.Module], list[str], dict[str, tuple[str, ...]]]] = {
    "BERT": (
        hf("BertModel", "BertConfig", **SIZE),
        ["embeddings", *layers("encoder.layer")],
        {"encoder.layer.2": ("encoder.layer.2", "pooler")},
    ),
    "BERT, classifying": (
        hf("BertForSequenceClassification", "BertConfig", **SIZE),
        ["bert.embeddings", *layers("bert.encoder.layer"), "classifier"],
        {"bert.encoder.layer.2": ("bert.encoder.layer.2", "bert.pooler")},
    ),
    "BERT, tied to its embeddings": (
        hf("BertForMaskedLM", "BertConfig", **SIZE),
        ["bert.embeddings", *layers("bert.encoder.layer"), "cls"],
        {},
    ),
    "DistilBERT": (
        hf(
            "DistilBertForSequenceClassification",
            "DistilBertConfig",
            vocab_size=50,
            dim=16,
            n_layers=3,
            n_heads=2,
            hidden_dim=32,
        ),
        ["distilbert.embeddings", *layers("distilbert.transformer.layer"), "tail"],
        {"tail": ("pre_classifier", "classifier")},
    ),
    "RoBERTa": (
        hf("RobertaForSequenceClassification", "RobertaConfig", **SIZE),
        ["roberta.embeddings", *layers("roberta.encoder.layer"), "classifier"],
        {},
    ),
    "GPT-2, tied to its embeddings": (
        hf("GPT2LMHeadModel", "GPT2Config", vocab_size=50, **GPT2),
        ["transformer.stem", *layers("transformer.h")],
        {
            "transformer.stem": ("transformer.wte", "transformer.wpe"),
            "transformer.h.2": ("transformer.h.2", "transformer.ln_f"),
        },
    ),
    "Llama": (
        hf("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=2, **SIZE),
        ["model.embed_tokens", *layers("model.layers"), "lm_head"],
        {"model.layers.2": ("model.layers.2", "model.norm")},
    ),
    "Llama, classifying": (
        hf("LlamaForSequenceClassification", "LlamaConfig", num_key_value_heads=2, **SIZE),
        ["model.embed_tokens", *layers("model.layers"), "score"],
        {"model.layers.2": ("model.layers.2", "model.norm")},
    ),
    "ViT of transformers": (
        hf("ViTForImageClassification", "ViTConfig", image_size=32, patch_size=16, **SIZE),
        ["vit.embeddings", *layers("vit.layers"), "classifier"],
        {"vit.layers.2": ("vit.layers.2", "vit.layernorm")},
    ),
    "Swin of transformers": (
        hf("SwinForImageClassification", "SwinConfig", **SWIN),
        ["swin.embeddings", *layers("swin.encoder.layers", 2), "classifier"],
        {"swin.encoder.layers.1": ("swin.encoder.layers.1", "swin.layernorm")},
    ),
    "ResNet": (
        of_timm("resnet18"),
        ["stem", "layer1", "layer2", "layer3", "layer4", "fc"],
        {"stem": ("conv1", "bn1")},
    ),
    "ConvNeXt": (
        of_timm("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 16, 16)),
        ["stem", *layers("stages", 4), "head"],
        {},
    ),
    "EfficientNet": (
        of_timm("efficientnet_b0"),
        ["stem", *layers("blocks", 7), "classifier"],
        {"stem": ("conv_stem", "bn1"), "blocks.6": ("blocks.6", "conv_head", "bn2")},
    ),
    "ViT of timm": (
        of_timm("vit_tiny_patch16_224", depth=3, embed_dim=24, num_heads=2),
        ["stem", *layers("blocks"), "head"],
        {"stem": ("cls_token", "pos_embed", "patch_embed"), "blocks.2": ("blocks.2", "norm")},
    ),
    "Swin of timm": (
        of_timm("swin_tiny_patch4_window7_224", depths=(1, 1), embed_dim=12, num_heads=(1, 2)),
        ["patch_embed", *layers("layers", 2), "tail"],
        {"tail": ("norm", "head")},
    ),
    "MobileNetV3": (
        of_timm("mobilenetv3_small_050"),
        ["stem", *layers("blocks", 6), "tail"],
        {"stem": ("conv_stem", "bn1"), "tail": ("conv_head", "classifier")},
    ),
}


@pytest.fixture(scope="module")
def made() -> Callable[[str], nn.Module]:
    """Return a function that makes one of the models, once."""
    models: dict[str, nn.Module] = {}

    def make(name: str) -> nn.Module:
        if name not in models:
            with torch.random.fork_rng():
                models[name] = MODELS[name][0]()
        return models[name]

    return make


def assert_each_parameter_is_in_exactly_one_block(blocks: BlockMap) -> None:
    inside = [id(parameter) for name in blocks.names for parameter in blocks.parameters(name)]
    assert len(inside) == len(set(inside))
    assert set(inside) == {id(parameter) for parameter in blocks.root.parameters()} == set(blocks.owners())
    for name in blocks.names:
        assert blocks.parameters(name), name
        assert all(blocks.owners()[id(parameter)] == name for parameter in blocks.parameters(name))


class Foreign(LightningModule):
    """Somebody's module with a pretrained model somewhere inside, and new parts beside it."""

    def __init__(self, model: nn.Module, wrap: Callable[[nn.Module], nn.Module] = lambda model: model) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.net = wrap(model)
        self.dropout = nn.Dropout()
        self.classifier_of_mine = nn.Linear(3, 2)


class Plain(nn.Module):
    """A module that no library knows: a parameter, embeddings, eleven layers, a part with a list inside, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(2))
        self.embed = nn.Linear(2, 2)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(11))
        self.pool = nn.AvgPool1d(2)
        self.upper = nn.Module()
        self.upper.inner = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.upper.norm = nn.LayerNorm(2)
        self.head = nn.Linear(2, 1)


PLAIN = ["stem", *layers("layers", 11), "upper.inner.0", "upper.inner.1", "head"]


@pytest.mark.parametrize("name", MODELS)
def test_blocks_of_a_pretrained_model_are_its_stem_its_layers_and_its_head(
    name: str, made: Callable[[str], nn.Module]
) -> None:
    _, names, several = MODELS[name]
    blocks = BlockMap.of(made(name))
    assert list(blocks.names) == names
    assert {block.name: block.paths for block in blocks} == {block: several.get(block, (block,)) for block in names}
    assert_each_parameter_is_in_exactly_one_block(blocks)


def test_blocks_of_an_encoder_decoder_model_are_those_of_both() -> None:
    model = hf("T5ForConditionalGeneration", "T5Config", vocab_size=50, **T5)()
    blocks = BlockMap.of(model)
    assert list(blocks.names)[1:] == [*layers("encoder.block"), *layers("decoder.block")]
    assert blocks[0].paths == ("shared",)
    assert_each_parameter_is_in_exactly_one_block(blocks)


@pytest.mark.parametrize("kind", ["T5EncoderModel", "T5ForConditionalGeneration"])
def test_embeddings_of_t5_that_are_one_module_bear_its_path(kind: str) -> None:
    assert BlockMap.of(hf(kind, "T5Config", vocab_size=50, **T5)()).names[0] == "shared"


def test_blocks_of_the_t5_encoder_are_its_embeddings_and_its_layers() -> None:
    blocks = BlockMap.of(hf("T5EncoderModel", "T5Config", vocab_size=50, **T5)())
    assert list(blocks.names)[1:] == layers("encoder.block")
    assert [block.paths for block in blocks] == [
        ("shared",),
        ("encoder.block.0",),
        ("encoder.block.1",),
        ("encoder.block.2", "encoder.final_layer_norm"),
    ]
    assert_each_parameter_is_in_exactly_one_block(blocks)


@pytest.mark.parametrize("name", MODELS)
def test_around_a_pretrained_model_its_blocks_keep_their_order_and_the_rest_is_the_last_block(
    name: str, made: Callable[[str], nn.Module]
) -> None:
    _, names, _ = MODELS[name]
    blocks = BlockMap.of(Foreign(made(name)))
    assert list(blocks.names) == [*(f"net.{block}" for block in names), "tail"]
    assert blocks[-1].paths == ("scale", "classifier_of_mine")
    assert_each_parameter_is_in_exactly_one_block(blocks)


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (lambda model: nn.ModuleDict({"text": nn.Sequential(model)}), "net.text.0"),
        (lambda model: nn.ModuleList([nn.Identity(), model]), "net.1"),
        (Foreign, "net.net"),
    ],
    ids=["in a dict", "in a list", "in another LightningModule"],
)
@pytest.mark.parametrize("name", ["BERT", "ViT of timm"])
def test_a_pretrained_model_is_found_anywhere_inside(
    name: str, wrap: Any, prefix: str, made: Callable[[str], nn.Module]
) -> None:
    blocks = BlockMap.of(Foreign(made(name), wrap))
    inside = [block for block in blocks.names if "tail" not in block]
    assert inside == [f"{prefix}.{block}" for block in MODELS[name][1]]
    assert_each_parameter_is_in_exactly_one_block(blocks)


def test_two_pretrained_models_are_both_found_in_order_of_registration(made: Callable[[str], nn.Module]) -> None:
    module = Foreign(nn.ModuleDict({"text": made("BERT"), "image": made("ResNet")}))
    expected = [f"net.text.{name}" for name in MODELS["BERT"][1]] + [
        f"net.image.{name}" for name in MODELS["ResNet"][1]
    ]
    assert list(BlockMap.of(module).names) == [*expected, "tail"]


def test_a_module_around_that_adds_nothing_but_its_level_has_no_block_of_its_own(
    made: Callable[[str], nn.Module],
) -> None:
    assert list(BlockMap.of(nn.ModuleDict({"model": made("RoBERTa")})).names) == [
        f"model.{name}" for name in MODELS["RoBERTa"][1]
    ]


@pytest.mark.parametrize(
    "name",
    [
        "BERT",
        "ResNet",
    ],
)
def test_a_compiled_model_has_the_blocks_of_the_one_inside(name: str, made: Callable[[str], nn.Module]) -> None:
    blocks = BlockMap.of(Foreign(torch.compile(made(name), backend="eager")))  # type: ignore[arg-type]
    assert list(blocks.names) == [*(f"net.{block}" for block in MODELS[name][1]), "tail"]
    assert_each_parameter_is_in_exactly_one_block(blocks)


def test_names_in_a_fine_tuner_drop_the_wrappers_level_and_the_head_is_last(tiny_bert: Path) -> None:
    from lightning_ft import FineTuner, SequenceClassificationHead, TransformersBackbone

    module = FineTuner(TransformersBackbone(str(tiny_bert)), partial(SequenceClassificationHead, num_classes=2))
    blocks = BlockMap.of(module)
    assert list(blocks.names) == ["backbone.embeddings", "backbone.encoder.layer.0", "backbone.encoder.layer.1", "head"]
    assert blocks[2].paths == ("backbone.model.encoder.layer.1",)
    assert_each_parameter_is_in_exactly_one_block(blocks)


def test_names_in_a_fine_tuner_of_timm_drop_the_wrappers_level_too() -> None:
    from lightning_ft import FineTuner, ImageClassificationHead, TimmBackbone

    module = FineTuner(TimmBackbone("resnet18", pretrained=False), partial(ImageClassificationHead, num_classes=2))
    assert list(BlockMap.of(module).names) == [
        "backbone.stem",
        *(f"backbone.layer{stage}" for stage in range(1, 5)),
        "head",
    ]


def test_a_module_that_nobody_knows_has_its_children_as_blocks_and_lists_are_opened() -> None:
    blocks = BlockMap.of(Plain())
    assert list(blocks.names) == PLAIN
    several = [block.paths for block in blocks if len(block.paths) > 1]
    assert several == [("token", "embed"), ("upper.inner.1", "upper.norm")]
    assert_each_parameter_is_in_exactly_one_block(blocks)


def test_a_wrapper_of_one_child_is_looked_into() -> None:
    assert list(BlockMap.of(nn.ModuleDict({"model": Plain()})).names) == [f"model.{name}" for name in PLAIN]


def test_layers_of_a_sequential_without_parameters_are_no_blocks() -> None:
    assert BlockMap.of(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))).names == ("0", "2")


def test_a_module_of_one_layer_is_one_block_with_its_path() -> None:
    assert BlockMap.of(nn.ModuleDict({"layer": nn.Linear(2, 2)})).names == ("layer",)


def test_a_modules_own_blocks_come_before_what_a_library_would_say(made: Callable[[str], nn.Module]) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = made("BERT")

        def blocks(self) -> dict[str, Any]:
            return {
                "lower": ["model.embeddings", "model.encoder.layer.0"],
                "upper": "model.encoder.layer.1",
                "rest": rest,
            }

    rest = ("model.encoder.layer.2", "model.pooler")
    blocks = BlockMap.of(Own())
    assert [tuple(block.paths) for block in blocks] == [
        ("model.embeddings", "model.encoder.layer.0"),
        ("model.encoder.layer.1",),
        rest,
    ]
    assert BlockMap.of(nn.ModuleDict({"mine": Own()})).names == ("mine.lower", "mine.upper", "mine.rest")


def test_a_method_blocks_of_another_purpose_is_not_called() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.high = nn.Linear(2, 2), nn.Linear(2, 2)

        def blocks(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.high(self.low(inputs))

    class Modules(Other):
        def blocks(self) -> list[nn.Module]:  # type: ignore[override]
            return [self.low, self.high]

    for module in (Other(), Modules()):
        assert BlockMap.of(nn.ModuleDict({"net": module, "head": nn.Linear(2, 2)})).names == ("net", "head")


def test_a_dict_of_lists_is_opened_beside_a_head_as_it_is_alone() -> None:
    lists = nn.ModuleDict({name: nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]) for name in ("enc", "dec")})
    names = ("enc.0", "enc.1", "dec.0", "dec.1")
    assert BlockMap.of(lists).names == names
    around = nn.ModuleDict({"backbone": lists, "head": nn.Linear(2, 2)})
    assert BlockMap.of(around).names == (*(f"backbone.{name}" for name in names), "head")


@pytest.mark.parametrize(
    ("name", "stem", "last"),
    [
        ("resnet18", ("conv1", "bn1"), ("layer4.1",)),
        (
            "vit_b_16",
            ("class_token", "conv_proj", "encoder.pos_embedding"),
            ("encoder.layers.encoder_layer_11", "encoder.ln"),
        ),
        ("vgg11_bn", ("features.0", "features.1"), ("classifier.3",)),
        ("swin_t", ("features.0",), ("features.7", "norm")),
    ],
)
def test_parameters_and_norms_of_a_module_that_nobody_knows_join_their_neighbours(
    name: str, stem: tuple[str, ...], last: tuple[str, ...]
) -> None:
    with torch.device("meta"):
        blocks = BlockMap.of(torchvision.models.get_model(name))
    assert blocks[0].paths == stem
    assert blocks[-2].paths == last
    assert_each_parameter_is_in_exactly_one_block(blocks)


def test_tied_weights_are_in_the_lowest_block_that_has_them_and_there_once() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    module[2].weight = module[0].weight
    blocks = BlockMap.of(module)
    assert [name for name, _ in blocks.named_parameters("0")] == ["0.weight", "0.bias"]
    assert [name for name, _ in blocks.named_parameters("2")] == ["2.bias"]
    assert_each_parameter_is_in_exactly_one_block(blocks)


def test_equal_values_are_no_ties() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in module.state_dict().items()})
    assert [BlockMap.of(module).num_parameters(name) for name in ("0", "1")] == [6, 6]


def test_parameters_are_looked_up_when_asked() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    blocks = BlockMap.of(module)
    module[1].weight = nn.Parameter(torch.ones(2, 2))
    assert blocks.parameters("1")[0] is module[1].weight
    assert blocks.owners()[id(module[1].weight)] == "1"


def test_modules_without_parameters_belong_to_the_block_after_them_and_the_last_to_the_last() -> None:
    module = nn.ModuleDict(
        {"embed": nn.Linear(2, 2), "drop": nn.Dropout(), "head": nn.Linear(2, 2), "softmax": nn.Softmax(0)}
    )
    blocks = BlockMap.of(module)
    assert blocks.modules("embed") == [module["embed"]]
    assert blocks.modules("head") == [module["drop"], module["head"], module["softmax"]]


def test_given_blocks_are_paths_each_or_names_of_several() -> None:
    module = Plain()
    listed = BlockMap.of(module, ["token", "embed", "layers", "upper", "head"])
    assert [block.name for block in listed] == ["token", "embed", "layers", "upper", "head"]
    assert_each_parameter_is_in_exactly_one_block(listed)
    named = BlockMap.of(
        module, {"body": ["token", "embed", "layers"], "top": ["upper.inner", "upper.norm"], "out": "head"}
    )
    assert list(named) == [
        Block("body", ("token", "embed", "layers")),
        Block("top", ("upper.inner", "upper.norm")),
        Block("out", ("head",)),
    ]
    assert named.num_parameters("out") == 3
    assert named[-1].name == "out"
    assert_each_parameter_is_in_exactly_one_block(named)


def test_given_blocks_may_be_single_parameters() -> None:
    blocks = BlockMap.of(nn.Linear(2, 2), {"weights": "weight", "rest": ["bias"]})
    assert [blocks.num_parameters(name) for name in blocks.names] == [4, 2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["token", "embed", "layer", "upper", "head"], r"Plain has no module or parameter 'layer'.*mean 'layers'"),
        (["token", "embedd"], r"no module or parameter 'embedd'.*did you mean 'embed'"),
        (["token", "zzz"], r"no module or parameter 'zzz' \(blocks\)$"),
        (
            ["token", "embed", "layers", "layers.3", "upper", "head"],
            r"layers\.3.*in two blocks, 'layers' and 'layers\.",
        ),
        ({"low": ["token", "embed", "layers"], "top": ["upper", "embed", "head"]}, r"in two blocks, 'low' and 'top'"),
        (["token", "embed", "layers", "upper"], r"2 parameters are in no block, the first is 'head\.weight'"),
        (["token", "embed", "layers", "upper", "head", "pool"], "block 'pool' has no parameters"),
        ({"all": ["token", "embed", "layers", "upper", "head"], "none": []}, "block 'none' has no parameters"),
        ([], r"33 parameters are in no block, the first is 'token'"),
    ],
)
def test_blocks_that_do_not_fit_are_refused_with_the_place(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockMap.of(Plain(), given)


@pytest.mark.parametrize(("given", "hint"), [("head", r"'head'; write \['head'\]$"), (3, "3$")])
def test_blocks_of_another_kind_are_refused_with_themselves(given: Any, hint: str) -> None:
    with pytest.raises(ValueError, match=f"expected blocks to be a list of paths, or names to paths, but got {hint}"):
        BlockMap.of(Plain(), given)


def test_a_path_that_is_listed_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'0'"):
        BlockMap.of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), ["0", "1", "0"])


def test_two_blocks_of_one_name_are_refused() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="two blocks are called 'a'"):
        BlockMap(module, [Block("a", ("0",)), Block("a", ("1",))])


def test_a_block_of_nothing_but_what_a_lower_one_has_is_refused() -> None:
    module = nn.ModuleDict({"embed": nn.Linear(2, 2), "out": nn.Linear(2, 2)})
    module["out"] = module["embed"]
    with pytest.raises(ValueError, match="block 'out' has no parameters of its own"):
        BlockMap.of(module, ["embed", "out"])


def test_a_module_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="Dropout has no parameters, so it has no blocks"):
        BlockMap.of(nn.Dropout())


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("layers.1", ["layers.1"]),
        ("layers.10", ["layers.10"]),
        ("layers.1*", ["layers.1", "layers.10"]),
        ("layers.[0-1]", ["layers.0", "layers.1"]),
        ("layers.?", layers("layers", 10)),
        ("*", PLAIN),
        ("head", ["head"]),
    ],
)
def test_a_pattern_is_a_glob_of_the_whole_name(pattern: str, matched: list[str]) -> None:
    assert list(BlockMap.of(Plain()).match([pattern])) == matched


def test_matches_are_ordered_from_the_input_whatever_the_patterns_order() -> None:
    assert BlockMap.of(Plain()).match(["head", "layers.10", "layers.[12]", "layers.1*"]) == (
        "layers.1",
        "layers.2",
        "layers.10",
        "head",
    )


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("heads", r"no block of Plain matches 'heads'; did you mean 'head'\?"),
        ("layers", r"no block of Plain matches 'layers'; did you mean 'layers\.\*'\?"),
        ("*upper", r"'\*upper'; did you mean '\*upper\.\*'\?"),
        ("inner.1", r"'inner\.1'; did you mean '\*inner\.1\*'\?"),
        ("Head", "'Head'"),
        ("layers.11", r"'layers\.11'; did you mean 'layers\.1+0?'"),
        ("%%", "there are stem, layers.0, "),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_name(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockMap.of(Plain()).match(["stem", pattern])


def test_print_shows_a_table_of_counts_shares_and_paths() -> None:
    module = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "head": nn.Linear(20, 50, bias=False)})
    assert str(BlockMap.of(module, {"stem": ["a", "b"], "head": "head"})).splitlines() == [
        "block  parameters  share  of",
        "stem           12   1.2%  a, b",
        "head        1,000  98.8%",
    ]
    assert repr(BlockMap.of(module)) == "BlockMap(a, b, head)"
