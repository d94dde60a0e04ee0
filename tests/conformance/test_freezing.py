"""Laws 3 and 4: what is frozen stands still, and what the user froze stays so."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from nets import Net, Seen, loader, tensors, trainer
from torch import nn
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint

from lightning_ft_callbacks import BlockMap, DiscriminativeLR, FreezeSchedule, GradualUnfreezing, LRFinder
from lightning_ft_callbacks.phases.best_weights import BestWeights
from lightning_ft_callbacks.phases.freezing import Freezer

HEAD_ONLY = [{"train": ["head"]}]


def frozen_part(module: Net) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors(module).items() if name.startswith("layers.")}


@pytest.mark.parametrize("with_validation", [False, True])
def test_frozen_blocks_are_bitwise_unchanged(with_validation: bool) -> None:
    module = Net(lambda parameters: SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1))
    module.on_validation_model_train = lambda: module.train()  # type: ignore[method-assign]
    before = frozen_part(module)
    fit = trainer(GradualUnfreezing(HEAD_ONLY), max_epochs=3)
    fit.fit(module, loader(), loader() if with_validation else None)
    after = frozen_part(module)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {id(p) for p in fit.optimizers[0].state} == {id(p) for p in module.head.parameters()}
    assert all(parameter.grad is None for parameter in module.layers.parameters())


def by_parameters(module: nn.Module) -> dict[str, list[str]]:
    """Return the blocks of layers and head as lists of parameters, without the modules that hold them."""
    names = [name for name, _ in module.named_parameters()]
    return {part: [name for name in names if name.startswith(part)] for part in ("layers", "head")}


FTS = "0: {params: ['head.*']}"


@pytest.mark.parametrize("blocks", ["found", "parameters", "finetuning-scheduler's"])
def test_norms_and_dropout_of_frozen_blocks_are_in_eval_mode_however_blocks_are_given(
    blocks: str, tmp_path: Path
) -> None:
    module = Net(dropout=0.5)
    (tmp_path / "fts.yaml").write_text(FTS)
    callback = {
        "found": lambda: GradualUnfreezing(HEAD_ONLY),
        "parameters": lambda: GradualUnfreezing(HEAD_ONLY, blocks=by_parameters(module)),
        "finetuning-scheduler's": lambda: GradualUnfreezing(str(tmp_path / "fts.yaml")),
    }[blocks]()
    before = frozen_part(module)
    modes = Seen(lambda *_: {part.training for layer in module.layers for part in layer.modules()})
    trainer(callback, modes, max_epochs=1).fit(module, loader(), loader())
    assert modes.values == [{False}] * 4
    assert all(torch.equal(before[name], tensor) for name, tensor in frozen_part(module).items())


def test_a_module_that_two_blocks_share_is_frozen_when_both_are() -> None:
    module = nn.ModuleDict({"norm": nn.BatchNorm1d(2), "head": nn.Linear(2, 2)})
    blocks = BlockMap.of(module, {"scale": "norm.weight", "shift": "norm.bias", "head": "head"})
    freezer = Freezer(blocks, [])
    modes = []
    for trained in (["scale"], ["shift", "head"], ["head"]):
        freezer.train_only(trained)
        modes.append(module["norm"].training)
    assert modes == [True, True, False]


def test_the_best_weights_of_blocks_of_parameters_hold_their_statistics() -> None:
    module = Net()
    best = BestWeights(BlockMap.of(module, by_parameters(module)))
    kept = tensors(module)
    best.keep(["layers"])
    module(torch.randn(8, 6))
    assert not torch.equal(kept["layers.0.1.running_mean"], module.layers[0][1].running_mean)  # type: ignore[index]
    best.restore(["layers"])
    assert all(torch.equal(kept[name], tensor) for name, tensor in tensors(module).items())


def test_tied_weights_freeze_and_thaw_whichever_is_registered_first() -> None:
    class Tied(Net):
        def __init__(self) -> None:
            super().__init__(lambda parameters: SGD(parameters, lr=0.1))
            self.embed = nn.Linear(6, 2)
            self.embed.weight = self.head.weight

        def forward(self, inputs: Any) -> Any:
            return super().forward(inputs) + self.embed(inputs)

    seen = Seen(lambda _, module: (module.head.weight.requires_grad, module.head.bias.requires_grad))
    fit = trainer(GradualUnfreezing("lp_ft", blocks=["layers", "embed", "head"]), seen, max_epochs=2)
    fit.fit(Tied(), loader())
    assert seen.values == [(False, True)] * 4 + [(True, True)] * 4


@pytest.mark.parametrize("averaging", [StochasticWeightAveraging, EMAWeightAveraging])
@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("schedule", [HEAD_ONLY, [{"train": ["layers.2"], "epochs": 2}, {"train": ["head"]}]], ids=len)
def test_averaging_callbacks_leave_blocks_unchanged_that_no_phase_trains(
    averaging: Any, ours_first: bool, schedule: Any, tmp_path: Path
) -> None:
    module = Net()
    for _ in range(2):
        module(torch.randn(8, 6))  # statistics that are not a new norm's
    trained = {pattern for phase in schedule for pattern in phase["train"]}
    before = {name: t for name, t in frozen_part(module).items() if not name.startswith(tuple(trained))}
    callbacks = [GradualUnfreezing(schedule), DiscriminativeLR(0.5)]
    swa = averaging is StochasticWeightAveraging
    other = [averaging(swa_lrs=0.05, swa_epoch_start=0.4) if swa else averaging(decay=0.9)]
    head = module.head.weight.detach().clone()
    fit = trainer(*(callbacks + other if ours_first else other + callbacks), max_epochs=5)
    fit.fit(module, loader(), loader())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    after = frozen_part(module)
    assert all(torch.equal(after[name], before[name]) and torch.equal(saved[name], before[name]) for name in before)
    assert not torch.equal(module.head.weight, head)


UNBEATEN = {"monitor": "val/loss", "patience": 1, "min_delta": 100.0}


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("restore_best", [True, False])
@pytest.mark.parametrize("end", [{"plateau": UNBEATEN}, {"epochs": 2}, {"steps": 8}], ids=str)
def test_a_phase_that_ends_with_the_fit_leaves_the_averages_and_what_was_never_trained(
    end: dict[str, Any], restore_best: bool, ours_first: bool, tmp_path: Path
) -> None:
    module = Net()
    for _ in range(2):
        module(torch.randn(8, 6))
    before = frozen_part(module)
    phases = FreezeSchedule.from_dict({"phases": [{"train": ["head"], **end}, {"train": ["*"]}]}).phases
    schedule = FreezeSchedule(phases, preset="which may be longer than the fit")
    unfreezing = GradualUnfreezing(schedule, restore_best=restore_best)
    averaging = StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=1)
    best = ModelCheckpoint(tmp_path, monitor="val/loss")
    callbacks = [unfreezing, averaging] if ours_first else [averaging, unfreezing]
    heads = Seen(lambda *_: tensors(module.head))
    trainer(*callbacks, heads, best, max_epochs=2, num_sanity_val_steps=0, enable_checkpointing=True).fit(
        module, loader(), loader()
    )
    assert len(heads.values) == 3 * 4  # the third epoch is SWA's
    assert unfreezing.phase == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen_part(module).items())
    average = averaging._average_model
    assert average is not None
    assert torch.equal(module.head.weight, average.head.weight)
    assert not torch.equal(module.head.weight, heads.values[7]["weight"])


def test_what_a_phase_freezes_again_loses_its_optimizer_state_and_moves_no_more() -> None:
    schedule = [{"train": ["*"], "epochs": 1}, {"train": ["head"]}]
    module = Net()
    seen = Seen(lambda *_: frozen_part(module))
    fit = trainer(GradualUnfreezing(schedule), seen, max_epochs=3)
    fit.fit(module, loader())
    assert not torch.equal(seen.values[0]["layers.0.0.weight"], seen.values[3]["layers.0.0.weight"])
    assert all(torch.equal(seen.values[3][name], tensor) for name, tensor in frozen_part(module).items())
    assert len(fit.optimizers[0].state) == 2
    assert all(parameter.grad is None for parameter in module.layers.parameters())


def test_the_optimizer_state_that_a_checkpoint_has_of_frozen_parameters_is_dropped(tmp_path: Path) -> None:
    plain = trainer(max_epochs=1)
    plain.fit(Net(), loader())
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    seen = Seen(lambda fit, _: len(fit.optimizers[0].state))
    fit = trainer(GradualUnfreezing(HEAD_ONLY), seen, max_epochs=2)
    fit.fit(Net(), loader(), ckpt_path=tmp_path / "plain.ckpt", weights_only=True)
    assert seen.values == [2] * 4


def test_after_fit_flags_and_modes_are_as_found() -> None:
    module = Net()
    module.layers[1][0].weight.requires_grad_(False)
    module.layers[0].eval()
    flags = {name: p.requires_grad for name, p in module.named_parameters()}
    modes = {name: part.training for name, part in module.named_modules()}
    trainer(GradualUnfreezing(), max_epochs=2).fit(module, loader(), loader())
    assert {name: p.requires_grad for name, p in module.named_parameters()} == flags
    assert {name: part.training for name, part in module.named_modules()} == modes


def test_after_an_exception_flags_and_modes_are_as_found() -> None:
    module = Net()
    module.on_train_batch_end = lambda *_: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        trainer(GradualUnfreezing(), max_epochs=2).fit(module, loader())
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(part.training for part in module.modules())


def test_what_fails_after_a_fit_leaves_alone_what_its_user_has_set_since() -> None:
    module, callback = Net(), GradualUnfreezing("lp_ft")
    trainer(callback, max_epochs=2).fit(module, loader())
    module.head.requires_grad_(False)
    module.on_validation_start = lambda: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        trainer(callback).validate(module, loader(), verbose=False)
    assert not any(parameter.requires_grad for parameter in module.head.parameters())


@pytest.mark.parametrize("thaw", [False, True])
def test_what_the_user_froze_stays_frozen_unless_asked(thaw: bool) -> None:
    module = Net()
    module.layers[2][0].weight.requires_grad_(False)
    before = tensors(module)
    trainer(GradualUnfreezing("full", thaw_frozen=thaw), max_epochs=1).fit(module, loader())
    assert torch.equal(before["layers.2.0.weight"], module.layers[2][0].weight) is not thaw
    assert not torch.equal(before["layers.2.0.bias"], module.layers[2][0].bias)


def test_thawing_parameters_that_no_optimizer_holds_is_refused_by_name() -> None:
    module = Net(lambda parameters: SGD([p for p in parameters if p.requires_grad], lr=0.1))
    module.layers[2][0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"layers\.2 .* no optimizer holds layers\.2\.0\.weight; give configure_opt"):
        trainer(GradualUnfreezing("full", thaw_frozen=True), max_epochs=1).fit(module, loader())


def test_what_cannot_learn_is_never_thawed_and_no_optimizer_need_hold_it() -> None:
    module = Net(lambda parameters: SGD([p for p in parameters if p.requires_grad], lr=0.1))
    module.layers[1].scale = nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)
    callback = GradualUnfreezing("gradual", thaw_frozen=True)
    trainer(callback, DiscriminativeLR(0.5), max_epochs=4).fit(module, loader())
    assert callback.phase == 3


def test_a_later_phase_whose_parameters_were_all_frozen_is_refused_before_the_first_step() -> None:
    module = Net()
    module.layers[2].requires_grad_(False)
    module.on_train_start = lambda: pytest.fail("the fit has begun")  # type: ignore[method-assign]
    schedule = [{"train": ["head"], "epochs": 1}, {"train": ["layers.2"]}]
    with pytest.raises(ValueError, match=r"phase 1 trains layers\.2, whose parameters were all frozen before fit"):
        trainer(GradualUnfreezing(schedule), max_epochs=2).fit(module, loader())


def test_each_phase_trains_its_blocks_and_no_other() -> None:
    module = Net()
    seen = Seen(lambda *_: {name for name, p in module.named_parameters() if p.requires_grad})
    trainer(GradualUnfreezing("chain_thaw"), seen, max_epochs=5).fit(module, loader())
    blocks = [{".".join(name.split(".")[: 1 if "head" in name else 2]) for name in names} for names in seen.values]
    assert blocks[::4] == [
        {"head"},
        {"layers.0"},
        {"layers.1"},
        {"layers.2"},
        {"head", "layers.0", "layers.1", "layers.2"},
    ]


def test_equal_valued_parameters_are_kept_apart() -> None:
    module = Net()
    blocks = BlockMap.of(module)
    assert sum(len(blocks.parameters(name)) for name in blocks.names) == len(list(module.parameters())) == 14


def test_tied_weights_are_updated_once() -> None:
    class Tied(Net):
        def __init__(self) -> None:
            super().__init__(lambda parameters: SGD(parameters, lr=0.1), dropout=0.0)
            self.out = nn.Linear(2, 2)
            self.out.weight = nn.Parameter(self.head.weight[:, :2].detach().clone())
            self.tied = self.out

        def forward(self, inputs: Any) -> Any:
            return self.tied(self.out(super().forward(inputs)))

    results = []
    for callbacks in ([], [GradualUnfreezing("full"), DiscriminativeLR(1.0)]):
        torch.manual_seed(0)
        module = Tied()
        trainer(*callbacks, max_epochs=1).fit(module, loader())
        results.append(tensors(module))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_validate_before_fit_and_a_second_fit_work() -> None:
    module = Net()
    callback = GradualUnfreezing()
    fit = trainer(callback, max_epochs=2)
    fit.validate(module, loader(), verbose=False)
    assert all(parameter.requires_grad for parameter in module.parameters())
    fit.fit(module, loader())
    assert callback.phase == 1
    fit.fit_loop.max_epochs = 4
    fit.fit(module, loader())
    assert callback.phase == 3
    trainer(callback, max_epochs=1).fit(Net(), loader())
    assert callback.phase == 0


def test_a_second_fit_of_one_trainer_with_another_module_begins_with_the_first_phase() -> None:
    callback = GradualUnfreezing()
    seen = Seen(lambda *_: callback.phase)
    fit = trainer(callback, seen, max_epochs=3)
    fit.fit(Net(), loader())
    fit.fit_loop.max_epochs = 5
    fit.fit(Net(), loader())
    assert seen.values[::4] == [0, 1, 2, 0, 1]


def test_each_phase_is_told_in_the_plans_words_also_the_one_that_a_second_fit_goes_on_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr("lightning_ft_callbacks.gradual_unfreezing.rank_zero_info", told.append)
    callback = GradualUnfreezing()
    fit = trainer(callback, max_epochs=3)
    module = Net()
    fit.fit(module, loader())
    assert told == ["phase 1: training layers.2, head", "phase 2: training layers.1 to head"]
    fit.fit_loop.max_epochs = 4
    fit.fit(module, loader())
    assert told[2:] == ["phase 2: training layers.1 to head", "phase 3: training all"]
    assert [row[1] for row in callback.plan.rows()[2:]] == ["layers.2, head", "layers.1 to head", "all"]


@pytest.mark.parametrize("found", ["train", "eval"])
def test_modules_in_eval_mode_are_spoken_of_where_the_user_and_not_freezing_put_them_so(
    found: str, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    told: list[str] = []
    monkeypatch.setattr("lightning_ft_callbacks.gradual_unfreezing.rank_zero_info", told.append)
    module = Net()
    module.layers.train(found == "train")
    filters = list(warnings.filters)
    trainer(GradualUnfreezing([{"train": ["head"], "epochs": 1}, {"train": ["layers.2", "head"]}]), max_epochs=2).fit(
        module, loader()
    )
    assert not [warning for warning in recwarn if "in eval mode" in str(warning.message)]
    assert list(warnings.filters) == filters
    assert ["modules of trained blocks were in eval mode" in line for line in told] == (
        [False] if found == "train" else [True, False]
    )


def test_a_reentrant_checkpoint_above_a_frozen_part_is_refused() -> None:
    class Checkpointed(Net):
        reentrant = True

        def forward(self, inputs: Any) -> Any:
            for layer in self.layers:
                inputs = checkpoint(layer, inputs, use_reentrant=self.reentrant)
            return self.head(inputs)

    schedule = [{"train": ["head", "layers.2"]}]
    with pytest.raises(RuntimeError, match=r"no gradient reaches layers\.2.*use_reentrant=False"):
        trainer(GradualUnfreezing(schedule), max_epochs=1).fit(Checkpointed(), loader())
    module = Checkpointed()
    module.reentrant = False
    before = tensors(module)
    trainer(GradualUnfreezing(schedule), max_epochs=1).fit(module, loader())
    assert not torch.equal(before["layers.2.0.weight"], module.layers[2][0].weight)


def test_a_reentrant_checkpoint_is_refused_though_its_block_holds_more_than_it() -> None:
    class Checkpointed(Net):
        def forward(self, inputs: Any) -> Any:
            for layer in self.layers:
                inputs = checkpoint(layer, inputs, use_reentrant=True)
            return self.head(inputs)

    blocks = {"low": ["layers.0", "layers.1"], "top": ["layers.2", "head"]}
    with pytest.raises(RuntimeError, match="no gradient reaches top"):
        trainer(GradualUnfreezing([{"train": ["top"]}], blocks=blocks), max_epochs=1).fit(Checkpointed(), loader())


@pytest.mark.parametrize("lost", [False, True])
def test_in_manual_optimization_gradients_are_looked_for_at_the_end_of_the_batch(lost: bool) -> None:
    class Adversarial(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.generator, self.critic = nn.Linear(6, 6), nn.Linear(6, 1)

        def training_step(self, batch: Any, *_: Any) -> None:
            generating, judging = self.optimizers()  # type: ignore[misc]
            with torch.no_grad():
                fake = self.generator(batch[0])
            judging.zero_grad()
            self.manual_backward(self.critic(fake).mean() - self.critic(batch[0]).mean())
            judging.step()
            fake = checkpoint(self.generator, batch[0].requires_grad_(not lost), use_reentrant=True)
            self.manual_backward(-self.critic(fake).mean())
            generating.step()
            generating.zero_grad()

        def configure_optimizers(self) -> Any:
            return [SGD(part.parameters(), lr=0.01) for part in (self.generator, self.critic)]

    fit = trainer(GradualUnfreezing("full"), max_epochs=1)
    if not lost:
        fit.fit(Adversarial(), loader())
        return
    with pytest.raises(RuntimeError, match="no gradient reaches generator"):
        fit.fit(Adversarial(), loader())


def test_restore_best_ends_each_phase_with_its_best_weights() -> None:
    module = Net(lambda parameters: SGD(parameters, lr=0.5))
    losses = iter([3.0, 1.0, 2.0, 5.0, 5.0, 5.0])
    module.validation_step = lambda *_: None  # type: ignore[method-assign]
    module.on_validation_epoch_end = lambda: module.log("val/loss", next(losses))  # type: ignore[method-assign]
    ends = []
    module.on_train_epoch_end = lambda: ends.append(tensors(module))  # type: ignore[method-assign]
    starts = []
    module.on_train_batch_start = lambda _, index: starts.append(tensors(module)) if index == 0 else None  # type: ignore[method-assign]
    schedule = [{"train": ["head"], "plateau": {"monitor": "val/loss", "patience": 2}}, {"train": ["*"]}]
    trainer(GradualUnfreezing(schedule, restore_best=True), max_epochs=5, num_sanity_val_steps=0).fit(
        module, loader(), loader()
    )
    assert all(torch.equal(starts[4][name], ends[1][name]) for name in ends[1] if name.startswith("head"))
    assert not torch.equal(ends[1]["head.weight"], ends[3]["head.weight"])


@pytest.mark.parametrize("schedule", [[{"train": ["*"], "epochs": 3}, {"train": ["layers.0"]}], "chain_thaw"])
def test_what_lbfgs_keeps_of_all_parameters_moves_none_that_is_frozen(schedule: Any) -> None:
    module = Net(lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=4), norm=False, dropout=0.0)
    unfreezing = GradualUnfreezing(schedule)
    frozen = Seen(lambda _, m: {n: p.detach().clone() for n, p in m.named_parameters() if not p.requires_grad})
    phases = Seen(lambda *_: unfreezing.phase)
    trainer(unfreezing, frozen, phases, max_epochs=6).fit(module, loader())
    pairs = zip(frozen.values, frozen.values[1:], phases.values, phases.values[1:], strict=False)
    for before, after, phase, next_phase in pairs:
        if phase == next_phase:
            assert all(torch.equal(before[name], after[name]) for name in before)


class Told(Net):
    """Logs values that were written down for it, and remembers its head at each."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = list(values)
        self.heads: dict[float, torch.Tensor] = {}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Do nothing."""

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            value = self.values.pop(0)
            self.log("val/loss", value)
            self.heads[value] = self.head.weight.detach().clone()


def test_the_best_weights_are_the_best_also_by_less_than_a_plateau_asks_for() -> None:
    module = Told(1.0, 0.95, 0.91, 0.5)
    plateau = {"monitor": "val/loss", "patience": 2, "min_delta": 0.1}
    unfreezing = GradualUnfreezing([{"train": ["head"], "plateau": plateau}, {"train": ["*"]}], restore_best=True)
    begins: list[torch.Tensor] = []

    class Look(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
            if unfreezing.phase == 1:
                begins.append(pl_module.head.weight.detach().clone())

    trainer(unfreezing, Look(), max_epochs=4).fit(module, loader(), loader())
    assert torch.equal(begins[0], module.heads[0.91])


@pytest.mark.filterwarnings("error:restore_best puts back")
def test_where_validation_sees_averages_it_is_said_that_the_best_weights_are_not_those() -> None:
    phases = [{"train": ["head"], "plateau": {"monitor": "val/loss", "patience": 1}}, {"train": ["*"]}]
    fit = trainer(GradualUnfreezing(phases, restore_best=True), EMAWeightAveraging(), max_epochs=3)
    with pytest.raises(UserWarning, match="validation sees the averages of EMAWeightAveraging"):
        fit.fit(Net(), loader(), loader())


def fitted(checkpoint: Path) -> tuple[GradualUnfreezing, LRFinder]:
    """Return the callbacks of a fit that has come to its second phase, and stands in a checkpoint."""
    unfreezing = GradualUnfreezing([{"train": ["head"], "epochs": 1}, {"train": ["*"]}])
    finder = LRFinder(num_steps=12, trial_steps=0, apply=False)
    fit = trainer(unfreezing, finder, max_epochs=2)
    fit.fit(Net(), loader())
    fit.save_checkpoint(checkpoint)
    return unfreezing, finder


def test_after_a_resume_that_failed_a_fresh_fit_begins_with_the_first_phase(tmp_path: Path) -> None:
    unfreezing, finder = fitted(tmp_path / "whole.ckpt")

    class Fails(Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        trainer(Fails(), unfreezing, finder, max_epochs=3).fit(Net(), loader(), ckpt_path=tmp_path / "whole.ckpt")
    phases = Seen(lambda *_: unfreezing.phase)
    finder.curve = None
    trainer(unfreezing, finder, phases, max_epochs=2).fit(Net(), loader())
    assert phases.values[0] == 0
    assert finder.curve is not None


def test_after_a_test_of_a_checkpoint_a_fresh_fit_begins_with_the_first_phase(tmp_path: Path) -> None:
    unfreezing, finder = fitted(tmp_path / "whole.ckpt")
    phases = Seen(lambda *_: unfreezing.phase)
    fit = trainer(unfreezing, finder, phases, max_epochs=2)
    fit.validate(Net(), loader(), ckpt_path=tmp_path / "whole.ckpt", weights_only=True)
    before = finder.curve
    fit.fit(Net(), loader())
    assert phases.values == [0] * 4 + [1] * 4
    assert finder.curve is not before


class TrainsAll(Net):
    """Puts all of itself in train mode where it should not."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.train()
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("where", ["training_step", "on_train_batch_start"])
def test_a_module_in_train_mode_within_a_step_moves_no_frozen_statistic_and_is_told(where: str) -> None:
    module: Any = TrainsAll() if where == "training_step" else Net()
    if where == "on_train_batch_start":
        module.on_train_batch_start = lambda *_: (module.train(), None)[1]
    before = frozen_part(module)
    saved = Seen(lambda *_: frozen_part(module))
    fit = trainer(GradualUnfreezing(HEAD_ONLY), saved, max_epochs=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit.fit(module, loader())
    for values in (*saved.values, frozen_part(module)):
        assert all(torch.equal(before[name], values[name]) for name in before)
    told = [str(warning.message) for warning in caught if "is frozen, but something put it" in str(warning.message)]
    assert len(told) == 1
    assert told[0].startswith("layers.0")
