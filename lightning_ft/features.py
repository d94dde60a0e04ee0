"""What a backbone gives a head: token states with a mask, or a pyramid of maps."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Literal

from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node

FeatureKind = Literal["tokens", "maps"]


@dataclass(frozen=True, slots=True, eq=False)
class TokenFeatures:
    """States of a sequence of tokens.

    Attributes:
        states: One vector a token, shape (batch, token, feature).
        mask: 1 at tokens, 0 at padding, shape (batch, token).
    """

    states: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class MapFeatures:
    """A pyramid of feature maps, the finest first; a pooled network gives one map of a single pixel.

    Attributes:
        maps: Tensors of shape (batch, feature, height, width), one a level.
    """

    maps: tuple[Tensor, ...]


Features = TokenFeatures | MapFeatures


@dataclass(frozen=True, slots=True)
class FeatureInfo:
    """What a head must know of a backbone to be built for it.

    Attributes:
        num_features: Features of a token, or of the last map.
        kind: ``"tokens"`` or ``"maps"``.
        channels: Features of each level of the pyramid, finest first; empty for tokens.
        strides: Input pixels a map pixel of each level [pixel]; empty for tokens, and for a pooled map.
        language_model: Of a language model, makes what it does behind its states, by kind, ``"causal"`` or
            ``"masked"``; None for any other backbone.
    """

    num_features: int
    kind: FeatureKind
    channels: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    language_model: Callable[[str], nn.Module] | None = field(default=None, compare=False, repr=False)


def _as_tree(kind: type) -> None:
    """Let torch look into features for their tensors."""
    names = [one.name for one in fields(kind)]
    register_pytree_node(
        kind,
        lambda features: ([getattr(features, name) for name in names], None),
        lambda values, _: kind(*values),
    )


_as_tree(TokenFeatures)
_as_tree(MapFeatures)
