"""A program of torch.export, which runs with torch alone."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lightning_ft.export.format import Format, inputs_of, write_json
from lightning_ft.export.preprocessing import description, write_tokenizer
from lightning_ft.export.program import refusal_of, traced
from lightning_ft.export.rows import Batch

MODEL, CONFIG = "model.pt2", "config.json"


class TorchProgram(Format):
    """One file with the graph as JSON and the weights as plain bytes: no code of ours, and nothing pickled.

    A file of weights alone would need this project's classes to be of use, and torch's older kinds, TorchScript and
    whole modules, hold pickles.
    """

    name = "torch"

    def refusal(self) -> str | None:
        """Return why this run's model is no function of named tensors."""
        return refusal_of(self.run)

    def write(self, folder: Path, batches: Sequence[Batch], wanted: Sequence[Tensor], dtype: torch.dtype) -> None:  # noqa: ARG002
        """Write the program, what its outputs mean, and the tokenizer."""
        program, names, _, sizes = traced(self.run, batches)
        program._example_inputs = None  # real rows, and the only part that torch would pickle
        torch.export.save(program, folder / MODEL)
        write_json(folder / CONFIG, {"inputs": names, "outputs": ["logits"], **description(self.run)})
        write_tokenizer(self.run, folder)
        if "pixel_values" in names and not sizes:
            self.notes.append("Images are of the size in config.json; the number of images is free.")

    def reader(self, folder: Path) -> Callable[[Batch], Tensor]:
        """Load the program."""
        model = torch.export.load(folder / MODEL).module()
        return lambda batch: model(*inputs_of(self.run, batch).values())

    def usage(self, folder: str) -> str:
        """Return lines that load it."""
        start = f"import torch\n\nmodel = torch.export.load({f'{folder}/{MODEL}'!r}).module()\n"
        if getattr(self.run.model.backbone, "data_config", None) is not None:
            height, width = description(self.run)["image"]["input_size"][1:]
            return (
                f"{start}images = torch.zeros(2, 3, {height}, {width})  # yours, scaled as config.json says\n"
                "print(model(images).shape)"
            )
        return (
            f"{start}from transformers import AutoTokenizer\n\n"
            f"tokenizer = AutoTokenizer.from_pretrained({folder!r})\n"
            'inputs = tokenizer(["A text", "Another one"], return_tensors="pt", padding=True)\n'
            f"names = {list(self._names)!r}  # their order, which config.json has too\n"
            "print(model(*(inputs[name] for name in names)).shape)"
        )

    @property
    def _names(self) -> list[str]:
        accepted = getattr(self.run.model.backbone, "_accepted", ())
        return [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in accepted]
