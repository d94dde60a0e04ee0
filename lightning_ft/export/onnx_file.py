"""An ONNX file, checked with onnxruntime."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lightning_ft.export.format import Format, inputs_of, write_json
from lightning_ft.export.preprocessing import description, write_tokenizer
from lightning_ft.export.program import refusal_of, traced
from lightning_ft.export.rows import Batch
from lightning_ft.extras import require

MODEL, CONFIG = "model.onnx", "config.json"


class OnnxFile(Format):
    """One file for any number of samples and tokens; names of inputs and outputs are those of the batch and logits."""

    name = "onnx"
    exact = 1e-4

    def refusal(self) -> str | None:
        """Return why this run's model is no function of named tensors."""
        return refusal_of(self.run)

    def write(self, folder: Path, batches: Sequence[Batch], wanted: Sequence[Tensor], dtype: torch.dtype) -> None:  # noqa: ARG002
        """Write the file, what its outputs mean, and the tokenizer."""
        for library in ("onnx", "onnxscript", "onnxruntime"):
            require(library, extra="export", needed_by="export --format onnx")
        program, names, _, sizes = traced(self.run, batches)
        model = torch.onnx.export(program, input_names=names, output_names=["logits"], dynamo=True, verbose=False)
        assert model is not None
        for graph in (model.model.graph, *model.model.functions.values()):
            for node in graph.all_nodes():
                node.metadata_props.clear()  # places in files of this machine
        model.save(str(folder / MODEL))
        write_json(folder / CONFIG, {"inputs": names, "outputs": ["logits"], **description(self.run)})
        write_tokenizer(self.run, folder)
        if "pixel_values" in names and not sizes:
            self.notes.append("Images are of the size in config.json; the number of images is free.")

    def reader(self, folder: Path) -> Callable[[Batch], Tensor]:
        """Load the file with onnxruntime, on the CPU."""
        onnxruntime = require("onnxruntime", extra="export", needed_by="export --format onnx")
        session = onnxruntime.InferenceSession(str(folder / MODEL), providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]

        def predict(batch: Batch) -> Tensor:
            inputs = inputs_of(self.run, batch)
            (logits,) = session.run(["logits"], {name: inputs[name].numpy() for name in names})
            return torch.from_numpy(logits)

        return predict

    def usage(self, folder: str) -> str:
        """Return lines that load it."""
        start = f"import onnxruntime\n\nsession = onnxruntime.InferenceSession({f'{folder}/{MODEL}'!r})\n"
        if getattr(self.run.model.backbone, "data_config", None) is not None:
            height, width = description(self.run)["image"]["input_size"][1:]
            return (
                f"import numpy\n{start}"
                f"images = numpy.zeros((2, 3, {height}, {width}), numpy.float32)  # yours, scaled as config.json says\n"
                '(logits,) = session.run(["logits"], {"pixel_values": images})\nprint(logits.shape)'
            )
        return (
            f"{start}from transformers import AutoTokenizer\n\n"
            f"tokenizer = AutoTokenizer.from_pretrained({folder!r})\n"
            'inputs = tokenizer(["A text", "Another one"], return_tensors="np", padding=True)\n'
            "names = [value.name for value in session.get_inputs()]\n"
            '(logits,) = session.run(["logits"], {name: inputs[name] for name in names})\nprint(logits.shape)'
        )

    def requirements(self) -> str:
        """Return onnxruntime."""
        return "onnxruntime transformers"
