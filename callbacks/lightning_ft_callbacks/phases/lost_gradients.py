"""GradientWatch: whether gradients reach what is trained, looked at once in a phase."""

import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_ft_callbacks.blocks import BlockMap


class GradientWatch:
    """Finds trained modules that reentrant gradient checkpointing cuts off.

    ``torch.utils.checkpoint`` with ``use_reentrant=True`` computes no gradients where none of its inputs requires
    one, which is so above a frozen part; torch warns at best. A module within such a checkpoint runs without
    gradients in the forward pass, and again with them in the backward pass; one that is cut off never runs again.

    Source: https://docs.pytorch.org/docs/stable/checkpoint.html
    """

    def __init__(self) -> None:
        self._due = False
        self._handles: list[RemovableHandle] = []
        self._owners: dict[nn.Module, str] = {}
        self._lost: set[nn.Module] = set()

    def begin(self) -> None:
        """Look at the next step."""
        self.stop()
        self._due = True

    def start(self, block_map: BlockMap | None, trained: Sequence[str]) -> None:
        """Watch the step that comes, if it is to be looked at."""
        if not self._due or block_map is None or self._handles:
            return
        if any(_is_compiled(module) for module in block_map.root.modules()):
            self._due = False  # hooks would have all compiled again without them, and torch.compile keeps gradients
            return
        owners = block_map.owners()
        self._owners, self._lost = {}, set()
        for module in block_map.root.modules():
            own = [owners[id(p)] for p in module.parameters(recurse=False) if p.requires_grad and id(p) in owners]
            if inside := [name for name in own if name in trained]:
                self._owners[module] = inside[0]
                self._handles.append(module.register_forward_pre_hook(self._note))

    def check(self) -> None:
        """Raise where a module lost its gradients, when all backward passes of the step are done.

        Raises:
            RuntimeError: If one did, with its block and the remedy.
        """
        if not self._handles:
            return
        self.stop()
        for module in self._owners:
            if module in self._lost:
                raise RuntimeError(
                    f"no gradient reaches {self._owners[module]}, which this phase trains: gradient checkpointing with "
                    "use_reentrant=True drops the gradients above a frozen part; use use_reentrant=False "
                    "(transformers: gradient_checkpointing_kwargs={'use_reentrant': False})"
                )

    def stop(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._due = False

    def _note(self, module: nn.Module, inputs: Any) -> None:  # noqa: ARG002
        if torch.is_grad_enabled():
            self._lost.discard(module)
        elif _in_autograd_function(sys._getframe()):
            self._lost.add(module)


def _in_autograd_function(frame: FrameType | None) -> bool:
    """Tell whether code runs in the forward pass of an autograd function, and not only under a user's ``no_grad``."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "forward" and code.co_argcount and code.co_varnames[0] == "ctx":
            return True
        frame = frame.f_back
    return False


def _is_compiled(module: nn.Module) -> bool:
    compiled = module._compiled_call_impl or getattr(module, "_compiler_ctx", None)
    return compiled is not None or "_orig_mod" in module._modules
