"""Laws 1 and 2: one factorisation of the rate, and the user's groups are never changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from nets import Net, Seen, loader, tensors, trainer
from torch.optim import SGD, AdamW, Optimizer
from torch.optim import lr_scheduler as schedulers

from lightning_ft_callbacks import DiscriminativeLR, GradualUnfreezing
from lightning_ft_callbacks.block_callback import BlockCallback

STEPS = 12
SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda step: 1 / (1 + step)),
    "LambdaLR, a list": lambda o: schedulers.LambdaLR(o, [lambda step: 1 / (1 + step)]),
    "Multiplicative": lambda o: schedulers.MultiplicativeLR(o, lambda _: 0.9),
    "StepLR": lambda o: schedulers.StepLR(o, 3, gamma=0.5),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: schedulers.ConstantLR(o),
    "LinearLR": lambda o: schedulers.LinearLR(o),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.8),
    "CosineAnnealing": lambda o: schedulers.CosineAnnealingLR(o, STEPS),
    "CosineWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 4),
    "OneCycle": lambda o: schedulers.OneCycleLR(o, [0.02], total_steps=STEPS + 1),
    "Cyclic": lambda o: schedulers.CyclicLR(o, 1e-3, 1e-2, step_size_up=3, cycle_momentum=False),
    "Polynomial": lambda o: schedulers.PolynomialLR(o, STEPS),
    "Sequential": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, 1.0, 4), schedulers.ExponentialLR(o, 0.8)], [4]
    ),
    "transformers' warm-up": lambda o: __import__("transformers").get_linear_schedule_with_warmup(o, 3, STEPS + 1),
}


class UsedRates(torch.optim.SGD):
    """An optimizer that notes the rate which each parameter is updated with."""

    used: list[dict[int, float]]

    def step(self, closure: Any = None) -> Any:
        loss = closure() if closure is not None else None
        self.__dict__.setdefault("used", []).append(
            {id(p): g["lr"] for g in self.param_groups for p in g["params"] if p.grad is not None}
        )
        super().step()
        return loss


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_rate_used_is_schedule_times_scale_times_ramp(name: str) -> None:
    unfreezing = GradualUnfreezing(
        [{"train": ["head"], "steps": 3}, {"train": ["layers.2", "head"], "steps": 3}, {"train": ["*"]}], ramp_steps=2
    )
    module = Net(
        lambda parameters: UsedRates(parameters, lr=0.01),
        lambda o: {"scheduler": SCHEDULERS[name](o), "interval": "step"},
    )
    logged = Seen(lambda t, _: next(c for c in t.callbacks if isinstance(c, BlockCallback)).block_rates())
    bases: list[float] = []
    fit = trainer(DiscriminativeLR(0.5), unfreezing, logged, max_epochs=3)

    module.on_before_optimizer_step = lambda o: bases.append(o.param_groups[0]["lr"])  # type: ignore[method-assign]
    fit.fit(module, loader())
    scale = {"layers.0": 0.125, "layers.1": 0.25, "layers.2": 0.5, "head": 1.0}
    thawed = {"head": None, "layers.2": 3, "layers.1": 6, "layers.0": 6}
    used = fit.optimizers[0].used
    assert len(used) == STEPS
    for step, rates in enumerate(used):
        expected = {}
        for block, at in thawed.items():
            if at is not None and step < at:
                continue
            ramp = 1.0 if at is None else min(1.0, (step - at + 1) / 2)
            for parameter in module.get_submodule(block).parameters():
                expected[id(parameter)] = pytest.approx(bases[step] * scale[block] * ramp)
        assert rates == expected
        assert {name: pytest.approx(rate) for name, rate in logged.values[step].items()} == {
            block: next(rates[id(p)] for p in module.get_submodule(block).parameters()) for block in logged.values[step]
        }


def test_outside_the_update_the_groups_are_the_users() -> None:
    seen = []
    module = Net()
    step = module.training_step

    def training_step(batch: Any, batch_idx: int) -> Any:
        seen.append([(len(g["params"]), g["lr"]) for g in module.optimizers(use_pl_optimizer=False).param_groups])
        return step(batch, batch_idx)

    module.training_step = training_step  # type: ignore[method-assign]
    after = Seen(lambda t, _: [(len(g["params"]), g["lr"]) for g in t.optimizers[0].param_groups])
    trainer(DiscriminativeLR(0.5), GradualUnfreezing(), after, max_epochs=2).fit(module, loader())
    assert seen == after.values == [[(14, 0.01)]] * 8


def test_after_an_exception_in_the_update_the_groups_are_the_users() -> None:
    class Failing(AdamW):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            raise KeyboardInterrupt

    module = Net(lambda parameters: Failing(parameters, lr=0.01))
    fit = trainer(DiscriminativeLR(0.5), max_epochs=1)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit.fit(module, loader())
    assert [len(group["params"]) for group in fit.optimizers[0].param_groups] == [14]


def test_rates_equal_those_of_real_groups_bitwise() -> None:
    scale = {"layers.0": 0.125, "layers.1": 0.25, "layers.2": 0.5, "head": 1.0}

    def grouped(module: Net) -> Any:
        return AdamW([{"params": list(module.get_submodule(n).parameters()), "lr": 0.01 * s} for n, s in scale.items()])

    results = []
    for ours in (True, False):
        torch.manual_seed(0)
        module = Net()
        if not ours:
            module.make_optimizer = lambda _, module=module: grouped(module)
        torch.manual_seed(1)
        trainer(*([DiscriminativeLR(0.5)] if ours else []), max_epochs=2).fit(module, loader())
        results.append(tensors(module))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_what_an_optimizer_writes_into_a_group_is_found_again() -> None:
    class Counting(SGD):
        """Counts its updates in each group, and sums rates, as ScheduleFree does."""

        def step(self, closure: Any = None) -> Any:
            loss = closure() if closure is not None else None
            for group in self.param_groups:
                group["k"] = group.get("k", 0) + 1
                group["sum"] = group.get("sum", 0.0) + group["lr"]
            super().step()
            return loss

    callback = DiscriminativeLR(0.5)
    module = Net(lambda parameters: Counting(parameters, lr=0.01))
    kept = Seen(lambda *_: callback.state_dict())
    fit = trainer(callback, kept, max_epochs=2)
    fit.fit(module, loader())
    (state,) = kept.values[-1]["rates"]
    assert {block: own["k"] for _, block, _, _, own in state} == dict.fromkeys(
        ["layers.0", "layers.1", "layers.2", "head"], 8
    )
    sums = {block: own["sum"] for _, block, _, _, own in state}
    assert sums == pytest.approx({"layers.0": 0.01, "layers.1": 0.02, "layers.2": 0.04, "head": 0.08})
    assert fit.optimizers[0].param_groups[0]["k"] == 8


def test_a_block_goes_on_with_the_group_where_that_was_written_to_while_it_was_frozen() -> None:
    class Counting(SGD):
        def step(self, closure: Any = None) -> Any:
            loss = closure()
            for group in self.param_groups:
                group["k"] = group.get("k", 0) + 1
            super().step()
            return loss

    schedule = [{"train": ["head"], "steps": 3}, {"train": ["layers.0"], "steps": 2}, {"train": ["layers.0", "head"]}]
    unfreezing = GradualUnfreezing(schedule)

    def counts(trainer: Any, _: Any) -> tuple[int, dict[str, int]]:
        (kept,) = unfreezing.state_dict()["rates"]
        return trainer.optimizers[0].param_groups[0]["k"], {block: own["k"] for _, block, _, _, own in kept}

    seen = Seen(counts)
    fit = trainer(unfreezing, DiscriminativeLR(scales={"*": 0.5}), seen, max_epochs=2)
    fit.fit(Net(lambda parameters: Counting(parameters, lr=0.01)), loader())
    assert seen.values[2] == (3, {"head": 3})
    assert seen.values[4] == (5, {"layers.0": 5})
    assert seen.values[7] == (8, {"layers.0": 8, "head": 8})


def test_two_optimizers_each_keep_their_own() -> None:
    class Two(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                loss = super().training_step(batch, batch_idx)
                self.manual_backward(loss)
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [UsedRates(self.layers.parameters(), lr=0.01), UsedRates(self.head.parameters(), lr=0.1)]

    module = Two()
    fit = trainer(GradualUnfreezing("full"), DiscriminativeLR(0.5), max_epochs=1)
    fit.fit(module, loader())
    below, above = (optimizer.used[-1] for optimizer in fit.optimizers)
    assert set(below.values()) == {0.00125, 0.0025, 0.005}
    assert set(above.values()) == {0.1}


def test_lbfgs_is_refused_with_the_reason() -> None:
    module = Net(lambda parameters: torch.optim.LBFGS(parameters))
    with pytest.raises(ValueError, match="LBFGS takes a single parameter group"):
        trainer(DiscriminativeLR(0.5), max_epochs=1).fit(module, loader())


def test_low_and_high_are_rates_at_the_peak() -> None:
    module = Net(
        lambda parameters: UsedRates(parameters, lr=0.5),
        lambda o: {"scheduler": schedulers.ConstantLR(o, factor=0.5, total_iters=100), "interval": "step"},
    )
    fit = trainer(DiscriminativeLR(low=1e-4, high=1e-1), max_epochs=1)
    fit.fit(module, loader())
    assert sorted(set(fit.optimizers[0].used[-1].values())) == pytest.approx([5e-5, 5e-4, 5e-3, 5e-2])


def test_biases_and_norms_do_not_decay_when_asked() -> None:
    module = Net(lambda parameters: SGD(parameters, lr=0.1, weight_decay=1.0), dropout=0.0)
    module.training_step = lambda *_: sum(p.sum() * 0 for p in module.parameters())  # type: ignore[method-assign]
    before = tensors(module)
    trainer(DiscriminativeLR(1.0, weight_decay_exempt=True), max_epochs=1).fit(module, loader())
    changed = {name for name, tensor in tensors(module).items() if not torch.equal(tensor, before[name])}
    assert changed == {"layers.0.0.weight", "layers.1.0.weight", "layers.2.0.weight", "head.weight"}


@pytest.mark.parametrize("ends", ["by itself", "by an error"])
def test_a_checkpoint_after_the_fit_holds_what_the_optimizer_wrote_for_blocks(ends: str, tmp_path: Path) -> None:
    class Summing(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            loss = closure()
            for group in self.param_groups:
                group["sum"] = group.get("sum", 0.0) + group["lr"]
            super().step()
            return loss

    module = Net(lambda parameters: Summing(parameters, lr=0.1))
    rates = DiscriminativeLR(0.5)
    error = OnExceptionCheckpoint(tmp_path, "last")
    fit = trainer(GradualUnfreezing("full"), rates, error, max_epochs=1, enable_checkpointing=True)
    if ends == "by an error":
        module.on_train_end = lambda: 1 / 0  # type: ignore[method-assign]
        with pytest.raises(ZeroDivisionError):
            fit.fit(module, loader())
    else:
        fit.fit(module, loader())
        fit.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["GradualUnfreezing"]["rates"]
    sums = {block: own["sum"] for _, block, _, _, own in saved[0]}
    assert sums == pytest.approx({"layers.0": 0.05, "layers.1": 0.1, "layers.2": 0.2, "head": 0.4})
