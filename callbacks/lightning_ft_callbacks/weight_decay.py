"""Which parameters weight decay leaves alone: biases, norms and embeddings."""

import re
from typing import Any

from torch import nn

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
# bias, in_proj_bias, bias_ih_l0
BIAS = re.compile(r"(.*_)?bias(_[a-z]{2}_l\d+(_reverse)?)?")


def decay_exempt(module: nn.Module) -> frozenset[int]:
    """Return the ``id`` of every parameter that should not decay.

    These are biases, by their name; those of norms, whose class says so in its name, and of embeddings, whatever
    their shape; and those that a timm model names in ``no_weight_decay`` (class tokens, position embeddings).
    Decaying them costs accuracy and gains nothing (He et al. 2019, arXiv:1812.01187, section 3.1).

    Args:
        module: The module.
    """
    exempt: set[int] = set()
    for part in module.modules():
        is_spared = isinstance(part, EMBEDDINGS) or "norm" in type(part).__name__.lower()
        named = part.named_parameters(recurse=False)
        exempt.update(id(parameter) for name, parameter in named if is_spared or BIAS.fullmatch(name))
        if callable(names := getattr(part, "no_weight_decay", None)):
            listed: Any = names()
            exempt.update(id(parameter) for name, parameter in part.named_parameters() if name in listed)
    return frozenset(exempt)
