"""OwnLanguageModel: what a pretrained language model does behind its last hidden states, without its trunk."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_ft.run.adapted_base import KEY
from lightning_ft.run.checkpoint_io import load_checkpoint

HEAD = "head.language_model."  # where a FineTuner keeps it


class OwnLanguageModel(nn.Module):
    """A language model of transformers whose trunk is another module: the backbone.

    Whatever the model does to get from states to logits is done as it does it: a matrix tied to the embeddings or one
    of its own, BERT's transform before it, Gemma's cap behind it. Its class is asked, with the states in its trunk's
    place.

    Args:
        whole: The model with its trunk.
        trunk: The module in whose place it stands: the backbone's, whose embeddings a tied model shares.

    Attributes:
        model: The model without its trunk.
    """

    def __init__(self, whole: Any, trunk: nn.Module) -> None:
        super().__init__()
        self._place = whole.base_model_prefix
        output, embedding = whole.get_output_embeddings(), whole.get_input_embeddings()
        if output is not None and output.weight is embedding.weight:
            output.weight = trunk.get_input_embeddings().weight  # type: ignore[operator]
        self.model = whole.train()  # transformers hands models over in eval mode
        setattr(whole, self._place, _States())

    def forward(self, states: Tensor) -> Tensor:
        """Return logits, shape (batch, token, vocabulary).

        Args:
            states: The trunk's last hidden states, shape (batch, token, feature).
        """
        places = torch.zeros(states.shape[:2], dtype=torch.long, device=states.device)
        with self._trunk(_States(states)):
            return self.model(input_ids=places).logits

    def generate(self, trunk: nn.Module, **options: Any) -> Tensor:
        """Return what transformers' ``generate`` does, shape (batch, token), with the prompt.

        Args:
            trunk: The trunk.
            **options: Its options, ``input_ids`` and ``attention_mask`` among them.
        """
        with self._trunk(trunk):
            return self.model.generate(**options)

    @contextmanager
    def _trunk(self, trunk: nn.Module) -> Iterator[None]:
        # not by assignment, which would make it a part of this module
        parts, before = self.model._modules, self.model._modules[self._place]
        parts[self._place] = trunk
        try:
            yield
        finally:
            parts[self._place] = before


def own_language_model(
    transformers: Any,
    trunk: Any,
    kind: str,
    *,
    name: str,
    checkpoint: Path | None,
    options: Mapping[str, Any],
    source: str | None = None,
    local: Mapping[str, Any] | None = None,
) -> OwnLanguageModel:
    """Load what belongs to a trunk.

    Args:
        transformers: The library.
        trunk: The backbone's model.
        kind: ``"causal"`` or ``"masked"``.
        name: The model's name, for messages.
        checkpoint: A run's checkpoint, if it comes from there.
        options: Options of the model.
        source: Its folder or name; None for new weights.
        local: Options of ``from_pretrained``.

    Raises:
        ValueError: If the model is none of this kind, or the checkpoint has no such weights.
    """
    config = trunk.config
    mapping = transformers.MODEL_FOR_CAUSAL_LM_MAPPING if kind == "causal" else transformers.MODEL_FOR_MASKED_LM_MAPPING
    if type(config) not in mapping:
        raise ValueError(f"{name!r} is no {kind} language model: transformers has none of {type(config).__name__}")
    with torch.device("meta"), quiet(transformers):
        bare = mapping[type(config)]._from_config(config, **options)
    if all_tied(bare):
        return OwnLanguageModel(bare, trunk)
    if source is None:
        own = OwnLanguageModel(mapping[type(config)]._from_config(config, **options), trunk)
        if checkpoint is not None:
            _take(own, checkpoint)
        return own
    with quiet(transformers):
        whole, info = mapping[type(config)].from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True, **options, **(local or {})
        )
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(f"{whole.base_model_prefix}."))
    own = OwnLanguageModel(whole, trunk)
    if missing:
        rank_zero_info(
            f"{name}: {len(missing)} tensors of its {kind} language model are not in its file and start at "
            f"random: {missing[:3]}"
        )
    return own


def all_tied(whole: Any) -> bool:
    """Tell whether a language model has nothing beside its trunk but a matrix tied to the trunk's embeddings."""
    output, embedding = whole.get_output_embeddings(), whole.get_input_embeddings()
    trunk = {id(value) for value in getattr(whole, whole.base_model_prefix).parameters()}
    others = [value for value in whole.parameters() if id(value) not in trunk]
    tied = output is not None and output.weight is embedding.weight
    return tied and not others and getattr(output, "bias", None) is None


def _take(own: OwnLanguageModel, checkpoint: Path) -> None:
    """Take the weights of a run's head; those that are tied to the trunk it has already."""
    content = load_checkpoint(checkpoint)
    tied = {name.removeprefix(HEAD) for name in content.get(KEY, {})}  # left out with the trunk's
    saved = content["state_dict"].items()
    weights = {name.removeprefix(HEAD): value for name, value in saved if name.startswith(HEAD)}
    if weights:
        own.load_state_dict(weights | {name: value for name, value in own.state_dict().items() if name in tied})
        return
    rank_zero_info(
        f"{str(checkpoint)!r} is of another task: its language model starts with new output layers, but for "
        "those tied to the embeddings"
    )


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Let transformers load without a list of what it did not use, and without progress bars."""
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


class _States(nn.Module):
    """Returns states that are known already, as a trunk returns its own."""

    def __init__(self, states: Tensor | None = None) -> None:
        super().__init__()
        self._states = (states,)  # in a tuple, so that it is no buffer

    @property
    def decoder(self) -> "_States":
        """OPT asks a part of its trunk."""
        return self

    def forward(self, *args: Any, **options: Any) -> "_Output":  # noqa: ARG002
        return _Output(self._states[0])


class _Output:
    """What a trunk returns: its states, and nothing else of what versions of transformers call by several names."""

    def __init__(self, states: Tensor | None) -> None:
        self.last_hidden_state = states

    def __getitem__(self, place: int) -> Tensor | None:
        return self.last_hidden_state if place == 0 else None

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
