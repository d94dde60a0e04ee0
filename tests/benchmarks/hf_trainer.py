"""hf_trainer: training by Hugging Face's Trainer."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from clock import Clock, Contender
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments


class StepClock(TrainerCallback):
    """Tells a clock of the trainer's steps."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Start the first step."""
        if state.global_step == 0:
            self.clock.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """End a step."""
        self.clock.end_step()


def hf_trainer(
    model: nn.Module,
    dataset: Any,
    collate: Callable[[Sequence[Any]], Any],
    steps: int,
    folder: Path,
    *,
    grouped: bool = False,
    **arguments: Any,
) -> Contender:
    """Return a training by Hugging Face's Trainer.

    Args:
        model: What is trained; it returns its loss.
        dataset: Samples with their labels.
        collate: Makes a batch of samples.
        steps: Batches to train.
        folder: The trainer's output folder.
        grouped: Whether batches hold samples of similar length.
        arguments: Other training arguments.
    """

    def train(clock: Clock) -> None:
        def counted(samples: Sequence[Any]) -> Any:
            batch = collate(samples)
            clock.count(len(samples), batch["input_ids"].numel())
            return batch

        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=str(folder),
                max_steps=steps,
                save_strategy="no",
                report_to="none",
                **(grouping() if grouped else {}),
                **arguments,
            ),
            train_dataset=dataset,
            data_collator=counted,
            callbacks=[StepClock(clock)],
        )
        trainer.train()

    return train


def grouping() -> dict[str, Any]:
    """Return the argument that groups samples by length, whose name differs between versions."""
    if any(field.name == "train_sampling_strategy" for field in fields(TrainingArguments)):
        return {"train_sampling_strategy": "group_by_length"}
    return {"group_by_length": True}
