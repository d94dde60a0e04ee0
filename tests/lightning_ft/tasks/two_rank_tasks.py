"""Train each task on two processes and validate it there: ``two_rank_tasks.py FOLDER BERT GPT2``."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from task_fits import QUIET
from task_sets import write_films, write_mentions, write_scenes, write_shapes

from lightning_ft import (
    CausalLMHead,
    DetectionData,
    DetectionHead,
    FineTuner,
    InteractionsData,
    LanguageModelingData,
    RecommendationHead,
    SegmentationData,
    SegmentationHead,
    TimmBackbone,
    TokenClassificationData,
    TokenClassificationHead,
    TransformersBackbone,
)
from lightning_ft_callbacks import BlockMap, GradualUnfreezing

Parts = tuple[FineTuner, LightningDataModule]


def entities(folder: Path, bert: str, gpt2: str) -> Parts:  # noqa: ARG001
    head = partial(TokenClassificationHead, num_classes=5)
    data = TokenClassificationData(str(folder / "mentions.txt"), batch_size=8, val_size=13)
    return FineTuner(TransformersBackbone(bert), head, lr=3e-3), data


def language(folder: Path, bert: str, gpt2: str) -> Parts:  # noqa: ARG001
    data = LanguageModelingData(str(folder / "texts.txt"), batch_size=4, val_size=0.3)
    return FineTuner(TransformersBackbone(gpt2), CausalLMHead, lr=3e-3), data


def segmentation(folder: Path, bert: str, gpt2: str) -> Parts:  # noqa: ARG001
    head = partial(SegmentationHead, num_classes=3, width=8)
    masks = str(folder / "masks")
    data = SegmentationData(str(folder / "images"), train_masks=masks, image_size=64, val_size=7, batch_size=4)
    return FineTuner(TimmBackbone("test_resnet", pretrained=False, pyramid=True), head, lr=3e-3), data


def detection(folder: Path, bert: str, gpt2: str) -> Parts:  # noqa: ARG001
    head = partial(DetectionHead, num_classes=2, width=64, num_convs=1)
    data = DetectionData(str(folder / "shapes.json"), val_size=7, test_size=4, batch_size=8)
    return FineTuner(TimmBackbone("test_resnet", pretrained=False, pyramid=True), head, lr=3e-3), data


def recommendation(folder: Path, bert: str, gpt2: str) -> Parts:  # noqa: ARG001
    head = partial(RecommendationHead, num_classes=40, num_features=16)
    data = InteractionsData(str(folder / "watched.csv"), items_file=str(folder / "films.csv"), batch_size=16)
    return FineTuner(TransformersBackbone(bert), head, lr=3e-3), data


TASKS: dict[str, Callable[[Path, str, str], Parts]] = {
    task.__name__: task for task in (entities, language, segmentation, detection, recommendation)
}


def write(folder: Path) -> None:
    """Write the data of all tasks."""
    write_mentions(folder)
    write_shapes(folder)
    write_scenes(folder)
    write_films(folder)
    texts = [f"{'red ' * (row % 5 + 1)}means stop {row}" for row in range(60)]
    (folder / "texts.txt").write_text("\n\n".join(texts))


def main(folder: Path, bert: str, gpt2: str) -> None:
    """Train and validate, and keep what each process has then."""
    for name, task in TASKS.items():
        seed_everything(3, verbose=False)
        module, data = task(folder, bert, gpt2)
        top = BlockMap.of(module).names[-1]  # the head, or GPT-2's last layer, to which nothing is added
        phases: list[Any] = [{"train": [top], "steps": 1}, {"train": ["*"]}]
        trainer = Trainer(
            max_steps=4,
            devices=2,
            strategy="ddp",
            callbacks=[GradualUnfreezing(phases)],
            num_sanity_val_steps=0,
            **QUIET,
        )
        trainer.fit(module, datamodule=data)
        (scores,) = trainer.validate(module, datamodule=data, verbose=False)
        content = {"weights": module.state_dict(), "scores": scores, "tables": module.tables}
        torch.save(content, folder / f"{name}-{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
