"""What holds for any module, any schedule, any scheduler and any stop: drawn at random."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from lightning.pytorch import Callback, LightningModule, Trainer
from nets import Seen, trainer
from schedulefree import SGDScheduleFree
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim import lr_scheduler as schedulers
from torch.utils.data import DataLoader

from lightning_ft_callbacks import BlockMap, DiscriminativeLR, FreezeSchedule, GradualUnfreezing, Phase

WIDTH, BATCHES = 3, 4
DRAWN = settings(
    max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "constant": lambda o: schedulers.ConstantLR(o, factor=1.0),
    "warm-up": lambda o: schedulers.LinearLR(o, 0.1, 1.0, 5),
    "exponential": lambda o: schedulers.ExponentialLR(o, 0.8),
    "steps": lambda o: schedulers.StepLR(o, 3, gamma=0.5),
    "restarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 3),
    "one cycle": lambda o: schedulers.OneCycleLR(o, 0.05, total_steps=99, cycle_momentum=False),
    "of lists": lambda o: schedulers.LambdaLR(
        o, [lambda step, number=number: 1 / (1 + number + step) for number in range(len(o.param_groups))]
    ),
}


class Node(nn.Module):
    """A part with children, and perhaps a parameter of its own."""

    def __init__(self, parts: list[nn.Module], scaled: bool) -> None:
        super().__init__()
        if scaled:
            self.scale = nn.Parameter(torch.full((WIDTH,), 0.9))
        for number, part in enumerate(parts):
            self.add_module(f"part{number}", part)


def build(spec: Any) -> nn.Module:
    """Return the module that a drawn tree describes."""
    if spec == "linear":
        return nn.Linear(WIDTH, WIDTH)
    if spec == "norm":
        return nn.BatchNorm1d(WIDTH)
    kind, parts = spec
    made = [build(part) for part in parts]
    kinds = {"sequential": lambda: nn.Sequential(*made), "list": lambda: nn.ModuleList(made)}
    return kinds.get(kind, lambda: Node(made, kind == "scaled"))()


def run_through(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return what comes out of a drawn tree."""
    if isinstance(module, nn.Linear):
        return inputs + torch.tanh(module(inputs))
    if isinstance(module, nn.BatchNorm1d):
        return module(inputs)
    if isinstance(scale := getattr(module, "scale", None), nn.Parameter):
        inputs = inputs * scale
    for child in module.children():
        inputs = run_through(child, inputs)
    return inputs


def noting(base: type[Optimizer]) -> Any:
    """Return an optimizer that notes the rates and parameters of its groups in each update."""

    class Noting(base):
        def step(self, closure: Any = None) -> Any:
            loss = closure()
            now = [(g["lr"], [id(p) for p in g["params"]]) for g in self.param_groups]
            self.__dict__.setdefault("used", []).append(now)
            super().step()
            return loss

    return Noting


class Drawn(LightningModule):
    """A drawn tree and a head, trained by an optimizer with drawn groups."""

    def __init__(self, tree: Any, tied: bool, optimizer: type[Optimizer], num_groups: int, scheduler: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = build(tree)
        self.head = nn.Linear(WIDTH, 2)
        linears = [part for part in self.body.modules() if isinstance(part, nn.Linear)]
        if tied and len(linears) > 1:
            linears[-1].weight = linears[0].weight
        self.optimizer, self.num_groups, self.scheduler = optimizer, num_groups, scheduler
        self.bases: list[dict[int, float]] = []

    def training_step(self, batch: Any, *_: Any) -> Tensor:
        inputs, target = batch
        return nn.functional.cross_entropy(self.head(run_through(self.body, inputs)), target)

    def on_train_start(self) -> None:
        for optimizer in self.trainer.optimizers:
            if isinstance(optimizer, SGDScheduleFree):
                optimizer.train()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self.bases.append({id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]})

    def configure_optimizers(self) -> Any:
        every = list(self.parameters())
        groups = [
            {"params": every[number :: self.num_groups], "lr": 0.01 * (1 + number)}
            for number in range(min(self.num_groups, len(every)))
        ]
        optimizer = noting(self.optimizer)(groups, lr=0.01, weight_decay=0.1)
        return [optimizer], [{"scheduler": SCHEDULERS[self.scheduler](optimizer), "interval": "step"}]


trees = st.recursive(
    st.sampled_from(["linear", "norm"]),
    lambda parts: st.tuples(
        st.sampled_from(["sequential", "list", "plain", "scaled"]), st.lists(parts, min_size=1, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def modules(draw: Any) -> Callable[[], Drawn]:
    """Draw a module, as a function that makes it anew with the same weights."""
    choice = (
        draw(trees),
        draw(st.booleans()),
        draw(st.sampled_from([SGD, AdamW, SGDScheduleFree])),
        draw(st.integers(1, 3)),
        draw(st.sampled_from(sorted(SCHEDULERS))),
    )
    return lambda: Drawn(*choice)


def phases(names: tuple[str, ...]) -> Any:
    """Draw phases, each of any blocks, so that blocks are frozen again too."""
    train = st.lists(st.sampled_from(names), min_size=1, unique=True)
    end = st.one_of(
        st.integers(1, 2).map(lambda count: {"epochs": count}), st.integers(1, 6).map(lambda count: {"steps": count})
    )
    ending = st.tuples(train, end).map(lambda both: Phase(both[0], **both[1]))
    return st.tuples(st.lists(ending, max_size=4), train).map(lambda both: [*both[0], Phase(both[1])])


class Update(NamedTuple):
    """What must hold at an update: the blocks that are trained, and the share of its rate that each has."""

    trained: frozenset[str]
    ramp: dict[str, float]


def expected_updates(schedule: list[Phase], epochs: int, accumulate: int, ramp_steps: int) -> list[Update]:
    """Return what must hold at each update, found by walking through the batches."""
    updates: list[Update] = []
    number, start_epoch, start_step = 0, 0, 0
    thawed: dict[str, int] = {}
    for epoch in range(epochs):
        for batch in range(BATCHES):
            while number < len(schedule) - 1:
                phase = schedule[number]
                done = epoch - start_epoch if phase.epochs else len(updates) - start_step
                if done < (phase.epochs or phase.steps or 0):
                    break
                old, new = set(phase.train), set(schedule[number + 1].train)
                thawed = {name: at for name, at in thawed.items() if name in new}
                thawed |= dict.fromkeys(new - old, len(updates))
                number, start_epoch, start_step = number + 1, epoch, len(updates)
            if (batch + 1) % accumulate == 0 or batch + 1 == BATCHES:
                trained = frozenset(schedule[number].train)
                since = {name: len(updates) - thawed[name] + 1 for name in trained & thawed.keys()}
                ramp = {name: min(1.0, count / ramp_steps) if ramp_steps else 1.0 for name, count in since.items()}
                updates.append(Update(trained, {name: ramp.get(name, 1.0) for name in trained}))
    return updates


def batches() -> DataLoader:
    """Return the same batch again and again, so that it does not matter where a run begins."""
    inputs = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))
    return DataLoader([(inputs, (inputs.sum(1) > 0).long())] * BATCHES, batch_size=None)  # type: ignore[arg-type]


def weights_and_statistics(_: Trainer, module: LightningModule) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


@DRAWN
@given(data=st.data(), make=modules())
def test_every_trained_parameter_has_the_rate_of_its_block_and_frozen_ones_stand_still(
    data: st.DataObject, make: Callable[[], Drawn]
) -> None:
    module = make()
    blocks = BlockMap.of(module)
    schedule = data.draw(phases(blocks.names))
    accumulate, ramp_steps = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 3))
    scales = data.draw(st.dictionaries(st.sampled_from(blocks.names), st.sampled_from([0.0, 0.1, 1.0, 2.0])))
    frozen_by_user = data.draw(st.sampled_from([None, *(name for name, _ in module.named_parameters())]))
    if frozen_by_user is not None:
        module.get_parameter(frozen_by_user).requires_grad_(False)
    assume(all(any(p.requires_grad for name in phase.train for p in blocks.parameters(name)) for phase in schedule))
    pair: list[Callback] = [
        GradualUnfreezing(FreezeSchedule(schedule, preset="drawn"), ramp_steps=ramp_steps),
        DiscriminativeLR(scales=scales) if scales else DiscriminativeLR(0.5),
    ]
    scale = {name: scales.get(name, 1.0) for name in blocks.names}
    if not scales:
        scale = {name: 0.5**power for power, name in enumerate(reversed(blocks.names))}
    owners, names = blocks.owners(), {id(p): name for name, p in module.named_parameters()}
    can_learn = {key for key in owners if names[key] != frozen_by_user}
    start = weights_and_statistics(None, module)  # type: ignore[arg-type]
    seen = Seen(weights_and_statistics)
    fit = trainer(*data.draw(st.permutations(pair)), seen, max_epochs=4, accumulate_grad_batches=accumulate)
    fit.fit(module, batches())

    expected = expected_updates(schedule, 4, accumulate, ramp_steps)
    used = fit.optimizers[0].used  # type: ignore[attr-defined]
    assert len(used) == len(expected) == len(module.bases)
    for update, groups, bases in zip(expected, used, module.bases, strict=True):
        rates = [(key, rate) for rate, inside in groups for key in inside if key in can_learn]
        assert len(rates) == len(dict(rates)), "a parameter is in two groups"
        trained = {key for key in can_learn if owners[key] in update.trained}
        assert trained <= dict(rates).keys(), "a trained parameter is in no group"
        for key in trained:
            assert dict(rates)[key] == pytest.approx(bases[key] * scale[owners[key]] * update.ramp[owners[key]])

    ends = [seen.values[epoch * BATCHES + batch] for epoch in range(4) for batch in ends_of_updates(accumulate)]
    for update, before, after in zip(expected, [start, *ends], ends, strict=False):
        for module_path, part in module.named_modules():
            if any(owner not in update.trained for owner in owned_by(part, owners)):
                inside = [f"{module_path}.{name}" for name, _ in part.named_buffers(recurse=False)]
                assert all(torch.equal(before[name], after[name]) for name in inside), "a statistic moved"
        for key, name in names.items():
            if key not in can_learn or owners[key] not in update.trained:
                assert torch.equal(before[name], after[name]), f"{name} moved"


def ends_of_updates(accumulate: int) -> list[int]:
    return [batch for batch in range(BATCHES) if (batch + 1) % accumulate == 0 or batch + 1 == BATCHES]


def owned_by(part: nn.Module, owners: dict[int, str]) -> set[str]:
    return {owners[id(parameter)] for parameter in part.parameters(recurse=False)}


@DRAWN
@given(make=modules())
def test_every_parameter_is_in_exactly_one_block_and_every_block_has_one(make: Callable[[], Drawn]) -> None:
    module = make()
    blocks = BlockMap.of(module)
    inside = [id(p) for name in blocks.names for p in blocks.parameters(name)]
    assert sorted(inside) == sorted(id(p) for p in module.parameters())
    assert all(blocks.parameters(name) for name in blocks.names)
    assert blocks.names[-1].startswith("head")
    given_again = BlockMap.of(module, {block.name: block.paths for block in blocks})
    assert list(given_again) == list(blocks)
    assert all(blocks.match([name]) == (name,) for name in blocks.names)


@DRAWN
@given(make=modules())
def test_a_module_without_parameters_belongs_to_a_block_and_others_to_that_of_their_parameters(
    make: Callable[[], Drawn],
) -> None:
    blocks = BlockMap.of(make())
    owners = blocks.owners()
    owned: dict[nn.Module, set[str]] = {}
    for part, block in blocks.module_owners():
        assert block in blocks.names
        owned.setdefault(part, set()).add(block)
    for part, names in owned.items():
        own = [p for p in part.parameters(recurse=False) if owners[id(p)] not in names]
        tied = {id(p) for p in blocks.root.parameters() if sum(p is q for q in _all_parameters(blocks.root)) > 1}
        assert {id(p) for p in own} <= tied


def _all_parameters(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for _, parameter in module.named_parameters(remove_duplicate=False)]


class SaveAt(Callback):
    """Saves after one of the batches."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@DRAWN
@given(data=st.data(), make=modules(), stop=st.integers(1, 4 * BATCHES - 1))
def test_a_run_resumed_after_any_batch_ends_bitwise_as_one_never_stopped(
    data: st.DataObject, make: Callable[[], Drawn], stop: int
) -> None:
    schedule = data.draw(phases(BlockMap.of(make()).names))
    ramp_steps, decay = data.draw(st.integers(0, 3)), data.draw(st.sampled_from([0.5, 1.0]))
    exempt = data.draw(st.booleans())
    results = []
    with TemporaryDirectory() as folder:
        for ckpt_path in (None, Path(folder) / "stopped.ckpt"):
            unfreezing = GradualUnfreezing(FreezeSchedule(schedule, preset="drawn"), ramp_steps=ramp_steps)
            rates = DiscriminativeLR(decay, weight_decay_exempt=exempt)
            save = [] if ckpt_path else [SaveAt(stop, Path(folder) / "stopped.ckpt")]
            module = make()
            fit = trainer(unfreezing, rates, *save, max_epochs=4)
            fit.fit(module, batches(), ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
            results.append((weights_and_statistics(fit, module), fit.optimizers[0].state_dict(), unfreezing.phase))
    (whole, state, phase), (resumed, resumed_state, resumed_phase) = results
    assert phase == resumed_phase
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert state["param_groups"] == resumed_state["param_groups"]
    # ScheduleFree's train(), called once in the whole run, looks into a frozen parameter's state and leaves it empty
    states, resumed_states = (
        {key: one for key, one in of.items() if one} for of in (state["state"], resumed_state["state"])
    )
    assert states.keys() == resumed_states.keys()
    for key, kept in states.items():
        assert kept.keys() == resumed_states[key].keys()
        for name, value in kept.items():
            other = resumed_states[key][name]
            assert torch.equal(value, other) if isinstance(value, Tensor) else value == other
