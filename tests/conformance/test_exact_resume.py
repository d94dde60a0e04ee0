"""Law 6: a run that was stopped after any batch and resumed ends as one that was not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from nets import Net, Save, Seen, loader, tensors, trainer
from torch.optim import lr_scheduler as schedulers

from lightning_ft_callbacks import DiscriminativeLR, GradualUnfreezing

EPOCHS, BATCHES = 4, 4
SCHEDULES: dict[str, Any] = {
    "epochs": "gradual",
    "steps": [{"train": ["head"], "steps": 3}, {"train": ["*"], "steps": 6}, {"train": ["layers.1", "head"]}],
    "plateau": [
        {"train": ["head"], "plateau": {"monitor": "val/loss", "patience": 1, "min_delta": 10.0}},
        {"train": ["*"]},
    ],
}


def run(schedule: Any, *callbacks: Callback, ckpt_path: Path | None = None) -> dict[str, torch.Tensor]:
    """Train without dropout, over batches that do not depend on where a run begins, and return the weights."""
    torch.manual_seed(0)
    module = Net(
        lambda parameters: torch.optim.AdamW(parameters, lr=0.02),
        lambda o: {"scheduler": schedulers.OneCycleLR(o, 0.02, total_steps=EPOCHS * BATCHES), "interval": "step"},
        dropout=0.0,
    )
    data = loader(num_samples=8 * BATCHES, batch_size=8)
    every = list(data)
    batches = torch.utils.data.DataLoader([every[0]] * BATCHES, batch_size=None)
    fit = trainer(
        GradualUnfreezing(schedule, ramp_steps=3, restore_best=schedule == SCHEDULES["plateau"]),
        DiscriminativeLR(0.7),
        *callbacks,
        max_epochs=EPOCHS,
        num_sanity_val_steps=0,
    )
    fit.fit(module, batches, batches, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return tensors(module) | {
        f"state {n}": torch.as_tensor(s["exp_avg_sq"]).clone() for n, s in enumerate(fit.optimizers[0].state.values())
    }


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_resumed_run_ends_as_one_never_stopped(name: str, tmp_path: Path) -> None:
    whole = run(SCHEDULES[name], Save(tmp_path))
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) == EPOCHS * BATCHES + EPOCHS
    # saved between an epoch's last batch and its validation, Lightning resumes without that validation
    skipped = {f"step{BATCHES * epoch}.ckpt" for epoch in range(1, EPOCHS + 1)} if name == "plateau" else set()
    ended = {f"step{EPOCHS * BATCHES}.ckpt", f"epoch{EPOCHS - 1}.ckpt"}
    for checkpoint in checkpoints:
        if checkpoint.name in skipped | ended:
            continue
        resumed = run(SCHEDULES[name], ckpt_path=checkpoint)
        assert resumed.keys() == whole.keys(), checkpoint.name
        assert all(torch.equal(whole[key], resumed[key]) for key in whole), checkpoint.name


def test_phases_to_come_may_change_and_others_are_refused_with_the_difference(tmp_path: Path) -> None:
    schedule = [{"train": ["head"], "epochs": 1}, {"train": ["layers.2", "head"], "epochs": 1}, {"train": ["*"]}]
    run(schedule, Save(tmp_path))
    checkpoint = tmp_path / "step6.ckpt"
    run([*schedule[:2], {"train": ["layers.1", "head"]}], ckpt_path=checkpoint)
    with pytest.raises(ValueError, match=r"phase 1 of this schedule is another: layers\.1 is trained in one"):
        run([schedule[0], {"train": ["layers.[12]", "head"], "epochs": 1}, schedule[2]], ckpt_path=checkpoint)
    with pytest.raises(ValueError, match="ended by epochs=1 in it, and ends by epochs=2"):
        run([{"train": ["head"], "epochs": 2}, *schedule[1:]], ckpt_path=checkpoint)


def test_a_checkpoint_loads_without_the_callbacks_and_theirs_without_it(tmp_path: Path) -> None:
    run("gradual", Save(tmp_path))
    module = Net(dropout=0.0)
    trainer(max_epochs=1).fit(module, loader())
    plain = trainer(max_epochs=2)
    plain.fit(Net(), loader())
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    callback = GradualUnfreezing()
    trainer(callback, max_epochs=4).fit(Net(), loader(), ckpt_path=tmp_path / "plain.ckpt", weights_only=True)
    assert callback.phase == 1
    trainer(max_epochs=4).fit(
        Net(scheduler=lambda o: {"scheduler": schedulers.OneCycleLR(o, 0.02, total_steps=16), "interval": "step"}),
        loader(),
        ckpt_path=tmp_path / "step6.ckpt",
        weights_only=True,
    )


class Stop(Callback):
    """Stops after some epochs, the first time."""

    def __init__(self, epochs: int = 2) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        if trainer.current_epoch == self.epochs - 1:
            trainer.should_stop = True


def test_a_metric_that_was_changed_judges_its_phase_anew(tmp_path: Path) -> None:
    class Both(Net):
        def on_validation_epoch_end(self) -> None:
            value = float(self.trainer.current_epoch)
            self.log_dict({"val/loss": 10.0 + value, "val/accuracy": value / 100})  # of which none is above that

    def schedule(monitor: str, mode: str) -> list[dict[str, Any]]:
        return [{"train": ["head"], "plateau": {"monitor": monitor, "mode": mode, "patience": 2}}, {"train": ["*"]}]

    first = GradualUnfreezing(schedule("val/loss", "min"), restore_best=True)
    trainer(first, Save(tmp_path), Stop(), max_epochs=9, num_sanity_val_steps=0).fit(Both(), loader(), loader())
    resumed = GradualUnfreezing(schedule("val/accuracy", "max"), restore_best=True)
    heads = Seen(lambda _, module: module.head.weight.detach().clone())
    fit = trainer(resumed, heads, Stop(4), max_epochs=9, num_sanity_val_steps=0)
    fit.fit(Both(), loader(), loader(), ckpt_path=tmp_path / "epoch1.ckpt", weights_only=True)
    assert resumed.phase == 0
    progress = resumed.state_dict()["progress"]
    assert progress["best"] == pytest.approx(0.03)
    assert torch.equal(resumed.state_dict()["best"]["head.weight"], heads.values[-1])


@pytest.mark.parametrize("again", ["resumed", "second fit"])
def test_without_restore_best_no_weights_are_put_back_that_a_run_before_kept(again: str, tmp_path: Path) -> None:
    class Told(Net):
        def on_validation_epoch_end(self) -> None:
            self.log("val/loss", float(self.trainer.current_epoch))

    schedule = [{"train": ["head"], "plateau": {"monitor": "val/loss", "patience": 3}}, {"train": ["*"]}]
    unfreezing, module = GradualUnfreezing(schedule, restore_best=True), Told()
    fit = trainer(unfreezing, Save(tmp_path), Stop(), max_epochs=9, num_sanity_val_steps=0)
    fit.fit(module, loader(), loader())
    assert unfreezing.state_dict()["best"]
    ends: list[torch.Tensor] = []
    starts: list[torch.Tensor] = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:  # noqa: ARG002
            ends.append(pl_module.head.weight.detach().clone())

        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:  # noqa: ARG002
            starts.append(pl_module.head.weight.detach().clone())

    if again == "resumed":
        unfreezing = GradualUnfreezing(schedule)
        fit, path = trainer(unfreezing, Look(), max_epochs=6, num_sanity_val_steps=0), tmp_path / "epoch1.ckpt"
        fit.fit(Told(), loader(), loader(), ckpt_path=path, weights_only=True)
    else:
        unfreezing.restore_best = False
        fit.callbacks.append(Look())
        fit.should_stop = False
        fit.fit(module, loader(), loader())
    assert unfreezing.phase == 1
    assert all(torch.equal(end, start) for end, start in zip(ends, starts[1:], strict=False))
