"""Law 2 with real optimizers: those that keep things in a group, loss scaling, fused updates."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from dadaptation import DAdaptAdam, DAdaptSGD
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from nets import Net, Save, Seen, loader, tensors, trainer
from prodigyopt import Prodigy
from schedulefree import AdamWScheduleFree, RAdamScheduleFree, SGDScheduleFree
from timm.optim import Adan, Lamb, Lookahead
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader
from transformers.optimization import Adafactor

from lightning_ft_callbacks import DiscriminativeLR, GradualUnfreezing, LRFinder
from lightning_ft_callbacks.optimizers import with_wrapped

BLOCKS = ["layers.0", "layers.1", "layers.2", "head"]
SCALES = {"layers.0": 0.125, "layers.1": 0.25, "layers.2": 0.5, "head": 1.0}


class Switching(Net):
    """Puts its optimizer in train and eval mode, as ScheduleFree's readme asks for."""

    def _switch(self, mode: str) -> None:
        for optimizer in self.trainer.optimizers:
            if hasattr(optimizer, mode):
                getattr(optimizer, mode)()

    def on_train_epoch_start(self) -> None:
        self._switch("train")

    def on_validation_model_eval(self) -> None:
        super().on_validation_model_eval()
        self._switch("eval")

    def on_validation_model_train(self) -> None:
        super().on_validation_model_train()
        self._switch("train")

    def on_train_end(self) -> None:
        self._switch("eval")


def groups_of(module: Net, lr: float) -> list[dict[str, Any]]:
    """Return real groups, a block each."""
    return [{"params": list(module.get_submodule(n).parameters()), "lr": lr * s} for n, s in SCALES.items()]


def fit_twice(make: Callable[..., Optimizer], lr: float, **options: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what a net's weights become with our rates by block, and with an optimizer that has a group a block."""
    results = []
    for ours in (True, False):
        torch.manual_seed(0)
        module = Switching(partial(make, lr=lr), dropout=0.0)
        if not ours:
            module.make_optimizer = lambda _, module=module: make(groups_of(module, lr), lr=lr)
        plugins = [plugin() for plugin in options.get("plugins", [])]
        fit = trainer(*([DiscriminativeLR(0.5)] if ours else []), max_epochs=3, **{**options, "plugins": plugins})
        fit.fit(module, loader(), loader())
        results.append(tensors(module))
    return results[0], results[1]


class SAM(Optimizer):
    """Updates by gradients at weights a little way uphill, with another optimizer (arXiv:2010.01412)."""

    def __init__(self, groups: Any, lr: float, rho: float = 0.05) -> None:
        super().__init__(groups, {"lr": lr, "rho": rho})
        self.base_optimizer = AdamW(self.param_groups, lr=lr)
        self.param_groups = self.base_optimizer.param_groups

    def step(self, closure: Any = None) -> Any:
        """Update, with the gradients of one closure and then of another."""
        loss = closure()
        before = [[p.detach().clone() for p in group["params"]] for group in self.param_groups]
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.add_(parameter.grad, alpha=group["rho"])
        closure()
        with torch.no_grad():
            for group, values in zip(self.param_groups, before, strict=True):
                for parameter, value in zip(group["params"], values, strict=True):
                    parameter.copy_(value)
        self.base_optimizer.step()
        return loss


def looking_ahead(groups: Any, lr: float) -> Lookahead:
    """Return AdamW within timm's wrapper, which steps back every other update."""
    return Lookahead(AdamW(groups, lr=lr), k=2)


@pytest.mark.parametrize(
    "make",
    [
        looking_ahead,
        SAM,
        partial(AdamWScheduleFree, warmup_steps=3),
        SGDScheduleFree,
        RAdamScheduleFree,
        partial(AdamW, fused=True),
        partial(AdamW, foreach=True, amsgrad=True),
        partial(torch.optim.Adagrad, lr_decay=0.1),
        torch.optim.Adafactor,
        torch.optim.NAdam,
        torch.optim.ASGD,
    ],
    ids=lambda make: getattr(make, "__name__", None) or make.func.__name__,
)
def test_an_optimizer_updates_as_with_real_groups_bitwise(make: Callable[..., Optimizer]) -> None:
    ours, theirs = fit_twice(make, 0.05)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("make", [looking_ahead, SAM])
def test_the_optimizer_within_another_keeps_nothing_of_frozen_blocks(make: Callable[..., Optimizer]) -> None:
    module = Net(partial(make, lr=0.1))
    schedule = [{"train": ["*"], "epochs": 1}, {"train": ["head"]}]
    head = {id(parameter) for parameter in module.head.parameters()}

    def kept(trainer: Any, _: Any) -> bool:
        return all({id(p) for p in o.state} <= head for o in with_wrapped(trainer.optimizers[0]))

    seen = Seen(kept)
    trainer(GradualUnfreezing(schedule), seen, max_epochs=2).fit(module, loader())
    assert seen.values == [False] * 4 + [True] * 4


@pytest.mark.parametrize(
    ("callback", "what"),
    [
        (lambda: DiscriminativeLR(0.5), "DiscriminativeLR"),
        (lambda: GradualUnfreezing("lp_ft", ramp_steps=2), "ramp_steps"),
        (lambda: LRFinder(), "LRFinder"),
    ],
    ids=["DiscriminativeLR", "ramp_steps", "LRFinder"],
)
def test_an_optimizer_that_sets_its_rates_itself_is_refused_with_the_remedy(callback: Any, what: str) -> None:
    module = Net(partial(Adafactor, lr=None, relative_step=True, warmup_init=True))
    before = tensors(module)
    with pytest.raises(ValueError, match=rf"Adafactor sets its learning rates itself \(lr=None\), so {what} cannot"):
        trainer(callback(), max_epochs=2).fit(module, loader())
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(module).items())


def test_phases_need_no_rates_of_the_optimizer() -> None:
    module = Net(partial(Adafactor, lr=None, relative_step=True, warmup_init=True), norm=False)
    before = tensors(module)
    unfreezing = GradualUnfreezing([{"train": ["head"], "epochs": 1}, {"train": ["layers.2", "head"]}])
    trainer(unfreezing, DiscriminativeLR(1.0, weight_decay_exempt=True), max_epochs=2).fit(module, loader())
    moved = {
        name.rpartition(".")[0] for name, tensor in tensors(module).items() if not torch.equal(tensor, before[name])
    }
    assert moved == {"layers.2.0", "head"}
    assert unfreezing.plan is not None
    assert [phase.lrs for phase in unfreezing.plan.phases] == [None, None]


@pytest.mark.parametrize("fused", [False, True])
def test_loss_scaling_in_half_precision_is_that_of_real_groups_bitwise(fused: bool) -> None:
    def plugin() -> MixedPrecision:
        # the first scale overflows, so that updates are passed over too
        return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**30))

    ours, theirs = fit_twice(partial(AdamW, fused=fused), 0.01, plugins=[plugin], gradient_clip_val=None)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_phases_train_their_blocks_and_no_other_under_loss_scaling() -> None:
    module = Net(lambda parameters: AdamW(parameters, lr=0.01))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    seen = Seen(lambda *_: tensors(module))
    callbacks: list[Callback] = [GradualUnfreezing([{"train": ["head"], "steps": 4}, {"train": ["layers.1"]}]), seen]
    fit = trainer(*callbacks, DiscriminativeLR(0.5), max_epochs=2, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    fit.fit(module, loader())
    changed = {
        name.rpartition(".")[0]
        for name, tensor in seen.values[-1].items()
        if not torch.equal(tensor, seen.values[3][name])
    }
    assert changed == {"layers.1.0", "layers.1.1"}
    assert not torch.equal(seen.values[0]["head.weight"], seen.values[3]["head.weight"])


def test_prodigy_has_one_estimate_for_all_blocks_as_with_real_groups() -> None:
    results = []
    for ours in (True, False):
        torch.manual_seed(0)
        module = Net(partial(Prodigy, lr=1.0, weight_decay=0.1), dropout=0.0)
        if not ours:
            norms = [p for name, p in module.named_parameters() if p.ndim < 2]
            weights = [p for p in module.parameters() if p.ndim == 2]
            groups = [{"params": weights}, {"params": norms, "weight_decay": 0.0}]
            module.make_optimizer = lambda _, groups=groups: Prodigy(groups, lr=1.0, weight_decay=0.1)
        estimate = Seen(lambda t, _: t.optimizers[0].param_groups[0]["d"])
        callbacks = [DiscriminativeLR(1.0, weight_decay_exempt=True)] if ours else []
        trainer(*callbacks, estimate, max_epochs=5).fit(module, loader())
        results.append((estimate.values, tensors(module)))
    (ours_d, ours_weights), (theirs_d, theirs_weights) = results
    assert ours_d[-1] > 2 * ours_d[0]
    assert ours_d == pytest.approx(theirs_d, rel=1e-4)
    for name, tensor in theirs_weights.items():
        torch.testing.assert_close(ours_weights[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("optimizer", [Prodigy, DAdaptAdam, DAdaptSGD])
@pytest.mark.parametrize(
    ("callback", "what"),
    [(DiscriminativeLR(0.5), "DiscriminativeLR"), (GradualUnfreezing([{"train": ["*"]}], ramp_steps=3), "ramp_steps")],
)
def test_an_optimizer_that_takes_one_rate_alone_is_refused_before_the_first_step(
    optimizer: type[Optimizer], callback: Callback, what: str
) -> None:
    module = Net(partial(optimizer, lr=1.0))
    message = f"{optimizer.__name__} takes one learning rate for all groups, so {what} cannot"
    with pytest.raises(ValueError, match=message):
        trainer(callback, max_epochs=1).fit(module, loader())


class KeepingTensors(torch.optim.SGD):
    """Keeps a count, and a tensor that it makes anew at each update, in its groups."""

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            group["mean"] = 0.9 * group.get("mean", torch.zeros(())) + group["lr"]
            with torch.no_grad():
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.add_(parameter.grad, alpha=-float(group["mean"]) / group["k"])
        return loss


GRADUAL = [{"train": BLOCKS[lowest:], "steps": 3} for lowest in (3, 2, 1)] + [{"train": BLOCKS}]
AGAIN = [{"train": train, "steps": 3} for train in (["head"], ["layers.2", "head"], ["layers.0"])] + [{"train": BLOCKS}]


@pytest.mark.parametrize("schedule", [GRADUAL, AGAIN], ids=["only thawed", "frozen again"])
@pytest.mark.parametrize(
    ("make", "scale"),
    [
        (partial(AdamWScheduleFree, lr=0.05, warmup_steps=5, weight_decay=0.1), 0.5),
        (partial(SGDScheduleFree, lr=0.05, warmup_steps=4), 0.5),
        (partial(RAdamScheduleFree, lr=0.05), 0.5),
        (partial(Prodigy, lr=1.0, weight_decay=0.1), 1.0),
        (partial(torch.optim.ASGD, lr=0.1), 0.5),
        (partial(KeepingTensors, lr=0.1), 0.5),
    ],
    ids=lambda value: value.func.__name__ if isinstance(value, partial) else "",
)
def test_what_it_keeps_in_groups_survives_phases_and_a_checkpoint_after_any_update(
    make: Callable[..., Optimizer], scale: float, schedule: Any, tmp_path: Path
) -> None:
    batches = DataLoader([next(iter(loader()))] * 4, batch_size=None)  # type: ignore[arg-type]

    def run(*callbacks: Callback, **options: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        module = Switching(make, dropout=0.0)
        ours = [GradualUnfreezing(schedule), DiscriminativeLR(scale, weight_decay_exempt=True)]
        trainer(*ours, *callbacks, max_epochs=4).fit(module, batches, **options)
        return tensors(module)

    whole = run(Save(tmp_path))
    for step in range(1, 16):
        resumed = run(ckpt_path=tmp_path / f"step{step}.ckpt", weights_only=True)
        assert all(torch.equal(resumed[name], whole[name]) for name in whole), step


class AddingGroups(Switching):
    """Thaws by hand: a block is a group of its own, which is added when its phase begins."""

    def __init__(self, make: Callable[..., Optimizer], lr: float, steps: int, scale: float) -> None:
        super().__init__(lambda _: make(self._group("head"), lr=lr), dropout=0.0, norm=False)
        self.lr, self.steps, self.scale = lr, steps, scale
        self.automatic_optimization = False

    def _group(self, block: str) -> list[dict[str, Any]]:
        lr = self.lr * self.scale ** (3 - BLOCKS.index(block))
        return [{"params": list(self.get_submodule(block).parameters()), "lr": lr}]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.trainer.optimizers[0]
        phase, within = divmod(self.trainer.global_step, self.steps)
        if within == 0 and 0 < phase < len(BLOCKS):
            optimizer.add_param_group(*self._group(BLOCKS[-1 - phase]))
            self._switch("train")
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.optimizers().step()


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize(
    "make",
    [
        AdamW,
        partial(AdamWScheduleFree, warmup_steps=5, weight_decay=0.1),
        SGDScheduleFree,
        RAdamScheduleFree,
        Adan,
        partial(Lamb, max_grad_norm=None),
        torch.optim.ASGD,
    ],
    ids=lambda make: getattr(make, "__name__", None) or make.func.__name__,
)
def test_a_thawed_block_is_updated_as_a_group_that_is_added_then_bitwise(
    make: Callable[..., Optimizer], scale: float
) -> None:
    results = []
    for ours in (True, False):
        torch.manual_seed(0)
        module: Net = Switching(partial(make, lr=0.05), dropout=0.0, norm=False)
        if not ours:
            module = AddingGroups(make, 0.05, 6, scale)
            torch.manual_seed(0)
            module.load_state_dict(Switching(dropout=0.0, norm=False).state_dict())
        schedule = [{"train": BLOCKS[lowest:], "steps": 6} for lowest in (3, 2, 1)] + [{"train": BLOCKS}]
        callbacks = [GradualUnfreezing(schedule), DiscriminativeLR(scale)] if ours else []
        trainer(*callbacks, max_epochs=6, gradient_clip_val=None).fit(module, loader())
        results.append(tensors(module))
    ours_weights, theirs = results
    assert all(torch.equal(ours_weights[name], theirs[name]) for name in theirs)
