"""Foreign modules around small pretrained networks, and what a cache of their frozen prefix must not change."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import transformers as hf
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_ft_callbacks import BlockMap, GradualUnfreezing
from lightning_ft_callbacks.caching.prefix_part import PrefixPart

WIDTH = 32
SMALL = {"hidden_size": WIDTH, "num_attention_heads": 2, "intermediate_size": 64}
TEXT = SMALL | {"num_hidden_layers": 4, "vocab_size": 50}
ROUNDING = 1e-6  # length of a difference between tensors that float32 makes anyway
Sample = tuple[Tensor, int]


def texts(count: int = 24) -> list[Sample]:
    """Return texts of 3 to 12 tokens."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 13, (count,), generator=generator).tolist()
    return [(torch.randint(1, 50, (length,), generator=generator), i % 2) for i, length in enumerate(lengths)]


def pad(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Return a batch of texts."""
    shape = len(samples), max(len(text) for text, _ in samples)
    batch = {"input_ids": torch.zeros(shape, dtype=torch.long), "attention_mask": torch.zeros(shape, dtype=torch.long)}
    for row, (text, _) in enumerate(samples):
        batch["input_ids"][row, : len(text)] = text
        batch["attention_mask"][row, : len(text)] = 1
    return batch | {"label": torch.tensor([label for _, label in samples])}


def images(count: int = 24, size: int = 32) -> list[Sample]:
    """Return images of noise."""
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(3, size, size, generator=generator), i % 2) for i in range(count)]


@dataclass(frozen=True)
class Case:
    """A network, and how wide and of which kind its output is."""

    make: Callable[[], nn.Module]
    width: int = WIDTH
    text: bool = False
    size: int = 32


def vision(name: str, width: int, size: int = 32, **options: Any) -> Case:
    return Case(lambda: timm.create_model(name, num_classes=0, **options), width, size=size)


CASES = {
    "bert": Case(lambda: hf.BertModel(hf.BertConfig(**TEXT), add_pooling_layer=False), text=True),
    "roberta": Case(lambda: hf.RobertaModel(hf.RobertaConfig(**TEXT), add_pooling_layer=False), text=True),
    "distilbert": Case(
        lambda: hf.DistilBertModel(
            hf.DistilBertConfig(vocab_size=50, dim=WIDTH, n_layers=4, n_heads=2, hidden_dim=64)
        ),
        text=True,
    ),
    "gpt2": Case(
        lambda: hf.GPT2Model(
            hf.GPT2Config(vocab_size=50, n_embd=WIDTH, n_layer=4, n_head=2, bos_token_id=1, eos_token_id=1)
        ),
        text=True,
    ),
    "llama": Case(lambda: hf.LlamaModel(hf.LlamaConfig(**TEXT)), text=True),
    "deberta": Case(
        lambda: hf.DebertaV2Model(hf.DebertaV2Config(**TEXT, relative_attention=True, pos_att_type=["p2c", "c2p"])),
        text=True,
    ),
    "vit": Case(
        lambda: hf.ViTModel(
            hf.ViTConfig(**SMALL, num_hidden_layers=4, image_size=32, patch_size=8), add_pooling_layer=False
        )
    ),
    "swin": Case(
        lambda: hf.SwinModel(
            hf.SwinConfig(
                image_size=32, patch_size=2, embed_dim=16, depths=[1, 1, 2], num_heads=[2] * 3, window_size=4
            ),
            add_pooling_layer=False,
        ),
        64,
    ),
    "timm resnet": vision("resnet10t", 512),
    "timm convnext": vision("convnext_atto", 320),
    "timm efficientnet": vision("tf_efficientnet_lite0", 1280),
    "timm vit": vision("vit_tiny_patch16_224", 192, img_size=32, patch_size=8, depth=4),
    "timm swin": vision(
        "swin_tiny_patch4_window7_224", 96, 64, img_size=64, window_size=4, embed_dim=24, depths=(1, 1, 2),
        num_heads=(2, 2, 2),
    ),
}  # fmt: skip


class Foreign(LightningModule):
    """A network with a dropout and a linear head, as somebody would write it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        seed_everything(0, verbose=False)
        self.case = CASES[name]
        self.body = self.case.make()
        self.head = nn.Linear(self.case.width, 2)

    def states(self, batch: Any) -> Tensor:
        if self.case.text:
            mask = batch["attention_mask"]
            states = self.body(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
            return (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        states = self.body(batch[0])
        return states if isinstance(states, Tensor) else states.last_hidden_state.mean(1)

    def loss(self, batch: Any) -> Tensor:
        labels = batch["label"] if self.case.text else batch[1]
        dropped = nn.functional.dropout(self.states(batch), 0.1, self.training)
        return nn.functional.cross_entropy(self.head(dropped), labels)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.log("val/loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)

    def loaders(self, **options: Any) -> tuple[DataLoader, DataLoader]:
        data = texts() if self.case.text else images(size=self.case.size)
        collate = pad if self.case.text else None
        train = DataLoader(data, 4, shuffle=True, collate_fn=collate, **options)
        return train, DataLoader(data[:8], 4, collate_fn=collate)


@dataclass
class Run(Callback):
    """What a fit did: its losses, and how often its lowest module ran in each epoch.

    Not among ``calls`` are those that make sure once an epoch that a few samples still give what is kept: ``looks``.
    """

    losses: list[float] = field(default_factory=list)
    val: list[float] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    before: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0
    looks: int = 0

    @contextmanager
    def looks_apart(self) -> Iterator[None]:
        """Count apart what a cache looks at once more."""
        real = PrefixPart.gives_the_same

        def looking(*args: Any, **kwargs: Any) -> bool:
            before = self.count
            try:
                return real(*args, **kwargs)
            finally:
                self.looks += self.count - before
                self.count = before

        PrefixPart.gives_the_same = looking  # type: ignore[method-assign]
        try:
            yield
        finally:
            PrefixPart.gives_the_same = real  # type: ignore[method-assign]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self.count = 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self.calls.append(self.count)
        if "val/loss" in trainer.callback_metrics:
            self.val.append(trainer.callback_metrics["val/loss"].item())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        if outputs is not None:  # Lightning has not passed the batch over
            self.losses.append(outputs["loss"].item())

    def watch(self, module: nn.Module) -> None:
        """Count the calls of a module, in a way that is no hook."""
        kind, real = type(module), type(module).forward

        def counted(this: nn.Module, *args: Any, **kwargs: Any) -> Any:
            self.count += this is module
            return real(this, *args, **kwargs)

        module.__class__ = type(kind.__name__, (kind,), {"forward": counted, "__module__": kind.__module__})

    def same_as(self, other: "Run", rel: float = 1e-4) -> None:
        """Assert that losses, validations and what the weights have learned are those of another run.

        Args:
            other: The other run.
            rel: The largest difference, a share of the value, or of the length of a tensor's change from start to end.
        """
        for mine, theirs in ((self.losses, other.losses), (self.val, other.val)):
            torch.testing.assert_close(torch.tensor(mine), torch.tensor(theirs), rtol=rel, atol=rel)
        for name, tensor in self.weights.items():
            off, learned = (
                (one.double() - other.weights[name].double()).norm().item() for one in (tensor, other.before[name])
            )
            assert off <= rel * learned + ROUNDING, f"{name}: {off} beside the other run's, which moved by {learned}"


class StopsAt(Callback):
    """Saves a checkpoint after a step, and ends the fit there."""

    def __init__(self, file: Path, step: int) -> None:
        self.file = file
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ARG002
        """Raise InterruptedError after the step."""
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)
            raise InterruptedError


def fit(
    module: Foreign,
    *callbacks: Callback,
    first: Sequence[Callback] = (),
    schedule: Any = None,
    loaders: Any = None,
    epochs: int = 3,
    ckpt_path: Any = None,
    **options: Any,
) -> Run:
    """Train a module, by default its head alone, and tell what happened."""
    run = Run()
    lowest = next(part for part in module.body.modules() if not list(part.children()) and list(part.parameters()))
    run.watch(lowest)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[*first, GradualUnfreezing(schedule or [{"train": ["head"]}]), run, *callbacks],
        **({"logger": False, "enable_checkpointing": False, "enable_progress_bar": False} | options),
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    run.before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with run.looks_apart():
        trainer.fit(module, *(loaders or module.loaders()), ckpt_path=ckpt_path)
    run.weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    return run


def upper_half(name: str) -> list[str]:
    """Return the blocks of the upper half of a case's module."""
    names = BlockMap.of(Foreign(name)).names
    return list(names[len(names) // 2 :])
