"""The heads of language models: exactly the model that transformers has, with packed texts blind to one another."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from lightning_ft import CausalLMHead, FeatureInfo, FineTuner, MaskedLMHead, SampleGenerations, TransformersBackbone
from lightning_ft.features import TokenFeatures
from lightning_ft.heads.language_modeling import ends_of
from lightning_ft.tasks.targets import IGNORED
from lightning_ft_callbacks import BlockMap

SIZE = {"vocab_size": 400, "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
CAUSAL = {
    "gpt2": (GPT2Config(vocab_size=400, n_layer=2, n_embd=32, n_head=4), GPT2LMHeadModel),
    "llama": (LlamaConfig(**SIZE), LlamaForCausalLM),
    "llama tied": (LlamaConfig(**SIZE, tie_word_embeddings=True), LlamaForCausalLM),
    "opt": (
        OPTConfig(
            vocab_size=400,
            hidden_size=32,
            num_hidden_layers=2,
            ffn_dim=64,
            num_attention_heads=4,
            word_embed_proj_dim=16,
        ),
        OPTForCausalLM,
    ),
}
MASKED = {
    "bert": (BertConfig(**SIZE), BertForMaskedLM),
    "distilbert": (
        DistilBertConfig(vocab_size=400, n_layers=2, dim=32, n_heads=4, hidden_dim=64),
        DistilBertForMaskedLM,
    ),
}
MODELS = {name: (*made, CausalLMHead) for name, made in CAUSAL.items()} | {
    name: (*made, MaskedLMHead) for name, made in MASKED.items()
}
IDS = torch.randint(5, 300, (2, 9), generator=torch.Generator().manual_seed(0))
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


def saved(name: str, tiny_gpt2: Path, folder: Path) -> Any:
    config, kind, _ = MODELS[name]
    torch.manual_seed(0)
    model = kind(config).eval()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_gpt2).save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_the_models_own_and_tied_weights_are_one(name: str, tiny_gpt2: Path, tmp_path: Path) -> None:
    theirs = saved(name, tiny_gpt2, tmp_path)
    module = FineTuner(TransformersBackbone(str(tmp_path)), MODELS[name][2]).eval()
    torch.testing.assert_close(module(BATCH), theirs(**BATCH).logits, atol=1e-6, rtol=0)
    assert sum(value.numel() for value in module.parameters()) == sum(value.numel() for value in theirs.parameters())
    assert not any("trunk" in part or "_States" in part for part in module.state_dict())


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama tied"])
def test_packed_texts_are_blind_to_one_another(name: str, tiny_gpt2: Path, tmp_path: Path) -> None:
    saved(name, tiny_gpt2, tmp_path)
    module = FineTuner(TransformersBackbone(str(tmp_path)), CausalLMHead).eval()
    packed = module(BATCH | {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]] * 2)})
    alone = module({name: value[:, 4:] for name, value in BATCH.items()})
    torch.testing.assert_close(packed[:, 4:], alone, atol=1e-5, rtol=0)


def test_a_model_that_would_let_them_see_one_another_is_refused(tiny_gpt2: Path, tmp_path: Path) -> None:
    saved("bert", tiny_gpt2, tmp_path)  # which tells nobody apart
    backbone = TransformersBackbone(str(tmp_path))
    with pytest.raises(
        ValueError, match="BertModel does not keep texts apart that are packed into a row: set the data"
    ):
        backbone(BATCH | {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]] * 2)})


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_what_is_generated_is_what_the_whole_model_generates(name: str, tiny_gpt2: Path, tmp_path: Path) -> None:
    theirs = saved(name, tiny_gpt2, tmp_path)
    module = FineTuner(TransformersBackbone(str(tmp_path)), CausalLMHead).eval()
    tokenizer: Any = module.backbone.tokenizer
    options = {"max_new_tokens": 64, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    wanted = theirs.generate(**BATCH, **options, eos_token_id=tokenizer.eos_token_id)[:, 9:]
    found = module.predict_step(BATCH, 0)
    assert [row["prediction"] for row in found] == tokenizer.batch_decode(wanted, skip_special_tokens=True)
    assert isinstance(module.head.language_model.model._modules[module.head.language_model._place], nn.Module)
    assert "transformer" not in {path.split(".")[-1] for path, _ in module.head.named_modules() if "h.0" in path}


def test_the_loss_is_that_of_transformers_and_the_perplexity_its_exponential(tiny_gpt2: Path, tmp_path: Path) -> None:
    theirs = saved("gpt2", tiny_gpt2, tmp_path)
    module = FineTuner(TransformersBackbone(str(tmp_path)), CausalLMHead).eval()
    labels = IDS.clone()
    labels[0, :5] = IGNORED
    wanted = theirs(**BATCH, labels=labels).loss
    assert module.head.loss(module(BATCH), labels).item() == pytest.approx(wanted.item(), abs=1e-6)
    metrics = module.head.metrics()
    metrics.update(*module.head.compared(module(BATCH), labels))
    assert metrics.compute()["perplexity"].item() == pytest.approx(wanted.exp().item(), rel=1e-4)
    best = theirs(**BATCH).logits[:, :-1].argmax(-1)
    judged = labels[:, 1:] != IGNORED
    accuracy = (best == labels[:, 1:])[judged].float().mean().item()
    assert metrics.compute()["accuracy"].item() == pytest.approx(accuracy)
    assert module.head.count(labels) == judged.sum()


def test_only_the_hidden_places_get_logits(tiny_gpt2: Path, tmp_path: Path) -> None:
    theirs = saved("bert", tiny_gpt2, tmp_path)
    module = FineTuner(TransformersBackbone(str(tmp_path)), MaskedLMHead).eval()
    labels = torch.full_like(IDS, IGNORED)
    labels[0, 3], labels[1, 5] = 7, 8
    features, target = module.head.judged(module.backbone(BATCH), labels)
    assert isinstance(features, TokenFeatures)
    assert features.states.shape == (1, 2, 32)
    wanted = theirs(**BATCH, labels=labels).loss.item()
    assert module.head.loss(module.head(features), target).item() == pytest.approx(wanted, abs=1e-6)


def test_without_anything_judged_the_loss_is_zero_with_a_gradient(tiny_gpt2: Path, tmp_path: Path) -> None:
    saved("gpt2", tiny_gpt2, tmp_path)
    module = FineTuner(TransformersBackbone(str(tmp_path)), CausalLMHead)
    loss = module.head.loss(module(BATCH), torch.full_like(IDS, IGNORED))
    loss.backward()
    assert loss.item() == 0


def test_each_parameter_is_in_one_block_the_tied_matrix_with_the_embeddings(tiny_gpt2: Path, tmp_path: Path) -> None:
    saved("gpt2", tiny_gpt2, tmp_path)
    module = FineTuner(TransformersBackbone(str(tmp_path)), CausalLMHead)
    blocks = BlockMap.of(module)
    assert blocks.names == ("backbone.stem", "backbone.h.0", "backbone.h.1")
    tied = module.get_parameter("head.language_model.model.lm_head.weight")
    assert blocks.owners()[id(tied)] == "backbone.stem"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": 0}, "expected max_new_tokens to be at least 1, but got 0"),
        ({"temperature": -1.0}, "expected temperature to be at least 0, but got -1.0"),
        ({"top_p": 0.0}, "expected top_p to be above 0 and at most 1, but got 0.0"),
        ({"label_smoothing": 1.0}, "expected label_smoothing to be at least 0 and below 1, but got 1.0"),
    ],
)
def test_options_out_of_range_are_said(tiny_gpt2: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CausalLMHead(TransformersBackbone(str(tiny_gpt2)).features, **options)


def test_a_trunk_whose_tokens_see_what_follows_is_no_causal_model(tiny_gpt2: Path, tmp_path: Path) -> None:
    saved("bert", tiny_gpt2, tmp_path)
    with pytest.raises(ValueError, match="is no causal language model: its tokens see what follows"):
        CausalLMHead(TransformersBackbone(str(tmp_path)).features)


def test_sums_of_metrics_keep_growing_in_bfloat16(tiny_gpt2: Path) -> None:
    module = FineTuner(TransformersBackbone(str(tiny_gpt2)), CausalLMHead).to(torch.bfloat16)
    for _ in range(1000):
        module.losses["val"].update(5.5, weight=6)
    assert module.losses["val"].compute().item() == pytest.approx(5.5)
    assert next(module.parameters()).dtype == torch.bfloat16


def test_drawn_tokens_come_from_the_whole_vocabulary(tiny_gpt2: Path) -> None:
    torch.manual_seed(0)
    module = FineTuner(
        TransformersBackbone(str(tiny_gpt2)), partial(CausalLMHead, temperature=50.0, max_new_tokens=50)
    ).eval()
    rows = module.head.predict(
        module.backbone, {name: value[:, :2].repeat(20, 1) for name, value in BATCH.items()}, None
    )
    tokens: Any = module.backbone.tokenizer([row["prediction"] for row in rows])["input_ids"]
    assert len({token for row in tokens for token in row}) > 100


def test_a_prompt_leaves_room_for_what_the_model_can_take(tiny_gpt2: Path) -> None:
    module = FineTuner(TransformersBackbone(str(tiny_gpt2)), CausalLMHead).eval()  # 64 tokens and no more
    module.head.predict(module.backbone, BATCH, None)
    whole = {name: value[:, :1].repeat(1, 64) for name, value in BATCH.items()}
    with pytest.raises(ValueError, match="a prompt of 64 tokens leaves no room"):
        module.head.predict(module.backbone, whole, None)


def test_a_backbone_that_is_no_such_model_is_refused(tiny_gpt2: Path) -> None:
    with pytest.raises(ValueError, match="is no masked language model: transformers has none of GPT2Config"):
        MaskedLMHead(TransformersBackbone(str(tiny_gpt2)).features)
    with pytest.raises(ValueError, match="CausalLMHead needs a pretrained language model, and this backbone is none"):
        CausalLMHead(FeatureInfo(8, "tokens"))


def test_what_the_template_puts_behind_a_turn_ends_a_text(tiny_gpt2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    assert ends_of(tokenizer) == [tokenizer.eos_token_id]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<turn>{% endfor %}"
    assert ends_of(tokenizer) == [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<turn>")]


def test_a_sample_prompt_without_room_is_refused_before_the_first_step(tiny_gpt2: Path) -> None:
    module: Any = FineTuner(TransformersBackbone(str(tiny_gpt2)), CausalLMHead)
    trainer: Any = None
    SampleGenerations(["the film"]).setup(trainer, module, "fit")
    with pytest.raises(ValueError, match=r"SampleGenerations: the prompt 'good good .* but the model takes 64"):
        SampleGenerations(["good " * 100]).setup(trainer, module, "fit")
