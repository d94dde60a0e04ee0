"""Adapters: one task for all tools, each written as that tool's documentation says.

The task: train the head from the start at `HEAD_LR`, and from epoch `thaw_epoch` on the backbone too, at `BACKBONE_LR`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn
from torch.nn import Parameter

HEAD_LR = 0.1
BACKBONE_LR = 0.01


class Adapter(ABC):
    """A tool that freezes the backbone and thaws it later.

    Attributes:
        name: The tool's name in the table.
        package: The package that it is part of.
        frozen_norms: The options that the tool has for norms in a frozen backbone; one that passes is enough.
    """

    name: str
    package: str
    frozen_norms: Sequence[dict[str, Any]] = ({},)

    def parameters(self, module: nn.Module) -> list[Parameter]:
        """Return what ``configure_optimizers`` gives the optimizer."""
        return list(module.parameters())

    @abstractmethod
    def callbacks(self, thaw_epoch: int | None, num_epochs: int, **options: Any) -> list[Callback]:
        """Return the trainer's callbacks.

        Args:
            thaw_epoch: The epoch from which on the backbone is trained; None for never.
            num_epochs: Epochs of the fit.
            options: Of the tool, beside those that the task needs.
        """


class Backbone(Adapter):
    """Lightning's callback.

    Source: https://lightning.ai/docs/pytorch/stable/api/lightning.pytorch.callbacks.BackboneFinetuning.html
    """

    name = "BackboneFinetuning"
    package = "lightning"
    frozen_norms = ({"train_bn": False}, {})

    def parameters(self, module: nn.Module) -> list[Parameter]:
        """Return those not frozen, as "make sure to filter the parameters based on requires_grad" asks."""
        return [parameter for parameter in module.parameters() if parameter.requires_grad]

    def callbacks(self, thaw_epoch: int | None, num_epochs: int, **options: Any) -> list[Callback]:
        """Return it, with a rate of the backbone that stays as asked."""
        return [
            BackboneFinetuning(
                unfreeze_backbone_at_epoch=num_epochs if thaw_epoch is None else thaw_epoch,
                backbone_initial_lr=BACKBONE_LR,
                lambda_func=lambda epoch: 1.0,  # noqa: ARG005
                should_align=False,
                **options,
            )
        ]


class Scheduler(Adapter):
    """finetuning-scheduler's callback, with an explicit schedule whose phases end by epochs.

    Source: https://finetuning-scheduler.readthedocs.io/en/stable/
    """

    name = "FinetuningScheduler"
    package = "finetuning-scheduler"
    frozen_norms = ({"frozen_bn_track_running_stats": True}, {"frozen_bn_track_running_stats": False})

    def callbacks(self, thaw_epoch: int | None, num_epochs: int, **options: Any) -> list[Callback]:
        """Return it; it adds the FTSCheckpoint that it needs by itself."""
        from finetuning_scheduler import FinetuningScheduler

        head = {"params": ["head.*"], "max_transition_epoch": thaw_epoch or num_epochs}
        backbone = {"params": ["backbone.*"], "lr": BACKBONE_LR, "max_transition_epoch": num_epochs}
        if thaw_epoch == 0:
            head["params"] += backbone["params"]
        schedule = {0: head, 1: backbone} if thaw_epoch else {0: head}
        return [
            FinetuningScheduler(
                schedule,
                epoch_transitions_only=True,
                restore_best=False,
                **options,
            )
        ]


class Ours(Adapter):
    """This project's callbacks."""

    name = "GradualUnfreezing"
    package = "lightning-ft"

    def callbacks(self, thaw_epoch: int | None, num_epochs: int, **options: Any) -> list[Callback]:  # noqa: ARG002
        """Return the two: which blocks are trained, and at what rate."""
        from lightning_ft_callbacks import DiscriminativeLR, GradualUnfreezing

        head = {"train": ["head*"]}
        schedule = [head] if thaw_epoch is None else [head | {"epochs": thaw_epoch}, {"train": ["*"]}]
        return [
            GradualUnfreezing("full" if thaw_epoch == 0 else schedule, **options),
            DiscriminativeLR(scales={"backbone*": BACKBONE_LR / HEAD_LR}),
        ]


ADAPTERS: dict[str, Adapter] = {adapter.name: adapter for adapter in (Backbone(), Scheduler(), Ours())}
