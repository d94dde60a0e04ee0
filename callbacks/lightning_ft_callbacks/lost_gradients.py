"""GradientWatch: whether gradients reach what is trained, looked at once in a phase."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import Parameter
from torch.utils.hooks import RemovableHandle

from lightning_ft_callbacks.blocks import BlockMap


class GradientWatch:
    """Finds trained blocks that reentrant gradient checkpointing cuts off.

    ``torch.utils.checkpoint`` with ``use_reentrant=True`` computes no gradients where none of its inputs requires
    one, which is so above a frozen part; torch warns at best. Such a block ran without gradients in the forward pass
    and has none after the backward pass.

    Source: https://docs.pytorch.org/docs/stable/checkpoint.html
    """

    def __init__(self) -> None:
        self._due = False
        self._handles: list[RemovableHandle] = []
        self._parameters: dict[str, list[Parameter]] = {}
        self._ran_without: set[str] = set()

    def begin(self) -> None:
        """Look at the next step."""
        self.stop()
        self._due = True

    def start(self, block_map: BlockMap | None, trained: Sequence[str]) -> None:
        """Watch the forward pass that comes, if it is to be looked at."""
        if not self._due or block_map is None or self._handles:
            return
        if any(_is_compiled(module) for module in block_map.root.modules()):
            self._due = False  # hooks would have all compiled again without them, and torch.compile keeps gradients
            return
        self._parameters = {
            name: [parameter for parameter in block_map.parameters(name) if parameter.requires_grad] for name in trained
        }
        self._ran_without = set()
        for module, name in block_map.module_owners():
            if name in self._parameters and next(module.parameters(recurse=False), None) is not None:
                self._handles.append(module.register_forward_pre_hook(self._noting(name)))

    def check(self) -> None:
        """Raise where a block lost its gradients.

        Raises:
            RuntimeError: If one did, with its name and the remedy.
        """
        if not self._handles:
            return
        self.stop()
        for name in self._ran_without:
            parameters = self._parameters[name]
            if parameters and all(parameter.grad is None for parameter in parameters):
                raise RuntimeError(
                    f"no gradient reaches {name}, which this phase trains: gradient checkpointing with "
                    "use_reentrant=True drops the gradients above a frozen part; use use_reentrant=False "
                    "(transformers: gradient_checkpointing_kwargs={'use_reentrant': False})"
                )

    def stop(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._due = False

    def _noting(self, name: str):  # noqa: ANN202
        def note(module: nn.Module, inputs: object) -> None:  # noqa: ARG001
            if not torch.is_grad_enabled():
                self._ran_without.add(name)

        return note


def _is_compiled(module: nn.Module) -> bool:
    compiled = module._compiled_call_impl or getattr(module, "_compiler_ctx", None)
    return compiled is not None or "_orig_mod" in module._modules
