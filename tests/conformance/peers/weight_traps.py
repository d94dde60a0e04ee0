"""Traps of the weights: which of them are trained, how often, and whether the frozen ones stand still."""

from pathlib import Path
from typing import Any

import torch
from adapters import HEAD_LR, Adapter
from net import WIDTH, Net, Noting, batches, layer, tensors, trainer, unmoved
from outcome import Outcome
from torch import nn
from torch.utils.checkpoint import checkpoint


def equal_values(tool: Adapter, folder: Path) -> Outcome:
    """Fresh norms in head and backbone, which hold equal numbers, are both trained."""
    backbone = nn.Sequential(*(layer(nn.LayerNorm) for _ in range(3)))
    module = Net(tool, backbone=backbone, head=nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)))
    before = tensors(module)
    trainer(tool, folder, thaw_epoch=0, num_epochs=2).fit(module, batches(), batches())
    left = unmoved(module, before)
    return Outcome(not left, f"never updated: {', '.join(left)}" if left else "all updated")


def tied_weights(tool: Adapter, folder: Path) -> Outcome:
    """A weight that two layers of the backbone share is updated once a step."""
    first, second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    second.weight = first.weight
    module = Net(tool, backbone=nn.Sequential(first, nn.Tanh(), second))
    fit = trainer(tool, folder, num_epochs=2)
    fit.fit(module, batches(), batches())
    assert isinstance(fit.optimizers[0], Noting)
    times = len(fit.optimizers[0].used[-1].get(id(first.weight), []))
    return Outcome(times == 1, f"updated {times} times a step" if times != 1 else "updated once a step")


def frozen_norm(tool: Adapter, folder: Path, *, used: bool) -> Outcome:
    """A frozen batch norm is as it was; or, with ``used``, uses its statistics while the head is trained."""
    outcomes = []
    for options in tool.frozen_norms:
        torch.manual_seed(0)
        module = Net(tool, backbone=nn.Sequential(*(layer(nn.BatchNorm1d) for _ in range(2))))
        inputs = next(iter(batches()))[0]
        for _ in range(2):
            module.backbone(inputs * 2 + 1)  # statistics that are not a new norm's
        expected = module.eval().backbone(inputs).detach()
        module.train()
        before = tensors(module.backbone)
        features = []
        hook = module.backbone.register_forward_hook(lambda _, __, out: features.append(out.detach()))  # noqa: B023
        trainer(tool, folder, thaw_epoch=None, num_epochs=2, tool_options=options, limit_val_batches=0).fit(
            module, batches(), batches()
        )
        hook.remove()
        said = "".join(f"{name}={value}: " for name, value in options.items())
        changed = [name for name, tensor in tensors(module.backbone).items() if not torch.equal(tensor, before[name])]
        apart = float((features[-1] - expected).abs().max())
        if used:
            outcomes.append(Outcome(apart < 1e-6, f"{said}features differ by {apart:.2g} in training"))
        else:
            outcomes.append(Outcome(not changed, f"{said}{len(changed)} of {len(before)} tensors changed"))
    all_seen = Outcome(False, "; ".join(outcome.seen for outcome in outcomes))
    return next((outcome for outcome in outcomes if outcome.passed), all_seen)


class TwoOptimizers(Net):
    """Has an auxiliary head with an optimizer of its own; the other has the rest."""

    def __init__(self, tool: Adapter) -> None:
        super().__init__(tool)
        self.head_aux = nn.Linear(WIDTH, 2)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        for optimizer, head in zip(self.optimizers(), (self.head, self.head_aux), strict=True):
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(head(self.backbone(batch[0])), batch[1]))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        own = {id(parameter) for parameter in self.head_aux.parameters()}
        rest = [parameter for parameter in self.tool.parameters(self) if id(parameter) not in own]
        return [Noting(rest, lr=HEAD_LR), Noting(self.head_aux.parameters(), lr=HEAD_LR)]


def two_optimizers(tool: Adapter, folder: Path) -> Outcome:
    """The backbone is updated by one of two optimizers."""
    module = TwoOptimizers(tool)
    fit = trainer(tool, folder, num_epochs=2)
    fit.fit(module, batches(), batches())
    weight = id(next(module.backbone.parameters()))
    times = sum(weight in optimizer.used[-1] for optimizer in fit.optimizers)  # type: ignore[attr-defined]
    return Outcome(times == 1, f"{times} of 2 optimizers update the backbone")


class Checkpointed(Net):
    """Recomputes the lower part of its head in the backward pass, in the reentrant way."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.head, nn.Sequential)
        return self.head[1](checkpoint(self.head[0], self.backbone(inputs), use_reentrant=True))


def reentrant(tool: Adapter, folder: Path) -> Outcome:
    """What is recomputed above a frozen backbone is trained, or the tool says that it is not."""
    module = Checkpointed(tool, head=nn.Sequential(layer(), nn.Linear(WIDTH, 2)))
    before = tensors(module.head)
    trainer(tool, folder, thaw_epoch=None, num_epochs=2).fit(module, batches(), batches())
    left = unmoved(module.head, before)
    return Outcome(not left, f"silently not trained: head.{', head.'.join(left)}" if left else "all trained")
