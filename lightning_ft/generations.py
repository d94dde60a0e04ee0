"""SampleGenerations: how a causal language model goes on with some prompts, after each validation."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lightning_ft.data.prompts import prompt_of
from lightning_ft_callbacks.whole_file import write_whole

FILE = "generations.jsonl"


class SampleGenerations(Callback):
    """Writes what the model makes of some prompts into ``generations.jsonl`` in the run's folder, and to TensorBoard.

    Numbers say how likely the model finds the texts of others; what it writes itself says what it has learnt, and shows
    first when a rate was too high.

    Args:
        prompts: The prompts.

    Raises:
        ValueError: If there are none, or the module has no CausalLMHead.
    """

    def __init__(self, prompts: Sequence[str]) -> None:
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"SampleGenerations needs a list of prompts, but got {prompts!r}")
        self.prompts = list(prompts)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Raise unless the module can go on with a prompt."""
        if getattr(getattr(pl_module, "head", None), "tasks", None) != ("causal",):
            raise ValueError("SampleGenerations goes with a FineTuner that has a CausalLMHead")
        module: Any = pl_module
        limit = module.backbone.max_length
        for prompt, ids in zip(self.prompts, self._encoded(module), strict=True):
            if limit is not None and len(ids) >= limit:
                raise ValueError(
                    f"SampleGenerations: the prompt {prompt[:40]!r} has {len(ids)} tokens, but the model takes {limit}"
                )

    def _encoded(self, module: Any) -> list[list[int]]:
        tokenizer = module.backbone.tokenizer
        return [prompt_of(ids, tokenizer) for ids in tokenizer(self.prompts)["input_ids"]]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Of a resumed run drop what it will write again."""
        if trainer.log_dir is not None and trainer.is_global_zero:
            drop_later(Path(trainer.log_dir) / FILE, trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the prompts."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        module: Any = pl_module
        tokenizer = module.backbone.tokenizer
        rows = {"input_ids": self._encoded(module)}
        encoded = tokenizer.pad(rows, return_tensors="pt", padding_side="left").to(module.device)
        with torch.random.fork_rng(), torch.no_grad():  # a draw here must not move those of the training
            rows = module.head.predict(module.backbone, encoded, None)
        texts = [row["prediction"] for row in rows]
        for logger in trainer.loggers:
            add = getattr(getattr(logger, "experiment", None), "add_text", None)
            if add is not None:
                lines = [f"**{prompt}**{text}" for prompt, text in zip(self.prompts, texts, strict=True)]
                add("generations", "\n\n".join(lines), trainer.global_step)
        if trainer.log_dir is not None and not trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            with (Path(trainer.log_dir) / FILE).open("a", encoding="utf-8") as stream:
                for prompt, text in zip(self.prompts, texts, strict=True):
                    row = {"step": trainer.global_step, "prompt": prompt, "text": text}
                    stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def drop_later(file: Path, step: int) -> None:
    """Drop the rows of a JSONL file that are of later steps, and a last one that was cut short.

    Args:
        file: The file; it need not exist.
        step: The step that the rows are kept up to.
    """
    if not file.exists():
        return
    text = file.read_text(encoding="utf-8", errors="replace")
    lines = text[: text.rfind("\n") + 1].splitlines(keepends=True)
    kept = "".join(line for line in lines if json.loads(line)["step"] <= step)
    if kept != text:
        write_whole(file, kept)
