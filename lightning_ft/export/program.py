"""Program: a run's model as one function of named tensors, as ONNX and torch.export take it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from lightning_ft.export.format import inputs_of
from lightning_ft.export.rows import Batch
from lightning_ft.run.finished_run import FinishedRun

NOT_EXPORTED = {
    "detection": "what it gives for an image is decoded into boxes by code outside of the network",
    "recommendation": "its scores are of a batch's items and histories, which no single input holds",
}


class Program(nn.Module):
    """A model from named tensors to its outputs.

    Args:
        run: The run.
        names: The inputs, in their order.
    """

    def __init__(self, run: FinishedRun, names: list[str]) -> None:
        super().__init__()
        self.backbone = run.model.backbone
        self.head = run.model.head
        self.names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the head's prediction: logits, or the numbers of a regression."""
        batch = dict(zip(self.names, inputs, strict=True))
        return self.head(self.backbone(batch))


def example(run: FinishedRun, batches: list[Batch] | Any) -> tuple[list[str], tuple[Tensor, ...]]:
    """Return the names of a model's inputs and an example of them, of several samples: one would be taken for all."""
    batch = inputs_of(run, max(batches, key=lambda one: min(next(iter(inputs_of(run, one).values())).shape[:2])))
    return list(batch), tuple(batch.values())


def dynamic_shapes(names: list[str], *, sizes: bool) -> tuple[dict[int, Any], ...]:
    """Return which dimensions of the inputs may be of any size: samples, tokens, and pixels where ``sizes`` says so.

    torch finds the bounds itself, the model's longest text among them, and fails where a size would be fixed.
    """
    free = Dim.DYNAMIC
    texts, images = {0: free, 1: free}, {0: free, 2: free, 3: free} if sizes else {0: free}
    return tuple(images if name == "pixel_values" else texts for name in names)


def refusal_of(run: FinishedRun) -> str | None:
    """Return why a run's model is no function of named tensors; None where it is one."""
    head = run.model.head
    task = head.tasks[0] if head.tasks else ""
    if (why := NOT_EXPORTED.get(task)) is not None:
        return f"{type(head).__name__} is no function of one input: {why}"
    if getattr(head, "crf", None) is not None:
        return "the classes of a CRF are found by a search over its outputs, which are no prediction by themselves"
    if head.inputs:
        return f"{type(head).__name__} reads entries of the batch beside the backbone's"
    return None


def traced(run: FinishedRun, batches: Any) -> tuple[torch.export.ExportedProgram, list[str], tuple[Tensor, ...], bool]:
    """Return a run's model as a program of torch.export, its inputs' names, an example, and whether images may vary.

    Raises:
        ValueError: If torch cannot trace it for any number of samples.
    """
    names, inputs = example(run, batches)
    program = Program(run, names).eval()
    attention = getattr(getattr(run.model.backbone.model, "config", None), "_attn_implementation", None)
    failure: Exception | None = None
    for sizes in (True, False) if "pixel_values" in names else (False,):
        try:
            with torch.no_grad():
                found = torch.export.export(
                    program, inputs, dynamic_shapes=(dynamic_shapes(names, sizes=sizes),), strict=False
                )
        except Exception as error:  # of whatever kind tracing meets
            failure = error
            continue
        _forget_places(found)
        return found, names, inputs, sizes
    assert failure is not None
    raise ValueError(
        f"torch cannot trace {type(run.model.backbone.model).__name__} (attention {attention}): "
        f"{str(failure).strip().splitlines()[0]}"
    ) from failure


def _forget_places(program: torch.export.ExportedProgram) -> None:
    """Take out of a program in which files of this machine its operations were written."""
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
