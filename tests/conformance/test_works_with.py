"""Law 7: the user's things stay the user's: precision, clipping, accumulation, compile, checkpoints, loggers."""

import csv
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from nets import Net, Seen, loader, tensors, trainer
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim import lr_scheduler as schedulers
from torch.utils.checkpoint import checkpoint

from lightning_ft_callbacks import DiscriminativeLR, GradualUnfreezing

BLOCKS = ["layers.0", "layers.1", "layers.2", "head"]
SCALES = {"layers.0": 0.125, "layers.1": 0.25, "layers.2": 0.5, "head": 1.0}


def moved_in_each_epoch(values: list[dict[str, torch.Tensor]], batches: int = 4) -> list[set[str]]:
    """Return the blocks of which anything moved in each epoch, given their tensors after each batch, from the start."""
    ends = values[::batches]
    return [
        {
            block
            for block in BLOCKS
            if any(not torch.equal(old[n].to(new[n]), new[n]) for n in old if n.startswith(block))
        }
        for old, new in pairwise(ends)
    ]


def fit_net(*callbacks: Callback, module: Net | None = None, **options: Any) -> tuple[Net, list[set[str]]]:
    """Train a net gradually for five epochs, and return it with the blocks that moved in each epoch."""
    module = module or Net(lambda parameters: AdamW(parameters, lr=0.05))
    before = tensors(module)
    seen = Seen(lambda *_: tensors(module))
    trainer(*callbacks, seen, **({"max_epochs": 5} | options)).fit(module, loader(), loader())
    return module, moved_in_each_epoch([before, *seen.values])


GRADUAL = [set(BLOCKS[3:]), set(BLOCKS[2:]), set(BLOCKS[1:]), set(BLOCKS), set(BLOCKS)]


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"precision": "64-true"},
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"accumulate_grad_batches": 3},
        {"detect_anomaly": True},
        {"val_check_interval": 0.5},
        {"reload_dataloaders_every_n_epochs": 1},
        {"precision": "bf16-mixed", "gradient_clip_val": 0.1, "accumulate_grad_batches": 2},
    ],
    ids=str,
)
def test_each_phase_trains_its_blocks_and_no_other_with_the_trainers_options(options: dict[str, Any]) -> None:
    _, moved = fit_net(GradualUnfreezing("gradual"), DiscriminativeLR(0.9), **options)
    assert moved == GRADUAL


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_is_that_of_an_optimizer_with_real_groups_bitwise(algorithm: str) -> None:
    def grouped(module: Net) -> SGD:
        return SGD([{"params": list(module.get_submodule(n).parameters()), "lr": 0.1 * s} for n, s in SCALES.items()])

    results = []
    for ours in (True, False):
        torch.manual_seed(0)
        module = Net(lambda parameters: SGD(parameters, lr=0.1), dropout=0.0)
        if not ours:
            module.make_optimizer = lambda _, module=module: grouped(module)
        options = {"gradient_clip_val": 0.05, "gradient_clip_algorithm": algorithm, "max_epochs": 2}
        trainer(*([DiscriminativeLR(0.5)] if ours else []), **options).fit(module, loader())
        results.append(tensors(module))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_the_norm_that_is_clipped_is_that_of_the_trained_blocks_alone() -> None:
    norms: list[float] = []
    module = Net(lambda parameters: SGD(parameters, lr=0.1))

    def note(optimizer: Any) -> None:
        gradients = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        assert {id(g) for g in gradients} == {id(p.grad) for p in module.head.parameters()}
        norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))

    seen = Seen(lambda *_: note(module.optimizers()))
    trainer(GradualUnfreezing([{"train": ["head"]}]), seen, max_epochs=1, gradient_clip_val=1e-3).fit(module, loader())
    assert norms == pytest.approx([1e-3] * 4, rel=1e-2)


@pytest.mark.parametrize(
    ("accumulate", "phases"),
    [(1, [0, 0, 1, 1, 1, 1, 1, 1]), (2, [0, 0, 0, 0, 1, 1, 1, 1]), (3, [0, 0, 0, 0, 1, 1, 1, 1])],
)
def test_a_phase_of_steps_counts_updates_and_not_batches(accumulate: int, phases: list[int]) -> None:
    callback = GradualUnfreezing([{"train": ["head"], "steps": 2}, {"train": ["*"]}])
    seen = Seen(lambda *_: callback.phase)
    trainer(callback, seen, max_epochs=2, accumulate_grad_batches=accumulate).fit(Net(), loader())
    assert seen.values == phases


class Counting:
    """A backend that runs what it is given as it is, and counts what is compiled."""

    def __init__(self) -> None:
        self.num_compiled = 0

    def __call__(self, graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        self.num_compiled += 1
        return graph.forward


@pytest.fixture
def fresh_compiler() -> Any:
    """Forget what earlier tests compiled, and the limits that were raised."""
    before = torch._dynamo.config.recompile_limit
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = before


def compiled(part: str, backend: Any) -> tuple[Net, Any, int]:
    """Return a net, what is to be fitted, and the number of its parts that are compiled."""
    module = Net(lambda parameters: AdamW(parameters, lr=0.05))
    if part == "the module":
        return module, torch.compile(module, backend=backend), 1
    parts = list(module.layers) if part == "each layer" else [module]
    for each in parts:
        each.compile(backend=backend)
    return module, module, len(parts)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    "part",
    [
        "the module",
        "each layer",
        "the whole in place",
    ],
)
def test_each_phase_of_a_compiled_module_trains_its_blocks_and_no_other(part: str) -> None:
    module, fitted, _ = compiled(part, Counting())
    before = tensors(module)
    after = Seen(lambda *_: tensors(module))
    trainer(GradualUnfreezing("gradual"), DiscriminativeLR(0.9), after, max_epochs=5).fit(fitted, loader())
    assert moved_in_each_epoch([before, *after.values]) == GRADUAL


def test_before_the_first_step_nothing_has_moved_though_a_step_is_bound_to_the_module() -> None:
    module = Net()
    step = module.training_step
    module.training_step = lambda batch, batch_idx: step(batch, batch_idx)  # type: ignore[method-assign]
    before = tensors(module)
    moved: list[bool] = []
    module.on_train_start = lambda: moved.extend(  # type: ignore[method-assign]
        not torch.equal(tensor, before[name]) for name, tensor in tensors(module).items()
    )
    trainer(GradualUnfreezing("gradual"), max_epochs=1).fit(module, loader())
    assert moved
    assert not any(moved)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("part", ["each layer", "the whole in place"])
def test_a_compiled_module_is_compiled_no_more_than_once_a_phase(part: str) -> None:
    backend = Counting()
    _, fitted, num_parts = compiled(part, backend)
    counts = Seen(lambda *_: backend.num_compiled)
    trainer(GradualUnfreezing("gradual"), DiscriminativeLR(0.9), counts, max_epochs=5).fit(fitted, loader())
    assert 0 < counts.values[0] <= num_parts
    assert counts.values[-1] <= 4 * num_parts
    # within a phase only its first batch may compile
    assert all(len(set(counts.values[4 * epoch : 4 * epoch + 4])) == 1 for epoch in range(5))


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_steps_are_compiled_once_more_for_each_further_phase() -> None:
    counts = []
    for callbacks in ([], [GradualUnfreezing("gradual"), DiscriminativeLR(0.9)]):
        torch._dynamo.reset()
        backend = Counting()
        _, fitted, _ = compiled("the module", backend)
        seen = Seen(lambda _, __, backend=backend: backend.num_compiled)
        trainer(*callbacks, seen, max_epochs=5).fit(fitted, loader(), loader())
        counts.append(seen.values)
    plain, ours = counts  # dynamo itself compiles anew when the batch's number changes
    assert ours[3] == plain[3]
    assert ours[-1] - plain[-1] == 3 * 2  # of training and of validation
    assert all(len(set(ours[4 * epoch : 4 * epoch + 4])) == 1 for epoch in range(1, 5))


@pytest.mark.usefixtures("fresh_compiler")
def test_fifteen_different_phases_are_within_the_compilers_limit() -> None:
    module = Net(lambda parameters: SGD(parameters, lr=0.01))
    module.compile(backend="eager")
    schedule = [
        {"train": [block for bit, block in enumerate(BLOCKS) if number >> bit & 1], "steps": 2}
        for number in range(1, 16)
    ]
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        trainer(GradualUnfreezing(schedule), max_epochs=9).fit(module, loader())


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_module_learns_as_one_that_is_not(backend: str) -> None:
    results = []
    for is_compiled in (True, False):
        torch.manual_seed(0)
        module = Net(lambda parameters: SGD(parameters, lr=0.05), dropout=0.0)
        if is_compiled:
            module.compile(backend=backend)
        trainer(GradualUnfreezing("gradual"), DiscriminativeLR(0.5), max_epochs=5).fit(module, loader())
        results.append(tensors(module))
    for name, tensor in results[0].items():
        torch.testing.assert_close(tensor, results[1][name], rtol=1e-4, atol=1e-5)


def test_a_non_reentrant_checkpoint_changes_nothing_bitwise() -> None:
    class Checkpointed(Net):
        def forward(self, inputs: Any) -> Any:
            for layer in self.layers:
                inputs = torch.relu(checkpoint(layer, inputs, use_reentrant=False)) + inputs
            return self.head(inputs)

    results = []
    for kind in (Net, Checkpointed):
        torch.manual_seed(0)
        module, moved = fit_net(
            GradualUnfreezing("gradual"), DiscriminativeLR(0.9), module=kind(lambda p: SGD(p, lr=0.1), norm=False)
        )
        assert moved == GRADUAL
        results.append(tensors(module))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def settings_of(callback: Any) -> dict[str, Any]:
    """Return what a user can set of a checkpoint or early stop, by the names of its constructor's arguments."""
    names = ("monitor", "mode", "patience", "min_delta", "save_top_k", "save_last", "filename", "save_weights_only")
    private = ("_every_n_epochs", "_every_n_train_steps", "_check_on_train_epoch_end", "_save_on_train_epoch_end")
    return {name: getattr(callback, name) for name in (*names, *private) if hasattr(callback, name)}


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("restore_best", [True, False])
def test_several_checkpoints_and_early_stops_keep_their_settings(
    ours_first: bool, restore_best: bool, tmp_path: Path
) -> None:
    theirs: list[Callback] = [
        ModelCheckpoint(tmp_path / "loss", "{epoch}", "val/loss", save_top_k=2, save_on_train_epoch_end=False),
        ModelCheckpoint(tmp_path / "train", "{step}", "train/loss", mode="max", save_last=True),
        ModelCheckpoint(tmp_path / "all", "{step}", every_n_train_steps=3, save_top_k=-1),
        EarlyStopping("val/loss", patience=50, min_delta=0.1, check_on_train_epoch_end=False),
        EarlyStopping("train/loss", patience=60, mode="max", check_on_train_epoch_end=True),
    ]
    before = [settings_of(callback) for callback in theirs]
    ours: list[Callback] = [GradualUnfreezing("gradual", restore_best=restore_best), DiscriminativeLR(0.9)]
    fit = trainer(*(ours + theirs if ours_first else theirs + ours), max_epochs=4, enable_checkpointing=True)
    fit.fit(Net(), loader(), loader())
    assert [settings_of(callback) for callback in theirs] == before
    assert [type(c) for c in fit.callbacks if isinstance(c, ModelCheckpoint)] == [ModelCheckpoint] * 3
    assert [type(c) for c in fit.callbacks if isinstance(c, EarlyStopping)] == [EarlyStopping] * 2
    assert [stop.stopped_epoch for stop in fit.early_stopping_callbacks] == [0, 0]
    assert {path.name: len(list(path.glob("*.ckpt"))) for path in tmp_path.iterdir()} == {
        "loss": 2,
        "train": 2,
        "all": 5,
    }


@pytest.mark.parametrize("ours_first", [True, False])
def test_an_early_stop_stops_in_whatever_phase(ours_first: bool) -> None:
    unfreezing = GradualUnfreezing("gradual")
    stop = EarlyStopping("val/loss", patience=1, min_delta=100.0)
    fit = trainer(*([unfreezing, stop] if ours_first else [stop, unfreezing]), max_epochs=9, num_sanity_val_steps=0)
    fit.fit(Net(), loader(), loader())
    assert (fit.current_epoch, unfreezing.phase) == (2, 1)


def rows(folder: Path) -> list[dict[str, str]]:
    (file,) = folder.rglob("metrics.csv")
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def column(folder: Path, name: str) -> list[float]:
    return [float(row[name]) for row in rows(folder) if row[name]]


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_learning_rate_monitor_shows_the_base_rate(ours_first: bool, tmp_path: Path) -> None:
    ours: list[Callback] = [GradualUnfreezing("gradual", ramp_steps=2), DiscriminativeLR(0.5)]
    monitor: list[Callback] = [LearningRateMonitor("step")]
    module = Net(
        lambda parameters: SGD(parameters, lr=0.1),
        lambda o: {"scheduler": schedulers.ExponentialLR(o, 0.9), "interval": "step"},
    )
    logger = CSVLogger(tmp_path)
    trainer(*(ours + monitor if ours_first else monitor + ours), max_epochs=2, logger=logger).fit(module, loader())
    bases = [0.1 * 0.9**step for step in range(8)]
    assert column(tmp_path, "lr-SGD") == pytest.approx(bases)
    assert column(tmp_path, "lr/head") == pytest.approx(bases)
    assert column(tmp_path, "lr/layers.2") == pytest.approx(
        [rate * 0.5 * ramp for rate, ramp in zip(bases[4:], [0.5, 1.0, 1.0, 1.0], strict=True)]
    )


def test_loggers_get_the_rate_of_each_trained_block_and_the_phase(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path / "one"), CSVLogger(tmp_path / "two")]
    fit = trainer(
        GradualUnfreezing([{"train": ["head"], "steps": 6}, {"train": ["layers.0", "head"]}]),
        DiscriminativeLR(0.5),
        max_epochs=3,
        logger=loggers,
        log_every_n_steps=2,
    )
    fit.fit(Net(lambda parameters: SGD(parameters, lr=0.1)), loader(), loader())
    for folder in (tmp_path / "one", tmp_path / "two"):
        logged = [row for row in rows(folder) if row["phase"]]
        assert {name for name in logged[0] if name.startswith("lr/")} == {"lr/head", "lr/layers.0"}
        assert [(float(row["phase"]), float(row["lr/head"]), row["lr/layers.0"]) for row in logged] == [
            *[(0.0, 0.1, "")] * 3,
            *[(1.0, 0.1, "0.0125")] * 3,
        ]
        assert [row["step"] for row in rows(folder) if row["train/loss"]] == [row["step"] for row in logged]


def test_under_accumulation_a_row_is_logged_once_an_update(tmp_path: Path) -> None:
    fit = trainer(GradualUnfreezing("full"), max_epochs=2, logger=CSVLogger(tmp_path), accumulate_grad_batches=2)
    fit.fit(Net(), loader())
    assert len(column(tmp_path, "phase")) == len(column(tmp_path, "lr/head")) == fit.global_step == 4


@pytest.mark.parametrize(
    ("options", "num_steps"),
    [
        ({"fast_dev_run": True}, 1),
        ({"fast_dev_run": 3}, 3),
        ({"overfit_batches": 2, "max_epochs": 3}, 6),
        ({"overfit_batches": 0.5, "max_epochs": 3}, 6),
        ({"limit_train_batches": 3, "max_epochs": 2}, 6),
        ({"limit_train_batches": 0.25, "max_epochs": 3}, 3),
    ],
    ids=str,
)
def test_a_fit_cut_short_trains_as_far_as_it_goes(options: dict[str, Any], num_steps: int) -> None:
    module = Net(lambda parameters: AdamW(parameters, lr=0.05))
    before = tensors(module)
    callback = GradualUnfreezing([{"train": ["head"], "epochs": 9}, {"train": ["*"], "epochs": 9}, {"train": ["head"]}])
    fit = trainer(callback, DiscriminativeLR(0.5), **options)
    fit.fit(module, loader(), loader())
    assert fit.global_step == num_steps
    assert callback.phase == 0
    changed = {name for name, tensor in tensors(module).items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight", "head.bias"}
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_phases_of_epochs_count_the_epochs_of_a_limited_fit() -> None:
    callback = GradualUnfreezing("gradual")
    seen = Seen(lambda *_: callback.phase)
    trainer(callback, seen, max_epochs=4, limit_train_batches=2).fit(Net(), loader())
    assert seen.values == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("what", ["validate", "test", "predict"])
def test_validate_test_and_predict_freeze_nothing(what: str) -> None:
    module = Net()
    flags: list[bool] = []
    for step in ("validation_step", "test_step", "predict_step"):
        setattr(module, step, lambda *_: flags.append(all(p.requires_grad for p in module.parameters())))
    getattr(trainer(GradualUnfreezing("linear_probe"), DiscriminativeLR(0.5)), what)(module, loader())
    assert flags
    assert all(flags)


def test_a_module_in_eval_mode_by_its_user_stays_so_in_a_trained_block() -> None:
    module = Net()
    module.layers[0].eval()
    before = tensors(module)
    modes: list[bool] = []
    seen = Seen(lambda *_: modes.append(any(part.training for part in module.layers[0].modules())))
    trainer(GradualUnfreezing("full"), seen, max_epochs=2).fit(module, loader(), loader())
    norm: Any = module.layers[0]
    assert isinstance(norm[1], nn.BatchNorm1d)
    assert not any(modes)
    assert torch.equal(norm[1].running_mean, before["layers.0.1.running_mean"])
    assert not torch.equal(norm[0].weight, before["layers.0.0.weight"])
