"""CausalLMHead and MaskedLMHead: the next token, or the hidden ones, by the pretrained model's own output layers."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

from lightning_ft.features import FeatureInfo, Features, TokenFeatures
from lightning_ft.heads.base import Head
from lightning_ft.tasks.targets import IGNORED


class LanguageModelingHead(Head):
    """What both heads for language models share.

    Args:
        features: What the backbone gives.
        kind: ``"causal"`` or ``"masked"``.
        label_smoothing: Share of the target spread over the vocabulary (Szegedy et al. 2016, arXiv:1512.00567).

    Raises:
        ValueError: If the backbone gives maps, or is no language model of this kind.
    """

    reads = "tokens"
    main_metric = "perplexity"

    def __init__(self, features: FeatureInfo, kind: Literal["causal", "masked"], label_smoothing: float) -> None:
        super().__init__()
        name = type(self).__name__
        self.expect(features)
        if features.language_model is None:
            raise ValueError(f"{name} needs a pretrained language model, and this backbone is none")
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"{name}: expected label_smoothing to be at least 0 and below 1, but got {label_smoothing}"
            )
        self.label_smoothing = label_smoothing
        self.language_model: Any = features.language_model(kind)

    @staticmethod
    @abstractmethod
    def aligned(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits, shape (row, token, vocabulary), and the tokens that they are to predict, (row, token)."""

    def forward(self, features: Features) -> Tensor:
        """Return logits, shape (row, token, vocabulary)."""
        assert isinstance(features, TokenFeatures)
        return self.language_model(features.states)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy [nat] of the tokens that are judged.

        Args:
            prediction: Logits, shape (row, token, vocabulary).
            target: Tokens, -100 where nothing is judged, shape (row, token).
        """
        logits, tokens = self.aligned(prediction, target)
        if not (tokens != IGNORED).any():
            return prediction.sum() * 0.0
        return functional.cross_entropy(
            logits.flatten(0, 1).float(), tokens.flatten(), label_smoothing=self.label_smoothing
        )

    def count(self, target: Tensor) -> int:
        """Return how many tokens are judged."""
        return int((self.aligned(target, target)[1] != IGNORED).sum())

    def metrics(self) -> MetricCollection:
        """Return perplexity, the exponential of the mean cross-entropy [nat], and the share of right tokens."""
        size = self.language_model.model.config.get_text_config().vocab_size
        return MetricCollection(
            {
                "perplexity": Perplexity(ignore_index=IGNORED),
                "accuracy": TokenAccuracy(size, average="micro", ignore_index=IGNORED),
            },
            compute_groups=False,
        )

    def compared(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits and the tokens of the places that are judged, as one row each."""
        logits, tokens = self.aligned(prediction, target)
        judged = tokens != IGNORED
        return logits[judged][None], tokens[judged][None]


class TokenAccuracy(MulticlassAccuracy):
    """The share of tokens whose likeliest is the right one."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch: logits, shape (row, token, vocabulary), and tokens, shape (row, token)."""
        super().update(preds.argmax(-1), target)


class CausalLMHead(LanguageModelingHead):
    """The next token of a text, by the pretrained model's own output layer, tied to its embeddings or not.

    Args:
        features: What the backbone gives.
        label_smoothing: Share of the target spread over the vocabulary.
        max_new_tokens: Tokens that ``predict`` adds to a prompt, at most, while the model has room.
        temperature: Above 0, each token is drawn, the likelier the higher its logit over this; 0: the likeliest.
        top_p: Tokens are drawn from the fewest whose probabilities together reach this share (Holtzman et al. 2020,
            arXiv:1904.09751).

    Raises:
        ValueError: If the backbone is no causal language model, or an option is out of range.
    """

    tasks = ("causal",)

    def __init__(
        self,
        features: FeatureInfo,
        *,
        label_smoothing: float = 0.0,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
    ) -> None:
        super().__init__(features, "causal", label_smoothing)
        if max_new_tokens < 1:
            raise ValueError(f"CausalLMHead: expected max_new_tokens to be at least 1, but got {max_new_tokens}")
        if temperature < 0:
            raise ValueError(f"CausalLMHead: expected temperature to be at least 0, but got {temperature}")
        if not 0 < top_p <= 1:
            raise ValueError(f"CausalLMHead: expected top_p to be above 0 and at most 1, but got {top_p}")
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.top_p = top_p

    @staticmethod
    def aligned(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of each place beside the token behind it."""
        return prediction[:, :-1], target[:, 1:]

    def decode(
        self,
        prediction: Tensor,
        label_names: Sequence[str] | None,  # noqa: ARG002
        batch: Mapping[str, Tensor],  # noqa: ARG002
    ) -> list[dict[str, Any]]:
        """Return the likeliest next token of each prompt, as its number."""
        return [{"prediction": token} for token in prediction[:, -1].argmax(-1).tolist()]

    def predict(
        self,
        backbone: Callable[[Mapping[str, Tensor]], Features],
        batch: Mapping[str, Tensor],
        label_names: Sequence[str] | None,  # noqa: ARG002
    ) -> list[dict[str, Any]]:
        """Return for each prompt its ``prediction``: the text that goes on with it.

        Args:
            backbone: The backbone.
            batch: ``input_ids`` and ``attention_mask``, shape (prompt, token), padded on the left.
            label_names: Not used.
        """
        parts: Any = backbone
        # transformers would keep to the 50 likeliest
        drawn = {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0} if self.temperature else {}
        room = self.max_new_tokens
        if parts.max_length is not None:
            room = min(room, parts.max_length - batch["input_ids"].shape[1])
        if room < 1:
            raise ValueError(
                f"a prompt of {batch['input_ids'].shape[1]} tokens leaves no room: the model takes no more"
            )
        tokens = self.language_model.generate(
            parts.model,
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=room,
            do_sample=bool(self.temperature),
            pad_token_id=parts.tokenizer.pad_token_id,
            eos_token_id=ends_of(parts.tokenizer),
            **drawn,
        )
        added = tokens[:, batch["input_ids"].shape[1] :]
        return [{"prediction": text} for text in parts.tokenizer.batch_decode(added, skip_special_tokens=True)]


def ends_of(tokenizer: Any) -> list[int]:
    """Return the tokens that end a text: the tokenizer's own, and that behind a turn in its chat template.

    Args:
        tokenizer: A tokenizer of transformers.
    """
    ends = [tokenizer.eos_token_id]
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
        _, _, behind = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("y")
        first = tokenizer(behind, add_special_tokens=False)["input_ids"][:1]
        ends += [token for token in first if token in tokenizer.all_special_ids]
    return [*dict.fromkeys(ends)]


class MaskedLMHead(LanguageModelingHead):
    """The hidden tokens of a text, by the pretrained model's own output layers: BERT learns a field's language.

    A model that came without these layers, as sentence encoders do, gets new ones, tied to its embeddings; a notice
    says so. Going on with a field's own texts before a task is learnt is worth most where the field is far from what
    the model has read (Gururangan et al. 2020, arXiv:2004.10964).

    Args:
        features: What the backbone gives.
        label_smoothing: Share of the target spread over the vocabulary.

    Raises:
        ValueError: If the backbone is no masked language model.
    """

    tasks = ("masked",)

    def __init__(self, features: FeatureInfo, *, label_smoothing: float = 0.0) -> None:
        super().__init__(features, "masked", label_smoothing)

    def judged(self, features: Features, target: Tensor) -> tuple[Features, Tensor]:
        """Return the hidden places alone, as one row: a vocabulary of logits for every place would cost the most."""
        assert isinstance(features, TokenFeatures)
        places = target != IGNORED
        return TokenFeatures(features.states[places][None], features.mask[places][None]), target[places][None]

    @staticmethod
    def aligned(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of each place beside its own token."""
        return prediction, target

    def decode(
        self,
        prediction: Tensor,
        label_names: Sequence[str] | None,  # noqa: ARG002
        batch: Mapping[str, Tensor],  # noqa: ARG002
    ) -> list[dict[str, Any]]:
        """Return the likeliest token of each place, as its number."""
        return [{"prediction": tokens} for tokens in prediction.argmax(-1).tolist()]

    def predict(
        self,
        backbone: Callable[[Mapping[str, Tensor]], Features],
        batch: Mapping[str, Tensor],
        label_names: Sequence[str] | None,  # noqa: ARG002
    ) -> list[dict[str, Any]]:
        """Return for each text its ``prediction``: the likeliest token in each of its gaps, in order.

        Args:
            backbone: The backbone.
            batch: ``input_ids`` and ``attention_mask``, shape (text, token).
            label_names: Not used.
        """
        parts: Any = backbone
        best = self(backbone(batch)).argmax(-1)
        gaps = batch["input_ids"] == parts.tokenizer.mask_token_id
        return [
            {"prediction": [parts.tokenizer.decode(token).strip() for token in tokens[gap].tolist()]}
            for tokens, gap in zip(best, gaps, strict=True)
        ]
