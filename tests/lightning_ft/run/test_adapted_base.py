"""A checkpoint of a run with adapters holds these and the head; the rest comes from its source, unchanged."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader
from transformers import AutoModel

from lightning_ft import CausalLMHead, FineTuner, MaskedLMHead, SequenceClassificationHead, TransformersBackbone
from lightning_ft.run.adapted_base import KEY
from lightning_ft.run.checkpoint_io import load_checkpoint
from lightning_ft_callbacks import GradualUnfreezing

LORA = {"r": 2}


@pytest.fixture
def source(tiny_bert: Path, tmp_path: Path) -> Path:
    """Return a copy of the pretrained model, which a test can change."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "bert"))


def classifier(folder: Path, **options: Any) -> FineTuner:
    torch.manual_seed(0)
    backbone = TransformersBackbone(str(folder), **{"lora": LORA, **options})
    return FineTuner(backbone, partial(SequenceClassificationHead, num_classes=2), lr=0.01)


def rows(labels: Callable[[int], Any]) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(0)
    tokens = [torch.randint(5, 300, (8,), generator=draw) for _ in range(8)]
    return [
        {"input_ids": row, "attention_mask": torch.ones(8, dtype=torch.long), "labels": labels(number)}
        for number, row in enumerate(tokens)
    ]


def fit(module: FineTuner, folder: Path, *callbacks: Callback, precision: Any = "32-true", epochs: int = 2) -> Path:
    of_texts = isinstance(module.head, SequenceClassificationHead)
    loader = DataLoader(rows(lambda row: row % 2 if of_texts else torch.arange(5, 13)), batch_size=4)
    trainer = Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=False,
        max_epochs=epochs,
        precision=precision,
    )
    trainer.fit(module, loader)
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def kept(file: Path) -> set[str]:
    return set(load_checkpoint(file)["state_dict"])


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_checkpoint_holds_the_adapters_and_the_head(source: Path, tmp_path: Path, precision: str) -> None:
    module = classifier(source)
    file = fit(module, tmp_path, precision=precision)
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained <= kept(file)
    assert not any(name.startswith("backbone.") and "lora_" not in name for name in kept(file))
    again = classifier(source).to(next(module.parameters()).dtype)
    checkpoint = load_checkpoint(file)
    again.on_load_checkpoint(checkpoint)
    again.load_state_dict(checkpoint["state_dict"])
    for name, value in module.state_dict().items():
        assert again.state_dict()[name].equal(value), name


def test_a_source_that_is_another_by_one_value_is_said(source: Path, tmp_path: Path) -> None:
    file = fit(classifier(source), tmp_path)
    model = AutoModel.from_pretrained(source)
    with torch.no_grad():
        model.encoder.layer[1].output.LayerNorm.weight[3] += 1e-6
    model.save_pretrained(source)
    said = r"others now: 1 of \d+ tensors differ, the first is 'backbone.model.encoder.layer.1.output.LayerNorm.weight'"
    with pytest.raises(ValueError, match=said):
        classifier(source).on_load_checkpoint(load_checkpoint(file))
    with pytest.raises(ValueError, match=said):
        TransformersBackbone(str(file))


def test_weights_that_were_trained_beside_the_adapters_are_kept(source: Path, tmp_path: Path) -> None:
    phases: list[Any] = [
        {"train": ["backbone.encoder.layer.1", "head"], "epochs": 1},
        {"train": ["head"]},  # frozen again, and no longer what the source has
    ]
    module = classifier(source)
    file = fit(module, tmp_path, GradualUnfreezing(phases, thaw_frozen=True))
    own = {name for name in kept(file) if name.startswith("backbone.") and "lora_" not in name}
    assert own
    assert all(name.startswith("backbone.model.encoder.layer.1.") for name in own)


def test_without_a_source_the_whole_model_is_kept(source: Path, tmp_path: Path) -> None:
    module = classifier(source, pretrained=False)
    file = fit(module, tmp_path)
    assert KEY not in load_checkpoint(file)
    assert kept(file) == set(module.state_dict())


def test_a_backbone_begins_with_that_of_a_run_with_adapters_on_that_of_a_run(source: Path, tmp_path: Path) -> None:
    first = fit(classifier(source, lora=None), tmp_path / "first")
    module = classifier(first)
    second = fit(module, tmp_path / "second")
    batch = next(iter(DataLoader(rows(lambda _: 0), batch_size=8)))
    with torch.no_grad():
        wanted = module.backbone.eval()(batch).states  # type: ignore[union-attr]
        assert TransformersBackbone(str(second), lora=LORA).eval()(batch).states.equal(wanted)  # type: ignore[union-attr]
        merged = TransformersBackbone(str(second)).eval()(batch).states  # type: ignore[union-attr]
    torch.testing.assert_close(merged, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("head", [CausalLMHead, MaskedLMHead])
def test_a_matrix_tied_to_the_embeddings_is_left_out_with_them(
    head: Any, tiny_bert: Path, tiny_gpt2: Path, tmp_path: Path
) -> None:
    folder = tiny_gpt2 if head is CausalLMHead else tiny_bert
    module = FineTuner(TransformersBackbone(str(folder), lora=LORA), head, lr=0.01)
    file = fit(module, tmp_path)
    embeddings = module.backbone.model.get_input_embeddings().weight
    assert not any(value.shape == embeddings.shape for value in load_checkpoint(file)["state_dict"].values())
    again = FineTuner(TransformersBackbone(str(file), lora=LORA), head)
    for name, value in module.state_dict().items():
        assert again.state_dict()[name].equal(value), name


def test_the_command_resumes_tests_and_builds_on_a_run_with_adapters(
    source: Path, reviews: Callable[..., Path], command: Any, tmp_path: Path
) -> None:
    def fit_in(root: str, *options: object) -> Path:
        result = command("fit", *recipe, "--trainer.default_root_dir", tmp_path / root, *options)
        assert result.code == 0, result.err
        return sorted((tmp_path / root).iterdir())[-1]

    recipe = (
        *("--seed_everything", 1, "--model.backbone", "TransformersBackbone", "--model.backbone.lora", "{r: 2}"),
        *("--model.backbone.name", source, "--model.head", "SequenceClassificationHead", "--model.lr", 0.01),
        *("--model.lr_schedule", "constant", "--model.warmup", 0),  # the same at each step, however many there are
        *("--data", "TextClassificationData", "--data.train_file", reviews()),
    )
    whole = fit_in("whole", "--trainer.max_epochs", 2)
    cut = fit_in("cut", "--trainer.max_epochs", 1)
    result = command("fit", *recipe, "--trainer.max_epochs", 2, "--ckpt_path", cut / "checkpoints" / "last.ckpt")
    assert result.code == 0, result.err
    weights = [load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (whole, cut)]
    assert all(weights[1][name].equal(value) for name, value in weights[0].items())
    assert command("test", "--run", whole).code == 0
    next_run = fit_in("next", "--model.backbone.name", whole, "--model.backbone.lora", "null")
    assert not any("lora_" in name for name in kept(next_run / "checkpoints" / "last.ckpt"))
    shutil.rmtree(source)
    result = command("test", "--run", whole)
    assert result.code == 2
    assert f"no backbone {str(source)!r}" in result.err
