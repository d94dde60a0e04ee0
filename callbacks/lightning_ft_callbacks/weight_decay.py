"""Which parameters weight decay leaves alone: biases, norms and embeddings."""

from typing import Any

from torch import nn


def decay_exempt(module: nn.Module) -> frozenset[int]:
    """Return the ``id`` of every parameter that should not decay.

    These are parameters of one dimension (biases, norms, layer scales), those of embeddings, and those that a timm
    model names in ``no_weight_decay`` (class tokens, position embeddings). Decaying them costs accuracy and gains
    nothing (He et al. 2019, arXiv:1812.01187, section 3.1).

    Args:
        module: The module.
    """
    exempt = {id(parameter) for parameter in module.parameters() if parameter.ndim <= 1}
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            exempt.update(id(parameter) for parameter in part.parameters(recurse=False))
        if callable(names := getattr(part, "no_weight_decay", None)):
            listed: Any = names()
            exempt.update(id(parameter) for name, parameter in part.named_parameters() if name in listed)
    return frozenset(exempt)
