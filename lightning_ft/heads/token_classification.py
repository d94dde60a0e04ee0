"""TokenClassificationHead: a class for each word: named entities, or parts of speech."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torchmetrics import MetricCollection

from lightning_ft.extras import require
from lightning_ft.features import FeatureInfo, Features, TokenFeatures
from lightning_ft.heads.base import Head
from lightning_ft.tasks.entities import IGNORED, entities_of, words_of_texts
from lightning_ft.tasks.word_metrics import EntityScores, WordAccuracy, WordF1

FORBIDDEN = -1e4  # the score of what never comes


class TokenClassificationHead(Head):
    """A linear layer, or a small network, over the state of each word's first token.

    Of named entities the classes are those of IOB2, in the order of ``lightning_ft.tasks.entities``. Any sequence of
    them is read as entities: an ``I-`` that goes on with nothing begins one. With ``crf`` sequences are scored and
    decoded as a whole (Lafferty et al. 2001), by the library pytorch-crf, and such an ``I-`` never comes.

    Args:
        features: What the backbone gives.
        num_classes: Classes of a word.
        task: ``"entities"``, or ``"tags"`` for one class a word, as parts of speech; None for entities.
        dropout: Share of the states set to zero in training.
        hidden_size: Width of a hidden layer with GELU before the last; None for none.
        class_weights: Weight of each class in the loss, shape (class,).
        label_smoothing: Share of the target spread over all classes (Szegedy et al. 2016, arXiv:1512.00567).
        crf: Whether neighbouring words' classes are scored together.

    Raises:
        ValueError: If the backbone gives maps, num_classes is missing or does not go with the task, or an option has
            no effect.
        ModuleNotFoundError: If pytorch-crf is needed and not installed.
    """

    reads = "tokens"
    tasks = ("entities", "tags")

    def __init__(
        self,
        features: FeatureInfo,
        num_classes: int | None = None,
        task: Literal["entities", "tags"] | None = None,
        *,
        dropout: float = 0.1,
        hidden_size: int | None = None,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        crf: bool = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.expect(features)
        if task not in (None, "entities", "tags"):
            raise ValueError(f"{name}: expected task to be entities or tags, but got {task!r}")
        self.task = task or "entities"
        if num_classes is None:
            raise ValueError(f"{name} needs num_classes, as in partial({name}, num_classes=9)")
        if num_classes < 2 or (self.task == "entities" and num_classes % 2 == 0):
            needed = "at least 2" if self.task == "tags" else "1, and 2 more for each kind of entity"
            raise ValueError(f"{name}: expected num_classes to be {needed}, but got {num_classes}")
        if class_weights is not None and len(class_weights) != num_classes:
            raise ValueError(f"{name}: {len(class_weights)} class_weights for {num_classes} classes")
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"{name}: expected label_smoothing to be at least 0 and below 1, but got {label_smoothing}"
            )
        if crf and (class_weights is not None or label_smoothing):
            raise ValueError(f"{name}: class_weights and label_smoothing have no effect with crf")
        self.num_classes = num_classes
        self.main_metric = "f1" if self.task == "entities" else "accuracy"
        self.label_smoothing = label_smoothing
        weights = None if class_weights is None else torch.tensor([float(weight) for weight in class_weights])
        self.register_buffer("class_weights", weights, persistent=False)
        self.class_weights: Tensor | None
        width = features.num_features
        hidden = [] if hidden_size is None else [nn.Linear(width, hidden_size), nn.GELU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(nn.Dropout(dropout), *hidden, nn.Linear(hidden_size or width, num_classes))
        self.crf = _crf(num_classes, entities=self.task == "entities") if crf else None

    def forward(self, features: Features) -> Tensor:
        """Return class logits, shape (window, token, class)."""
        assert isinstance(features, TokenFeatures)
        return self.layers(features.states)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the mean over words of the cross-entropy [nat], or of their texts' negative log-likelihood with crf.

        Args:
            prediction: Logits, shape (window, token, class).
            target: Classes of words at their tokens, negative at others, shape (window, token).
        """
        if not (target >= 0).any():
            return prediction.sum() * 0.0
        if self.crf is not None:
            texts = [text for text in words_of_texts(target) if len(text[0])]
            logits, mask = self._padded(prediction, texts)
            classes = pad_sequence([target[text] for text in texts], batch_first=True)
            return -self.crf(logits.float(), classes, mask, reduction="token_mean")
        classes = target.flatten().clamp(min=IGNORED)
        return functional.cross_entropy(
            prediction.flatten(0, 1), classes, self.class_weights, label_smoothing=self.label_smoothing
        )

    def count(self, target: Tensor) -> int:
        """Return how many words there are."""
        return int((target >= 0).sum())

    def metrics(self) -> MetricCollection:
        """Return precision, recall and F1 of whole entities, all together and by kind; and of words the accuracy.

        Of tags that are no entities the accuracy and the macro F1.
        """
        assert self.num_classes is not None
        number = self.num_classes
        accuracy: dict[str, Any] = {"accuracy": WordAccuracy(number, average="micro")}
        if self.task == "tags":
            accuracy["macro_f1"] = WordF1(number, average="macro")
            return MetricCollection(accuracy, compute_groups=False)
        scores: dict[str, Any] = {
            score: EntityScores(score, number // 2) for score in ("f1", "precision", "recall", "by_kind")
        }
        return MetricCollection(scores | accuracy, compute_groups=[[*scores], [*accuracy]])

    def compared(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the predicted classes, shape (window, token), and the target."""
        if self.crf is None:
            return prediction.argmax(-1), target
        tags = torch.zeros_like(target)
        texts = words_of_texts(target)
        for text, classes in zip(texts, self._classes(prediction, texts), strict=True):
            tags[text] = torch.tensor(classes, dtype=tags.dtype, device=tags.device)
        return tags, target

    def decode(
        self, prediction: Tensor, label_names: Sequence[str] | None, batch: Mapping[str, Tensor]
    ) -> list[dict[str, Any]]:
        """Return for each text its ``prediction``: its entities, or the tags of its words.

        An entity is a dictionary of ``label``, ``start`` and ``end``, the characters between which it stands in the
        text, and ``score``, the lowest probability of its words' classes; with crf there is none.

        Args:
            prediction: What ``forward`` returned.
            label_names: Names of the classes, in their order; None where they have none.
            batch: The batch. ``labels``, shape (window, token), is negative where no word begins; ``characters``, shape
                (window, token, 2), says between which characters of its text each word stands.
        """
        names = list(label_names or map(str, range(prediction.shape[-1])))
        texts = words_of_texts(batch["labels"])
        rows = []
        for text, classes in zip(texts, self._classes(prediction, texts), strict=True):
            if self.task == "tags":
                rows.append({"prediction": [names[tag] for tag in classes]})
                continue
            places = batch["characters"][text].tolist()
            best = prediction[text].float().softmax(-1).amax(-1).tolist()
            found = []
            for kind, start, stop in entities_of(classes):
                entity = {"label": names[1 + 2 * kind][2:], "start": places[start][0], "end": places[stop - 1][1]}
                found.append(entity if self.crf is not None else entity | {"score": min(best[start:stop])})
            rows.append({"prediction": found})
        return rows

    def _classes(self, prediction: Tensor, texts: Sequence[tuple[Tensor, Tensor]]) -> list[list[int]]:
        """Return the predicted classes of each text's words."""
        if self.crf is None:
            return [prediction[text].argmax(-1).tolist() for text in texts]
        filled = [text for text in texts if len(text[0])]
        logits, mask = self._padded(prediction, filled) if filled else (prediction[:0], None)
        decoded = iter(self.crf.decode(logits.float(), mask) if filled else [])
        return [next(decoded) if len(text[0]) else [] for text in texts]

    def _padded(self, prediction: Tensor, texts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return the logits of texts' words, shape (text, word, class), and where words are, shape (text, word)."""
        logits = [prediction[text] for text in texts]
        mask = [torch.ones(len(text), dtype=torch.bool, device=prediction.device) for text in logits]
        return pad_sequence(logits, batch_first=True), pad_sequence(mask, batch_first=True)


def _crf(num_classes: int, *, entities: bool) -> Any:
    """Return a linear-chain CRF, in which an ``I-`` follows its own ``B-`` or ``I-`` only."""
    torchcrf = require("torchcrf", extra="crf", needed_by="TokenClassificationHead(crf=True)")
    crf = torchcrf.CRF(num_classes, batch_first=True)
    if entities:
        with torch.no_grad():
            for kind in range(num_classes // 2):
                begins, goes_on = 1 + 2 * kind, 2 + 2 * kind
                crf.start_transitions[goes_on] = FORBIDDEN
                others = [tag for tag in range(num_classes) if tag not in (begins, goes_on)]
                crf.transitions[others, goes_on] = FORBIDDEN
    return crf
