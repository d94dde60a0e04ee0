"""Laws of FiniteLoss: it stops before broken weights, says where they would have broken, and changes nothing else."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_ft_callbacks import FiniteLoss

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Layer(nn.Module):
    """A layer that breaks, in the pass that it is told, where its input is above 100."""

    def __init__(self, breaks: str | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.breaks = breaks

    def forward(self, values: Tensor) -> Tensor:
        large = (values.abs() > 100).any()
        out = self.linear(values.clamp(-1, 1) if self.breaks != "clamp" else values)
        if self.breaks == "forward":
            out = torch.where(large, torch.full_like(out, torch.inf), out)
        if self.breaks == "backward":
            small = 1.0 - large.float()
            out = out + (out * 0 + small).sqrt() - small  # adds 0, with an infinite slope where the input is large
        return out + values * (values.abs() > 100)  # a large input stays one


class Net(LightningModule):
    def __init__(self, breaks: str | None, manual: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(breaks if number == 1 else None) for number in range(3))
        self.automatic_optimization = not manual
        self.states: list[Tensor] = []

    def training_step(self, batch: Tensor) -> Tensor:
        self.states.append(self.layers[0].linear.weight.detach().clone())
        for layer in self.layers:
            batch = layer(batch)
        loss = batch.clamp(-50, 50).square().mean() if self.layers[1].breaks == "backward" else batch.square().mean()
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def readable(self, batch: Tensor) -> list[str]:
        return [f"sample of {row.sum().item():.0f}" for row in batch]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def samples(broken: float | None = 1000.0) -> Tensor:
    values = torch.ones(12, 4) * 0.5
    if broken is not None:
        values[7, 2] = broken  # in batch 3, of two samples each
    return values


def fit(module: LightningModule, folder: Path, data: Tensor, *callbacks: Any, **options: Any) -> Trainer:
    torch.manual_seed(0)
    keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = Trainer(max_epochs=1, callbacks=[*callbacks, keep], **QUIET, **options)
    trainer.fit(module, DataLoader(data, batch_size=2))
    return trainer


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        ("forward", "the loss is NaN or infinite.*the first block whose output is no number is layers.1"),
        ("backward", "gradients are NaN or infinite.*the first block in the backward pass is layers.1, of 2 of 3"),
    ],
)
def test_it_names_step_batch_block_and_checkpoint_and_keeps_the_weights(
    tmp_path: Path, breaks: str, said: str, manual: bool
) -> None:
    torch.manual_seed(1)
    module = Net(breaks, manual)
    with pytest.raises(FloatingPointError, match=said) as caught:
        fit(module, tmp_path, samples(), FiniteLoss())
    message = str(caught.value)
    assert "at step 3 (epoch 0, batch 3: 'sample of 2', 'sample of 1002')" in message
    assert f"the last good checkpoint is {tmp_path / 'step=3.ckpt'}" in message
    assert "lower lr" in message
    assert torch.equal(module.layers[0].linear.weight, module.states[3])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["step=1.ckpt", "step=2.ckpt", "step=3.ckpt"]


def test_a_batch_that_is_broken_itself_is_named(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="the batch holds values that are no numbers"):
        fit(Net(None), tmp_path, samples(torch.nan), FiniteLoss())


def test_accumulated_batches_are_looked_at_one_by_one(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"at step 1 \(epoch 0, batch 3"):
        fit(Net("forward"), tmp_path, samples(), FiniteLoss(), accumulate_grad_batches=3)


def test_gradients_that_a_scaler_skips_are_no_alarm(tmp_path: Path) -> None:
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**40))
    trainer = fit(Net(None), tmp_path, samples(None), FiniteLoss(), plugins=[precision])
    assert precision.scaler is not None
    assert precision.scaler.get_scale() < 2.0**40  # some have overflowed
    assert trainer.state.finished


def test_a_fit_with_it_is_the_fit_without(tmp_path: Path) -> None:
    ends = []
    for callbacks in ([], [FiniteLoss()]):
        torch.manual_seed(2)
        module = Net(None)
        fit(module, tmp_path, samples(None), *callbacks)
        ends.append(module.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


TWO_RANKS = """
import sys
from datetime import timedelta
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader
from test_finite_loss import QUIET, FiniteLoss, Net, samples

strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=60))
options = QUIET | {"devices": 2, "strategy": strategy, "enable_checkpointing": False}
trainer = Trainer(max_epochs=1, callbacks=[FiniteLoss()], **options)
try:
    trainer.fit(Net("forward"), DataLoader(samples(), batch_size=1))
except FloatingPointError as error:
    sys.stdout.write(f"{trainer.global_rank} {error}\\n")
"""


def test_two_ranks_stop_together_where_one_breaks(tmp_path: Path) -> None:
    script = tmp_path / "two_ranks.py"
    script.write_text(f"import sys; sys.path.append({str(Path(__file__).parent)!r})\n{TWO_RANKS}")
    seeded = os.environ | {"PL_GLOBAL_SEED": "0"}  # by which Lightning shuffles, and which other tests may have set
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=True, env=seeded)
    said = sorted(line for line in done.stdout.splitlines() if line[:2] in ("0 ", "1 "))
    assert [line[0] for line in said] == ["0", "1"], done.stderr
    assert all("at step 2" in line for line in said)
    assert sorted("whose output is no number is layers.1" in line for line in said) == [False, True]
    assert sum("the loss of another rank" in line for line in said) == 1
