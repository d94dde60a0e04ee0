"""LoRA: the adapters alone are trained, whatever a phase names; a run with them goes on, or starts another merged."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from lightning_ft import (
    CausalLMHead,
    FineTuner,
    ImageClassificationHead,
    SequenceClassificationHead,
    TimmBackbone,
    TransformersBackbone,
)
from lightning_ft_callbacks import BlockMap, FrozenPrefixCache, GradualUnfreezing

GENERATOR = torch.Generator().manual_seed(0)
TEXTS = [
    {"input_ids": torch.randint(5, 300, (8,), generator=GENERATOR), "attention_mask": torch.ones(8), "labels": row % 2}
    for row in range(16)
]
IMAGES = [
    {"pixel_values": torch.randn(3, 32, 32, generator=GENERATOR), "labels": torch.tensor(row % 2)} for row in range(8)
]
PHASES: list[Any] = [{"train": ["head"], "epochs": 2}, {"train": ["*"]}]


def bert(folder: Path, **options: Any) -> FineTuner:
    torch.manual_seed(0)
    head = partial(SequenceClassificationHead, num_classes=2)
    return FineTuner(TransformersBackbone(str(folder), **options), head, lr=0.01)


def resnet(**options: Any) -> FineTuner:
    torch.manual_seed(0)
    head = partial(ImageClassificationHead, num_classes=2)
    return FineTuner(TimmBackbone("test_resnet", pretrained=False, **options), head, lr=0.01)


def fit(module: FineTuner, rows: list[Any], *callbacks: Callback, folder: Path, epochs: int = 4) -> list[float]:
    losses = []

    class Losses(Callback):
        def on_train_batch_end(self, *arguments: Any) -> None:
            losses.append(arguments[2]["loss"].item())

    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[*callbacks, Losses()],
    )
    trainer.fit(module, DataLoader(rows, batch_size=4, generator=torch.Generator().manual_seed(0), shuffle=True))
    trainer.save_checkpoint(folder / "last.ckpt")
    return losses


def own(module: FineTuner) -> dict[str, torch.Tensor]:
    """Return the parameters that were there before the adapters."""
    return {n: p.detach().clone() for n, p in module.backbone.named_parameters() if "lora_" not in n}


@pytest.mark.parametrize("kind", ["bert", "gpt2", "resnet"])
def test_adapters_and_head_are_trained_and_nothing_else(
    kind: str, tiny_bert: Path, tiny_gpt2: Path, tmp_path: Path
) -> None:
    folder = tiny_gpt2 if kind == "gpt2" else tiny_bert
    module = resnet(lora={"r": 2}) if kind == "resnet" else bert(folder, lora={"r": 2})
    before, adapters = own(module), [n for n, _ in module.backbone.named_parameters() if "lora_" in n]
    assert adapters
    fit(module, IMAGES if kind == "resnet" else TEXTS, GradualUnfreezing(PHASES), folder=tmp_path)
    for name, value in own(module).items():
        assert value.equal(before[name]), name
    changed = [n for n, p in module.backbone.named_parameters() if "lora_B" in n and p.abs().sum() > 0]
    # the residual branches of a ResNet that is not pretrained begin at zero, and give their adapters no gradient
    assert len(changed) == (6 if kind == "resnet" else len(adapters) / 2)


def test_each_adapter_is_in_the_block_of_its_layer(tiny_bert: Path) -> None:
    module = bert(tiny_bert, lora={"r": 2, "target_modules": ["query", "value"]})
    blocks = BlockMap.of(module)
    assert blocks.names == BlockMap.of(bert(tiny_bert)).names
    for layer in (0, 1):
        names = [name for name, _ in blocks.named_parameters(f"backbone.encoder.layer.{layer}") if "lora_" in name]
        assert len(names) == 4


def test_the_cache_changes_nothing(tiny_bert: Path, tmp_path: Path) -> None:
    plain = fit(bert(tiny_bert, lora={"r": 2}), TEXTS, GradualUnfreezing(PHASES), folder=tmp_path / "a")
    cached = fit(
        bert(tiny_bert, lora={"r": 2}), TEXTS, GradualUnfreezing(PHASES), FrozenPrefixCache(), folder=tmp_path / "b"
    )
    assert cached == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize("kind", ["bert", "resnet"])
def test_a_backbone_of_a_run_goes_on_with_its_adapters_or_has_them_merged(
    kind: str, tiny_bert: Path, tmp_path: Path
) -> None:
    lora = {"r": 2, "lora_dropout": 0.1}
    module = resnet(lora=lora) if kind == "resnet" else bert(tiny_bert, lora=lora)
    fit(module, IMAGES if kind == "resnet" else TEXTS, folder=tmp_path)
    checkpoint = str(tmp_path / "last.ckpt")
    rows = next(iter(DataLoader(IMAGES if kind == "resnet" else TEXTS, batch_size=8)))

    def again(**options: Any) -> Any:
        if kind == "resnet":
            return TimmBackbone("test_resnet", checkpoint=checkpoint, **options).eval()
        return TransformersBackbone(checkpoint, **options).eval()

    def output(backbone: Any) -> torch.Tensor:
        features = backbone(rows)
        return features.maps[-1] if kind == "resnet" else features.states

    wanted = output(module.backbone.eval())
    same, merged, other = again(lora=lora), again(), again(lora={"r": 4})
    assert same.state_dict().keys() == module.backbone.state_dict().keys()
    assert output(same).equal(wanted)
    assert not any("lora" in name for name in merged.state_dict())
    assert all(parameter.requires_grad for parameter in merged.parameters())
    for backbone in (merged, other):  # new adapters begin with nothing
        torch.testing.assert_close(output(backbone), wanted, atol=1e-5, rtol=1e-4)


def test_a_language_models_tied_matrix_stays_with_adapters(tiny_gpt2: Path) -> None:
    module = FineTuner(TransformersBackbone(str(tiny_gpt2), lora={"r": 2}), CausalLMHead)
    assert module.head.language_model.model.lm_head.weight is module.backbone.model.wte.weight
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"rank": 4}, "TransformersBackbone: lora has no option 'rank'"),
        ({"lora_alpa": 4}, "lora has no option 'lora_alpa'; did you mean 'lora_alpha'?"),
        ({"target_modules": ["quary"]}, "lora: Target modules"),
        ({"r": 0}, "lora: "),
    ],
)
def test_what_cannot_be_is_said(tiny_bert: Path, lora: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TransformersBackbone(str(tiny_bert), lora=lora)
