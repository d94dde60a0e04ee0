"""A phase that trains nothing of one of several optimizers."""

from typing import Any

import pytest
import torch
from nets import Net, Seen, loader, trainer
from torch import nn
from torch.optim import SGD

from lightning_ft_callbacks import GradualUnfreezing

ALTERNATING = [{"train": ["two.*"], "epochs": 1}, {"train": ["*"]}]


class Gan(Net):
    """Two networks of an optimizer each, which training toggles."""

    def __init__(self, *, passes_over: bool) -> None:
        super().__init__()
        del self.layers, self.head
        self.one = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        self.two = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 1))
        self.passes_over = passes_over
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            self.toggle_optimizer(optimizer)
            loss = self.two(self.one(batch[0])).square().mean()
            optimizer.zero_grad()
            if loss.requires_grad or not self.passes_over:
                self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        return [SGD(self.one.parameters(), lr=0.1), SGD(self.two.parameters(), lr=0.1)]


def test_a_loss_that_depends_on_nothing_trained_is_refused_with_the_optimizer_and_the_remedy() -> None:
    with pytest.raises(RuntimeError, match=r"phase 0 trains nothing .* nothing of optimizer 0 \(of 2\); leave out its"):
        trainer(GradualUnfreezing(ALTERNATING), max_epochs=2).fit(Gan(passes_over=False), loader())


def test_a_step_that_passes_over_a_frozen_network_trains_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("lightning_ft_callbacks.gradual_unfreezing.rank_zero_info", told.append)
    module = Gan(passes_over=True)
    seen = Seen(lambda *_: (module.one[0].weight.detach().clone(), module.two[0].weight.detach().clone()))
    trainer(GradualUnfreezing(ALTERNATING), seen, max_epochs=2).fit(module, loader())
    assert "optimizer 0 (of 2, SGD) has nothing to train in phase 0" in told[0]
    assert torch.equal(seen.values[0][0], seen.values[3][0])
    assert not torch.equal(seen.values[0][1], seen.values[3][1])
    assert not torch.equal(seen.values[3][0], seen.values[7][0])


def test_nothing_is_said_where_each_phase_trains_something_of_each_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("lightning_ft_callbacks.gradual_unfreezing.rank_zero_info", told.append)
    trainer(GradualUnfreezing([{"train": ["*"]}]), max_epochs=1).fit(Gan(passes_over=False), loader())
    assert told == []
