"""How a trained classifier is written into the classification layers that a model of transformers has.

These differ by architecture. Some read one linear layer; others have another layer and an activation before it, which
a classifier of one layer must pass unchanged. That can be had exactly:

- relu, gelu and silu are x s(x) with s(x) + s(-x) = 1, so f(x) - f(-x) = x. The layer before takes each class's logit
  and its negative, and the last one subtracts.
- tanh(x) is x in the numbers of 32 bits where |x| < 2^-12, since x - tanh(x) < x^3 / 3 is less than half a unit in the
  last place. States that come from a normalisation are bounded by its weights; a power of two scales them below it.

Which of them an architecture needs is not looked up but seen: each is tried, and the one whose logits are the run's on
real rows is kept. None may be.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, log2
from typing import Any

import torch
from torch import Tensor, nn

# the layer before the last, if any, and the last; of classes and, where {trunk} stands, of their trunk
PLACES = (
    ("classifier.dense", "classifier.out_proj"),
    ("pre_classifier", "classifier"),
    ("{trunk}.pooler.dense", "classifier"),
    ("{trunk}.pooler", "classifier"),
    ("pooler.dense", "classifier"),
    (None, "classifier"),
    (None, "classifier.1"),
    (None, "score"),
)
SMALL = 12  # 2^-12: below it tanh(x) rounds to x


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """A trained classifier: one linear layer, or two with GELU between them.

    Attributes:
        weight: Of the last layer, shape (class, feature).
        bias: Of the last layer, shape (class,).
        hidden: Weight, shape (hidden, feature), and bias of the layer before it; None where there is none.
    """

    weight: Tensor
    bias: Tensor
    hidden: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, head: Any) -> "Classifier":
        """Return that of a head; the mean and the spread of a regression's targets go into the last layer."""
        *before, last = [layer for layer in head.layers if isinstance(layer, nn.Linear)]
        weight, bias = last.weight.detach().clone(), last.bias.detach().clone()
        if getattr(head, "task", None) == "regression":
            weight, bias = head.target_std * weight, head.target_mean + head.target_std * bias
        hidden = (before[0].weight.detach(), before[0].bias.detach()) if before else None
        return cls(weight, bias, hidden)


def layouts(whole: nn.Module, trunk: str, classifier: Classifier) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the ways to write a classifier into a model, each with what its reader should know, empty if nothing.

    Args:
        whole: The model; its trunk has the run's weights.
        trunk: The name of its trunk.
        classifier: What is to be written.
    """
    for before, last in PLACES:
        dense = None if before is None else _linear(whole, before.format(trunk=trunk))
        out = _linear(whole, last)
        if out is None or (before is not None and dense is None):
            continue
        if classifier.hidden is not None:
            if dense is not None and len(classifier.hidden[1]) <= dense.out_features:
                yield "", lambda dense=dense, out=out: _write_both(dense, out, classifier)
            continue
        if dense is None:
            yield from _direct(whole, trunk, out, classifier)
            continue
        if 2 * len(classifier.bias) <= dense.out_features:
            yield "", lambda dense=dense, out=out: _write_twice(dense, out, classifier)
        if (exponent := _exponent(whole.get_submodule(trunk))) is not None and dense.in_features == dense.out_features:
            note = (
                f"The states pass the pooling layer's tanh at 2^-{exponent} of their size, where it changes nothing in "
                "32 bits; in 16 bits they may lose digits there, and further training should start from new layers."
            )
            yield note, lambda dense=dense, out=out, exponent=exponent: _write_small(dense, out, classifier, exponent)


def _direct(
    whole: nn.Module, trunk: str, out: nn.Linear, classifier: Classifier
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the way into a last layer with nothing before it."""
    if out.bias is not None:
        yield "", lambda: _write(out, classifier)
    elif (norm := _last_norm(whole.get_submodule(trunk))) is not None:
        note = (
            "Its last layer has no bias: the classifier's is in the bias of the last normalisation, moved by what the "
            "classifier maps to it."
        )
        yield note, lambda: _write_without_bias(out, norm, classifier)


@torch.no_grad()
def _write(out: nn.Linear, classifier: Classifier) -> None:
    out.weight.zero_()  # some read more behind the pooled states, which is left unread
    out.weight[:, : classifier.weight.shape[1]] = classifier.weight
    out.bias.copy_(classifier.bias)


@torch.no_grad()
def _write_without_bias(out: nn.Linear, norm: nn.LayerNorm, classifier: Classifier) -> None:
    weight = classifier.weight
    out.weight.copy_(weight)
    shift = torch.linalg.pinv(weight.double()) @ classifier.bias.double()
    norm.bias.add_(shift.to(norm.bias.dtype))


@torch.no_grad()
def _write_both(dense: nn.Linear, out: nn.Linear, classifier: Classifier) -> None:
    assert classifier.hidden is not None
    weight, bias = classifier.hidden
    width = len(bias)
    for part in (dense.weight, dense.bias, out.weight):
        part.zero_()
    dense.weight[:width], dense.bias[:width] = weight, bias
    out.weight[:, :width] = classifier.weight
    out.bias.copy_(classifier.bias)


@torch.no_grad()
def _write_twice(dense: nn.Linear, out: nn.Linear, classifier: Classifier) -> None:
    number = len(classifier.bias)
    for part in (dense.weight, dense.bias, out.weight, out.bias):
        part.zero_()
    for sign, start in ((1, 0), (-1, number)):
        dense.weight[start : start + number] = sign * classifier.weight
        dense.bias[start : start + number] = sign * classifier.bias
        out.weight[:, start : start + number] = sign * torch.eye(number)


@torch.no_grad()
def _write_small(dense: nn.Linear, out: nn.Linear, classifier: Classifier, exponent: int) -> None:
    dense.weight.copy_(torch.eye(dense.out_features) * 2.0**-exponent)
    dense.bias.zero_()
    out.weight.copy_(classifier.weight * 2.0**exponent)
    out.bias.copy_(classifier.bias)


def _exponent(trunk: nn.Module) -> int | None:
    """Return the power of two that scales all that a trunk's normalisations can give below 2^-12."""
    norms = [part for part in trunk.modules() if isinstance(part, nn.LayerNorm) and part.elementwise_affine]
    if not norms:
        return None
    # a normalised vector has length sqrt(d), so no entry is larger
    largest = max(
        part.weight.abs().max().item() * part.normalized_shape[-1] ** 0.5
        + (0.0 if part.bias is None else part.bias.abs().max().item())
        for part in norms
    )
    return SMALL + max(0, ceil(log2(largest)))


def _last_norm(trunk: nn.Module) -> nn.LayerNorm | None:
    """Return the normalisation behind a trunk's layers, if it has a bias."""
    named = [(name, part) for name, part in trunk.named_modules() if isinstance(part, nn.LayerNorm)]
    norms = [part for name, part in named if not any(step.isdigit() for step in name.split("."))]
    return norms[-1] if norms and norms[-1].bias is not None else None


def _linear(whole: nn.Module, path: str) -> nn.Linear | None:
    try:
        part = whole.get_submodule(path)
    except AttributeError:
        return None
    return part if isinstance(part, nn.Linear) else None
