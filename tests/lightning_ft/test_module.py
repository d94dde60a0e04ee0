"""Laws of FineTuner: its learning rates, its weight decay, its losses, and what a checkpoint gives back."""

import shutil
from collections.abc import Mapping
from functools import partial
from math import cos, pi

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback
from scipy.stats import pearsonr, spearmanr
from sklearn import metrics as sklearn_metrics
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader
from torchmetrics import Metric

from lightning_ft import (
    Backbone,
    FeatureInfo,
    FineTuner,
    SequenceClassificationHead,
    TimmBackbone,
    TokenFeatures,
    TransformersBackbone,
)
from lightning_ft.data.labels import Labels
from lightning_ft.lr_schedules import factor, make_schedule, warmup_steps
from lightning_ft.optimizers import decay_groups

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(many workers|logging interval|no `val_dataloader`|LeafSpec|Metric `SpearmanCorrcoef`).*"
)


class ToyBackbone(Backbone):
    """A linear layer and a norm over three numbers a token."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)
        self.features = FeatureInfo(4, "tokens")

    def forward(self, inputs: Mapping[str, Tensor]) -> TokenFeatures:
        states = self.norm(self.linear(inputs["values"]).tanh())
        return TokenFeatures(states, torch.ones_like(states[..., 0]))

    def description(self) -> dict:
        return {"name": "toy"}

    @classmethod
    def rebuilt_from(cls, _checkpoint, init_args):
        return dict(init_args)


def module_of(num_classes=2, task=None, *, backbone=None, dropout=0.0, head=None, **options) -> FineTuner:
    head = partial(SequenceClassificationHead, num_classes=num_classes, task=task, dropout=dropout, **(head or {}))
    torch.manual_seed(0)
    return FineTuner(backbone or ToyBackbone(), head, **options)


def samples_of(num: int, labels=None) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(num)
    values = torch.randn(num, 5, 3, generator=draw)
    labels = (values.sum((1, 2)) > 0).long() if labels is None else labels
    return [{"values": value, "labels": label} for value, label in zip(values, labels, strict=True)]


def loader_of(num: int, batch_size: int = 4, labels=None) -> DataLoader:
    return DataLoader(samples_of(num, labels), batch_size=batch_size)


def trainer_of(*callbacks: Callback, **options) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    standing = {"accelerator": "cpu", "enable_model_summary": False, "num_sanity_val_steps": 0, "max_epochs": 1}
    return Trainer(**quiet | standing | options, callbacks=list(callbacks))


class Rates(Callback):
    """Notes the learning rate of each optimizer step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, _trainer, _module, optimizer):
        (rate,) = {group["lr"] for group in optimizer.param_groups}
        self.seen.append(rate)


def rates_of(num: int, val: DataLoader | None = None, trainer=None, **options) -> list[float]:
    """Return the learning rate of each optimizer step of a fit on batches of 4."""
    rates = Rates()
    module = module_of(**{"lr": 1.0} | options)
    trainer_of(rates, **trainer or {}).fit(module, loader_of(num), val)
    return rates.seen


# schedules


@pytest.mark.parametrize(
    ("name", "warmup", "expected"),
    [
        ("constant", 0, [1] * 10),
        ("constant", 0.4, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", 0, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ("linear", 0.2, [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("linear", 2, [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("cosine", 0, [(1 + cos(pi * step / 10)) / 2 for step in range(10)]),
        ("cosine", 5, [0.2, 0.4, 0.6, 0.8, 1, *((1 + cos(pi * step / 5)) / 2 for step in range(5))]),
    ],
)
def test_a_named_schedule_gives_its_rates_to_a_run_of_ten_steps(name, warmup, expected):
    assert rates_of(40, lr_schedule=name, warmup=warmup) == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [0.3, 3])
def test_one_cycle_is_torchs_with_the_warmup_as_its_rise(warmup):
    rates = rates_of(40, lr_schedule="one_cycle", warmup=warmup)
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = SGD([parameter], lr=1.0)
    schedule = OneCycleLR(optimizer, 1.0, total_steps=11, pct_start=0.3, cycle_momentum=False)
    expected = []
    for _ in range(10):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(expected)
    assert max(rates) <= 1.0
    assert rates[-1] < 0.1


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_falling_schedule_reaches_zero_behind_the_last_step(name):
    at = factor(name, 3, 10)
    assert at(3) == 1.0
    assert at(10) == pytest.approx(0.0)
    assert at(20) == pytest.approx(0.0)
    assert all(at(step) > at(step + 1) for step in range(3, 10))


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "one_cycle"])
@pytest.mark.parametrize("warmup", [0, 0.1, 0.99, 1, 5, 50])
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_no_run_is_too_short_for_its_warmup(name, warmup, num_steps):
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_schedule(name, optimizer, num_steps, warmup)
    for _ in range(num_steps):
        assert 0 < optimizer.param_groups[0]["lr"] <= 1.0
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("warmup", "num_steps", "steps"),
    [(0, 10, 0), (0.1, 100, 10), (0.06, 10, 1), (1, 100, 1), (30, 100, 30), (5, float("inf"), 5), (0, float("inf"), 0)],
)
def test_a_warmup_below_one_is_a_share_of_the_run(warmup, num_steps, steps):
    assert warmup_steps(warmup, num_steps) == steps


def test_a_share_of_a_run_without_an_end_is_refused():
    with pytest.raises(ValueError, match=r"warmup=0.1 is a share of the run, but the run has no end"):
        rates_of(8, lr_schedule="constant", trainer={"max_epochs": -1})
    with pytest.raises(ValueError, match="lr_schedule='linear' needs a run with an end: set max_epochs or max_steps"):
        rates_of(8, lr_schedule="linear", warmup=0, trainer={"max_epochs": -1})
    with pytest.raises(ValueError, match="warmup to be a share below 1 or a number of steps, but got -1"):
        rates_of(8, warmup=-1)


@pytest.mark.parametrize(
    ("trainer", "num_steps"),
    [
        ({"max_epochs": 2}, 14),
        ({"max_epochs": 2, "accumulate_grad_batches": 3}, 6),
        ({"max_steps": 5, "max_epochs": -1}, 5),
        ({"max_epochs": 3, "limit_train_batches": 2}, 6),
    ],
)
def test_the_schedule_ends_with_the_last_optimizer_step(trainer, num_steps):
    rates = rates_of(28, warmup=0, trainer=trainer)  # 7 batches an epoch
    assert rates == pytest.approx([1 - step / num_steps for step in range(num_steps)])


def test_both_groups_of_parameters_keep_their_own_rate():
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (1.0, 0.1)]
    for name in ("linear", "cosine", "one_cycle"):
        optimizer = SGD(groups, lr=1.0)
        schedule = make_schedule(name, optimizer, 10, 0.2)
        for _ in range(10):
            first, second = (group["lr"] for group in optimizer.param_groups)
            assert second == pytest.approx(0.1 * first)
            optimizer.step()
            schedule.step()
        groups = [{"params": group["params"], "lr": rate} for group, rate in zip(groups, (1.0, 0.1), strict=True)]


class Frozen(Callback):
    """Freezes everything, so that no validation is better than the first."""

    def on_train_batch_start(self, trainer, *_):
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["weight_decay"] = 0.0

    def on_before_optimizer_step(self, _trainer, pl_module, *_):
        for parameter in pl_module.parameters():
            parameter.grad = None


@pytest.mark.parametrize(
    "schedule", ["plateau", lambda optimizer: ReduceLROnPlateau(optimizer, factor=0.1, patience=2)]
)
def test_a_plateau_lowers_the_rate_after_validations_without_progress(schedule):
    rates = Rates()
    trainer = trainer_of(rates, Frozen(), max_epochs=9)
    trainer.fit(module_of(lr=1.0, lr_schedule=schedule), loader_of(4), loader_of(8))
    assert rates.seen == pytest.approx([1.0] * 4 + [0.1] * 3 + [0.01] * 2)


def test_a_plateau_counts_validations_in_mid_epoch_too():
    rates = Rates()
    trainer = trainer_of(rates, Frozen(), max_epochs=1, val_check_interval=2)
    trainer.fit(module_of(lr=1.0, lr_schedule="plateau"), loader_of(40), loader_of(8))
    assert rates.seen == pytest.approx([1.0] * 8 + [0.1] * 2)


def test_a_plateau_has_no_part_in_the_sanity_check():
    rates = Rates()
    trainer = trainer_of(rates, Frozen(), max_epochs=5, num_sanity_val_steps=2)
    trainer.fit(module_of(lr=1.0, lr_schedule="plateau"), loader_of(4), loader_of(8))
    assert rates.seen == pytest.approx([1.0] * 4 + [0.1])


def test_a_callable_schedule_is_stepped_each_epoch():
    rates = rates_of(8, lr_schedule=partial(StepLR, step_size=1, gamma=0.5), trainer={"max_epochs": 3})
    assert rates == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.25])


def test_a_callable_schedule_may_say_when_it_is_stepped():
    def schedule(optimizer):
        return {"scheduler": LambdaLR(optimizer, lambda step: 0.5**step), "interval": "step", "frequency": 2}

    assert rates_of(24, lr_schedule=schedule) == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.25])


# optimizers


def test_each_parameter_is_in_one_group_and_norms_biases_and_embeddings_do_not_decay(tiny_bert):
    module = module_of(backbone=TransformersBackbone(str(tiny_bert)), head={"hidden_size": 5})
    for parameter in module.backbone.model.encoder.layer[0].parameters():
        parameter.requires_grad = False
    decayed, left_alone = decay_groups(module, 0.3, 0.2)
    assert (decayed["lr"], decayed["weight_decay"]) == (0.3, 0.2)
    assert (left_alone["lr"], left_alone["weight_decay"]) == (0.3, 0.0)
    names = {parameter: name for name, parameter in module.named_parameters()}
    grouped = [names[parameter] for group in (decayed, left_alone) for parameter in group["params"]]
    assert sorted(grouped) == sorted(names.values())
    exempt = {names[parameter] for parameter in left_alone["params"]}
    assert exempt == {
        name for name in names.values() if name.endswith(".bias") or "LayerNorm" in name or "_embeddings." in name
    }


def test_what_a_timm_model_leaves_alone_does_not_decay():
    module = nn.ModuleDict({"backbone": TimmBackbone("vit_tiny_patch16_224", pretrained=False)})
    left_alone = {id(parameter) for parameter in decay_groups(module, 1.0, 0.1)[1]["params"]}
    names = {
        name for name, parameter in module.named_parameters() if id(parameter) in left_alone and parameter.ndim > 1
    }
    assert names == {"backbone.model.cls_token", "backbone.model.pos_embed"}


def test_tied_weights_are_in_one_group_once():
    module = nn.ModuleDict({"embedding": nn.Embedding(4, 3), "output": nn.Linear(3, 4, bias=False)})
    module["output"].weight = module["embedding"].weight
    (group,) = decay_groups(module, 1.0, 0.1)
    assert (len(group["params"]), group["weight_decay"]) == (1, 0.0)


def test_weight_decay_shrinks_weights_and_no_biases():
    module = module_of(lr=0.1, weight_decay=0.5, lr_schedule="constant", warmup=0, optimizer=SGD)
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    labels = torch.zeros(4, dtype=torch.long)

    class NoGradient(Callback):
        def on_before_optimizer_step(self, _trainer, pl_module, *_):
            for parameter in pl_module.parameters():
                parameter.grad.zero_()

    trainer_of(NoGradient()).fit(module, loader_of(4, labels=labels))
    for name, parameter in module.named_parameters():
        shrunk = 0.95 if parameter.ndim > 1 else 1.0
        torch.testing.assert_close(parameter, shrunk * before[name], msg=name)


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(AdamW, {}), (SGD, {"momentum": 0.9}), (Adam, {"betas": (0.8, 0.9)}), (AdamW, {"lr": 0.02, "weight_decay": 0.3})],
)
def test_any_optimizer_takes_the_rate_and_decay_of_the_module(optimizer, options):
    module = module_of(
        lr=0.02, weight_decay=0.3, lr_schedule="constant", warmup=0, optimizer=partial(optimizer, **options)
    )
    trainer = trainer_of()
    trainer.fit(module, loader_of(4))
    (made,) = trainer.optimizers
    assert type(made) is optimizer
    assert [(group["lr"], group["weight_decay"]) for group in made.param_groups] == [(0.02, 0.3), (0.02, 0.0)]
    for key, value in options.items():
        assert made.defaults[key] == value


@pytest.mark.parametrize(("key", "value"), [("lr", 0.5), ("weight_decay", 0.7)])
def test_an_optimizers_own_rate_would_have_no_effect_and_is_refused(key, value):
    module = module_of(optimizer=partial(AdamW, **{key: value}))
    with pytest.raises(ValueError, match=rf"AdamW's {key}={value} has no effect: FineTuner's {key}="):
        trainer_of().fit(module, loader_of(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, r"lr to be positive, but got 0.0"),
        ({"lr": -1.0}, r"lr to be positive, but got -1.0"),
        ({"lr": float("nan")}, r"lr to be positive, but got nan"),
        ({"weight_decay": -0.1}, r"weight_decay to be at least 0, but got -0.1"),
    ],
)
def test_a_wrong_rate_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        module_of(**options)


def test_an_unknown_schedule_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"lr_schedule.*'cosin'.*'cosine'"):
        module_of(lr_schedule="cosin")


# losses and metrics


def validated(module: FineTuner, loader: DataLoader) -> dict[str, float]:
    return trainer_of().validate(module, loader, verbose=False)[0]


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_the_loss_is_the_mean_over_samples_not_over_batches(stage):
    module = module_of()
    loader = loader_of(10, batch_size=4)  # 4, 4 and 2
    (results,) = getattr(trainer_of(), stage)(module, loader, verbose=False)
    with torch.no_grad():
        whole = next(iter(loader_of(10, batch_size=10)))
        expected = module.eval().head.loss(module(whole), whole["labels"]).item()
        of_batches = np.mean([module.head.loss(module(batch), batch["labels"]).item() for batch in loader])
    prefix = {"validate": "val"}.get(stage, stage)
    assert results[f"{prefix}/loss"] == pytest.approx(expected, rel=1e-6)
    assert results[f"{prefix}/loss"] != pytest.approx(of_batches, rel=1e-6)


def test_metrics_are_those_of_the_whole_epoch():
    module, loader = module_of(3), loader_of(30, labels=torch.arange(30) % 3)
    results = validated(module, loader)
    whole = next(iter(loader_of(30, batch_size=30, labels=torch.arange(30) % 3)))
    with torch.no_grad():
        logits = module.eval()(whole)
    predicted = logits.argmax(1)
    expected = {
        "val/loss": module.head.loss(logits, whole["labels"]).item(),
        "val/accuracy": sklearn_metrics.accuracy_score(whole["labels"], predicted),
        "val/macro_f1": sklearn_metrics.f1_score(whole["labels"], predicted, average="macro"),
        "val/auroc": sklearn_metrics.roc_auc_score(whole["labels"], logits.softmax(1), multi_class="ovr"),
    }
    assert results == pytest.approx(expected, rel=1e-5)
    matrix = sklearn_metrics.confusion_matrix(whole["labels"], predicted)
    assert module.tables["val/confusion_matrix"].tolist() == matrix.tolist()
    assert validated(module, loader) == results  # nothing is left of the first time


def test_metrics_of_a_regression_are_those_of_the_whole_epoch():
    labels = torch.linspace(-1, 1, 30) ** 3
    module, loader = module_of(None, "regression"), loader_of(30, labels=labels)
    results = validated(module, loader)
    with torch.no_grad():
        numbers = torch.cat([module.eval()(batch)[:, 0] for batch in loader])
    expected = {
        "val/loss": sklearn_metrics.mean_squared_error(labels, numbers),
        "val/r2": sklearn_metrics.r2_score(labels, numbers),
        "val/mae": sklearn_metrics.mean_absolute_error(labels, numbers),
        "val/pearson": pearsonr(labels, numbers).statistic,
        "val/spearman": spearmanr(labels, numbers).statistic,
    }
    assert results == pytest.approx(expected, rel=1e-4)


def test_a_regression_of_several_numbers_measures_them_as_they_are():
    labels = torch.rand(30, 2, generator=torch.Generator().manual_seed(0))
    module, loader = module_of(2, "regression"), loader_of(30, labels=labels)
    results = validated(module, loader)
    with torch.no_grad():
        numbers = torch.cat([module.eval()(batch) for batch in loader])
    assert results["val/loss"] == pytest.approx(sklearn_metrics.mean_squared_error(labels, numbers), rel=1e-4)
    assert results["val/r2"] == pytest.approx(sklearn_metrics.r2_score(labels, numbers), rel=1e-4)


def test_metrics_of_several_classes_are_those_of_the_whole_epoch():
    labels = torch.randint(0, 2, (30, 3), generator=torch.Generator().manual_seed(0)).float()
    module, loader = module_of(3, "multilabel"), loader_of(30, labels=labels)
    results = validated(module, loader)
    with torch.no_grad():
        logits = torch.cat([module.eval()(batch) for batch in loader])
    expected = {
        "val/loss": nn.functional.binary_cross_entropy_with_logits(logits, labels).item(),
        "val/accuracy": ((logits > 0) == labels.bool()).float().mean().item(),
        "val/macro_f1": sklearn_metrics.f1_score(labels, logits > 0, average="macro"),
        "val/auroc": sklearn_metrics.roc_auc_score(labels, logits),
    }
    assert results == pytest.approx(expected, rel=1e-5)


def test_the_training_loss_is_logged_each_step():
    losses = []

    class Losses(Callback):
        def on_train_batch_end(self, trainer, _module, outputs, *_):
            losses.append((trainer.callback_metrics["train/loss"].item(), outputs["loss"].item()))

    trainer_of(Losses()).fit(module_of(), loader_of(12))
    assert len(losses) == 3
    assert all(logged == loss for logged, loss in losses)


# how it trains


def weights_after(batch_size: int, **options) -> dict[str, Tensor]:
    module = module_of(lr=0.1, warmup=0, optimizer=SGD)
    trainer_of(max_epochs=2, **options).fit(module, loader_of(16, batch_size))
    return dict(module.named_parameters())


def test_accumulated_batches_train_as_one_larger_batch_does():
    accumulated, whole = weights_after(2, accumulate_grad_batches=4), weights_after(8)
    untrained = dict(module_of().named_parameters())
    for name, parameter in whole.items():
        torch.testing.assert_close(accumulated[name], parameter, msg=name)
        assert not torch.equal(parameter, untrained[name])


def test_bf16_mixed_trains_nearly_as_full_precision_does():
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        module = module_of(lr=0.05)
        trainer = trainer_of(precision=precision, max_epochs=4)
        trainer.fit(module, loader_of(64, 8), loader_of(32))
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
        losses[precision] = trainer.callback_metrics["val/loss"].item()
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.1)
    assert losses["bf16-mixed"] < 0.69  # it has learnt


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_backbone_trains_as_a_plain_one_does():
    weights, compiled = [], []
    for flag in (False, True):
        module = module_of(lr=0.05, compile=flag)
        trainer_of(max_epochs=1).fit(module, loader_of(20, 8), loader_of(6))
        weights.append(module.state_dict())
        compiled.append(module.backbone._compiled_call_impl is not None)
    assert compiled == [False, True]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, msg=name, rtol=1e-4, atol=1e-5)


def test_a_second_fit_goes_on():
    module = module_of(lr=0.05)
    for _ in range(2):
        before = module.head.layers[-1].weight.clone()
        trainer_of().fit(module, loader_of(8), loader_of(8))
        assert not torch.equal(module.head.layers[-1].weight, before)


# data and checkpoints


class NamedData(LightningDataModule):
    """Data that knows its labels."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.labels = Labels("multiclass", names)

    def train_dataloader(self):
        return loader_of(8)

    val_dataloader = predict_dataloader = train_dataloader


def test_names_of_classes_come_from_the_data_and_go_into_predictions():
    module, data = module_of(), NamedData(("bad", "good"))
    trainer = trainer_of()
    trainer.fit(module, datamodule=data)
    assert module.label_names == ("bad", "good")
    rows = [row for batch in trainer.predict(module, datamodule=data) for row in batch]
    assert len(rows) == 8
    assert {tuple(row["probabilities"]) for row in rows} == {("bad", "good")}


def test_data_of_another_number_of_classes_is_refused():
    with pytest.raises(ValueError, match="SequenceClassificationHead has num_classes=2, but the data has 3: a, b, c"):
        trainer_of().fit(module_of(), datamodule=NamedData(("a", "b", "c")))


def test_a_checkpoint_holds_names_backbone_and_random_states_as_plain_data(tmp_path):
    module, data = module_of(), NamedData(("bad", "good"))
    trainer = trainer_of()
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    checkpoint = torch.load(tmp_path / "module.ckpt", weights_only=True)
    assert checkpoint["label_names"] == ["bad", "good"]
    assert checkpoint["backbone"] == {"name": "toy"}
    assert [sorted(state) for state in checkpoint["rng"]] == [["cuda", "numpy", "python", "torch"]]


def test_a_module_made_in_python_is_loaded_with_its_parts_given_again(tmp_path):
    module = module_of(lr=0.07, weight_decay=0.03, warmup=3)
    trainer = trainer_of()
    trainer.fit(module, datamodule=NamedData(("bad", "good")))
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    head = partial(SequenceClassificationHead, num_classes=2, dropout=0.0)
    again = FineTuner.load_from_checkpoint(tmp_path / "module.ckpt", backbone=ToyBackbone(), head=head)
    assert (again.lr, again.weight_decay, again.warmup, again.label_names) == (0.07, 0.03, 3, ("bad", "good"))
    batch = next(iter(loader_of(6)))
    assert torch.equal(again.eval()(batch), module.eval()(batch))


def test_a_checkpoint_of_another_module_is_refused_by_its_first_tensor(tmp_path):
    module = module_of(2)
    trainer = trainer_of()
    trainer.fit(module, loader_of(4))
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    message = r"of another model: 2 tensors differ, the first is 'head.layers.1.(bias|weight)' \(checkpoint: \(2,"
    with pytest.raises(ValueError, match=message):
        trainer_of().validate(module_of(3), loader_of(4), ckpt_path=str(tmp_path / "module.ckpt"), weights_only=True)


def test_a_commands_run_is_loaded_in_python_and_predicts_the_same(command, reviews, tiny_bert, tmp_path):
    recipe = {
        "seed_everything": 1,
        "model": {
            "backbone": {"class_path": "TransformersBackbone", "init_args": {"name": str(tiny_bert)}},
            "head": {"class_path": "SequenceClassificationHead", "init_args": {"pooling": "cls", "hidden_size": 7}},
            "lr": 0.003,
        },
        "data": {"class_path": "TextClassificationData", "init_args": {"train_file": str(reviews())}},
        "trainer": {"max_epochs": 1, "logger": False},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert command("fit", "--config", tmp_path / "recipe.yaml").code == 0
    new = reviews("new.csv", num_rows=9, seed=1)
    line = ("--run", "last", "--data.predict_file", new, "--predictions.file", tmp_path / "labelled.jsonl")
    assert command("predict", *line).code == 0
    (path,) = (tmp_path / "runs").glob("*/checkpoints/best.ckpt")
    module = FineTuner.load_from_checkpoint(path).eval()
    assert (module.head.pooling, module.lr, module.label_names) == ("cls", 0.003, ("bad", "good"))
    texts = [line.rpartition(",")[0] for line in new.read_text().splitlines()[1:]]
    batch = module.backbone.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        rows = module.predict_step(dict(batch), 0)
    written = [yaml.safe_load(row) for row in (tmp_path / "labelled.jsonl").read_text().splitlines()]
    for ours, theirs in zip(rows, written, strict=True):
        assert ours["prediction"] == theirs["prediction"]
        assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-5)


def test_an_optimizer_updates_in_one_kernel_unless_its_user_chose_otherwise():
    from lightning_ft.optimizers import fuse

    def updated(**options):
        torch.manual_seed(0)
        layer = torch.nn.Linear(8, 8)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, **options)
        fuse(optimizer)
        for _ in range(3):
            layer(torch.ones(2, 8)).square().sum().backward()
            optimizer.step()
        return optimizer.param_groups[0]["fused"], layer.weight.detach()

    (fused, ours), (plain, theirs) = updated(), updated(fused=False)
    assert (fused, plain) == (True, False)
    torch.testing.assert_close(ours, theirs)


def test_sums_of_metrics_stay_in_32_bits_and_counts_stay_whole():
    module = module_of()
    module.bfloat16().to("cpu").to(torch.bfloat16)
    states = {
        f"{type(metric).__name__}.{name}": getattr(metric, name)
        for metric in module.modules()
        if isinstance(metric, Metric)
        for name in metric._defaults
    }
    kinds = {name: value.dtype for name, value in states.items() if isinstance(value, torch.Tensor)}
    assert kinds["MulticlassConfusionMatrix.confmat"] == torch.int64
    assert kinds["MeanMetric.mean_value"] == torch.float32
    assert torch.bfloat16 not in kinds.values()
