"""OwnGradients: whether gradients that flow into a frozen prefix end there, or go on to something that is trained."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


class OwnGradients:
    """Follows gradients back to the frozen modules that they end in.

    Outputs of frozen modules may have a gradient: transformers gives embeddings one when it makes checkpoints. Nothing
    learns from it, unless something that is trained, or an input with a gradient, comes before.
    """

    def __init__(self) -> None:
        self._ends: list[Any] = []  # nodes of autograd, and tensors that are leaves

    def begin_at(self, outputs: Sequence[Any]) -> None:
        """Take a frozen module's outputs for places where gradients may end.

        Args:
            outputs: Its outputs.
        """
        self._ends += [leaf.grad_fn or leaf for leaf in outputs if isinstance(leaf, Tensor) and leaf.requires_grad]

    def reach_all(self, inputs: Sequence[Any]) -> bool:
        """Tell whether all gradients of a frozen module's inputs end in frozen modules.

        Args:
            inputs: Its inputs.
        """
        ends = {id(end) for end in self._ends}
        ahead = [leaf.grad_fn or leaf for leaf in inputs if isinstance(leaf, Tensor) and leaf.requires_grad]
        seen = set()
        while ahead:
            node = ahead.pop()
            node = getattr(node, "variable", node)  # what a gradient is accumulated in
            if id(node) in ends or id(node) in seen:
                continue
            if isinstance(node, Tensor):
                return False
            seen.add(id(node))
            ahead += [following for following, _ in node.next_functions if following is not None]
        return True
