"""An exported folder, loaded as its users do, is the model of the run; and loading it runs nothing pickled."""

import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lightning_ft
from lightning_ft import TransformersBackbone, load_exported
from lightning_ft.export.command import export
from lightning_ft.run.finished_run import FinishedRun, finished_run

LINES = ["charged twice again", "love", "the app crashes " * 12]


def encoded(folder: Path, texts: list[str] = LINES) -> dict[str, Tensor]:
    """Return texts as the exported tokenizer makes them, cut where it says."""
    from transformers import AutoTokenizer

    return dict(AutoTokenizer.from_pretrained(folder)(texts, truncation=True, padding=True, return_tensors="pt"))


def pieces(folder: Path) -> Iterator[bytes]:
    """Yield the content of each file, and of each file inside of those that are archives."""

    def opened(content: bytes) -> Iterator[bytes]:
        if not zipfile.is_zipfile(BytesIO(content)):
            yield content
            return
        with zipfile.ZipFile(BytesIO(content)) as archive:
            for entry in archive.namelist():
                yield from opened(archive.read(entry))

    for file in folder.rglob("*"):
        if file.is_file():
            yield from opened(file.read_bytes())


@torch.no_grad()
def wanted(run: FinishedRun, inputs: dict[str, Tensor]) -> Tensor:
    return run.model(inputs)


@pytest.mark.parametrize("run", ["cls_run", "lora_run", "gpt2_run"])
def test_a_transformers_folder_is_the_model_on_texts_that_nobody_saw(
    run: str, exported: Callable[..., Path], trained: Callable[[str], FinishedRun]
) -> None:
    from transformers import AutoModelForSequenceClassification

    folder, ours = exported(run, "transformers"), trained(run)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    inputs = encoded(folder)
    assert inputs["input_ids"].shape[1] <= 24  # max_length of the run
    torch.testing.assert_close(model(**inputs).logits, wanted(ours, inputs), atol=1e-5, rtol=1e-5)
    assert [*model.config.id2label.values()] == [*(ours.model.label_names or ())]
    assert model.config.problem_type == "single_label_classification"
    assert {file.suffix for file in folder.iterdir()} <= {".json", ".safetensors", ".md"}


def test_a_language_model_is_a_causal_lm(exported: Callable[..., Path], trained: Callable[[str], FinishedRun]) -> None:
    from transformers import AutoModelForCausalLM

    folder = exported("language_run", "transformers")
    model, inputs = AutoModelForCausalLM.from_pretrained(folder), encoded(folder, LINES[:2])
    kept = inputs["attention_mask"].bool()
    torch.testing.assert_close(
        model(**inputs).logits[kept], wanted(trained("language_run"), inputs)[kept], atol=1e-5, rtol=1e-5
    )


def test_a_backbone_starts_from_an_exported_folder(
    exported: Callable[..., Path], trained: Callable[[str], FinishedRun]
) -> None:
    started = TransformersBackbone(str(exported("cls_run", "transformers")))
    for name, value in trained("cls_run").model.backbone.state_dict().items():
        assert torch.equal(started.state_dict()[name], value)
    assert started.tokenizer.model_max_length == 24


@pytest.mark.parametrize("run", ["mean_run", "lora_run", "language_run"])
def test_safetensors_are_the_module_again(
    run: str, exported: Callable[..., Path], trained: Callable[[str], FinishedRun]
) -> None:
    folder, ours = exported(run, "safetensors"), trained(run)
    model = load_exported(folder)
    inputs = encoded(folder)
    with torch.no_grad():
        assert torch.equal(model(inputs), wanted(ours, inputs))
    assert model.label_names == ours.model.label_names


@pytest.mark.parametrize("run", ["mean_run", "language_run"])
def test_onnx_takes_any_number_of_texts_of_any_length(
    run: str, exported: Callable[..., Path], trained: Callable[[str], FinishedRun]
) -> None:
    import onnxruntime

    folder, ours = exported(run, "onnx"), trained(run)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    names = [value.name for value in session.get_inputs()]
    assert names == json.loads((folder / "config.json").read_text())["inputs"]
    assert [value.name for value in session.get_outputs()] == ["logits"]
    for texts in (LINES, LINES[2:], [*LINES, *LINES, "great thanks"]):
        inputs = encoded(folder, texts)
        (logits,) = session.run(["logits"], {name: inputs[name].numpy() for name in names})
        kept = inputs["attention_mask"].bool() if logits.ndim == 3 else slice(None)
        torch.testing.assert_close(torch.from_numpy(logits)[kept], wanted(ours, inputs)[kept], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("run", ["cls_run", "lora_run"])
def test_a_program_of_torch_takes_any_number_of_texts_of_any_length(
    run: str, exported: Callable[..., Path], trained: Callable[[str], FinishedRun]
) -> None:
    folder = exported(run, "torch")
    model, names = torch.export.load(folder / "model.pt2").module(), json.loads((folder / "config.json").read_text())
    for texts in (LINES, LINES[:1], [*LINES, *LINES]):
        inputs = encoded(folder, texts)
        theirs = model(*(inputs[name] for name in names["inputs"]))
        torch.testing.assert_close(theirs, wanted(trained(run), inputs), atol=1e-5, rtol=1e-5)


def test_an_adapter_loads_on_its_base_and_is_not_merged(
    exported: Callable[..., Path], trained: Callable[[str], FinishedRun], tiny_bert: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    folder = exported("lora_run", "peft")
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_bert, add_pooling_layer=False), str(folder))
    inputs = encoded(folder)
    with torch.no_grad():
        ours = trained("lora_run").model.backbone(inputs).states
        torch.testing.assert_close(model.eval()(**inputs).last_hidden_state, ours, atol=1e-5, rtol=1e-5)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] == 4
    assert config["base_model_name_or_path"] is None  # a folder of this machine
    assert (folder / "head.safetensors").is_file()


def test_timm_loads_weights_and_transform_by_either_way(
    exported: Callable[..., Path], trained: Callable[[str], FinishedRun]
) -> None:
    import timm
    from PIL import Image

    from lightning_ft.data.image_transforms import image_transform

    folder, ours = exported("timm_run", "timm"), trained("timm_run")
    pictures = torch.randn(5, 3, 64, 64)
    whole = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    plain = timm.create_model("test_resnet", num_classes=3, checkpoint_path=folder / "model.safetensors").eval()
    for model in (whole, plain):
        with torch.no_grad():
            torch.testing.assert_close(model(pictures), wanted(ours, {"pixel_values": pictures}), atol=1e-5, rtol=1e-5)
    assert json.loads((folder / "config.json").read_text())["label_names"] == ["blue", "green", "red"]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 130, 3), dtype=np.uint8))
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(whole))(image)
    own: Any = ours.model.backbone.data_config
    assert torch.equal(theirs, image_transform(own, image_size=64, augment=False)(image))


def test_onnx_of_a_convolutional_network_takes_images_of_any_size(
    exported: Callable[..., Path], trained: Callable[[str], FinishedRun]
) -> None:
    import onnxruntime

    folder, ours = exported("timm_run", "onnx"), trained("timm_run")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    for shape in ((1, 3, 64, 64), (4, 3, 96, 80)):
        pictures = torch.randn(shape)
        (logits,) = session.run(["logits"], {"pixel_values": pictures.numpy()})
        theirs = torch.from_numpy(logits)
        torch.testing.assert_close(theirs, wanted(ours, {"pixel_values": pictures}), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["transformers", "safetensors"])
def test_weights_are_written_as_numbers_of_16_bits_where_asked(name: str, exported: Callable[..., Path]) -> None:
    from safetensors.torch import load_file

    folder = exported("cls_run", name, "bfloat16")
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("run", "name"),
    [("cls_run", "transformers"), ("mean_run", "safetensors"), ("lora_run", "peft"), ("cls_run", "torch")],
)
def test_no_file_holds_a_pickle(run: str, name: str, exported: Callable[..., Path]) -> None:
    for part in pieces(exported(run, name)):
        # as pickles of protocol 2 and 4 begin
        assert part[:2] not in (b"\x80\x02", b"\x80\x04")
        assert b'"use_pickle": true' not in part


@pytest.mark.parametrize(("run", "name"), [("cls_run", "torch"), ("mean_run", "onnx"), ("timm_run", "timm")])
def test_no_file_says_where_the_code_lies_on_this_machine(run: str, name: str, exported: Callable[..., Path]) -> None:
    places = [os.fsencode(sys.prefix), b"site-packages", os.fsencode(Path(lightning_ft.__file__).parent)]
    assert not [place for part in pieces(exported(run, name)) for place in places if place in part]


def test_a_run_of_which_all_is_gone_but_its_folder_is_exported_by_other_rows(
    cls_run: Path, copied: Callable[[Path], Path], mails: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    run = copied(cls_run)
    config = (run / "config.yaml").read_text().replace(str(mails), "/gone/mails.jsonl")
    (run / "config.yaml").write_text(config.replace(str(tiny_bert), "/gone/bert"))
    with pytest.raises(FileNotFoundError, match="mails"):
        export(run)
    rows = tmp_path / "rows.csv"
    rows.write_text("text\n" + "".join(f"{line}\n" for line in LINES))
    folder, name, found = export(run, rows=str(rows))
    assert (folder, name) == (run / "export" / "transformers", "transformers")
    assert found <= 1e-5
    assert finished_run(run).model.label_names == tuple(
        json.loads((folder / "config.json").read_text())["id2label"].values()
    )
