"""What users of Lightning's own finetuning callback rely on: every kind of container is frozen and thawed whole."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import WIDTH, Net, Seen, loader, tensors, trainer
from torch import Tensor, nn
from torch.optim import SGD

from lightning_ft_callbacks import BlockMap, GradualUnfreezing


class Shifted(nn.Module):
    """A parent with a parameter of its own beside a child's."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(WIDTH))
        self.child = nn.Linear(WIDTH, WIDTH)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.child(inputs + self.shift)


class Scaled(nn.Module):
    """Parameters in a list and in a dict, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = nn.ParameterList([nn.Parameter(torch.ones(WIDTH)) for _ in range(2)])
        self.named = nn.ParameterDict({"shift": nn.Parameter(torch.zeros(WIDTH))})

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.listed[0] * self.listed[1] + self.named["shift"]


class Chosen(nn.Module):
    """A dict of modules, run in order."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"first": Shifted(), "second": Scaled()})

    def forward(self, inputs: Tensor) -> Tensor:
        for part in self.parts.values():
            inputs = part(inputs)
        return inputs


class Nested(nn.Module):
    """Containers in containers, with a parameter at each level."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(WIDTH))
        self.inner = nn.Sequential(nn.Sequential(Shifted(), nn.BatchNorm1d(WIDTH)), nn.ModuleList([Scaled(), Chosen()]))

    def forward(self, inputs: Tensor) -> Tensor:
        first, rest = self.inner
        inputs = first(inputs * self.gain)
        for part in rest:  # type: ignore[attr-defined]
            inputs = part(inputs)
        return inputs


class Wrapped(Net):
    """A LightningModule around any module, with a parameter of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(lambda parameters: SGD(parameters, lr=0.1), dropout=0.0)
        del self.layers
        self.layers = inner  # type: ignore[assignment]
        self.temperature = nn.Parameter(torch.ones(1))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.layers(inputs)) / self.temperature


MODULES: list[Callable[[], nn.Module]] = [Shifted, Scaled, Chosen, Nested, lambda: nn.Linear(WIDTH, WIDTH)]


@pytest.mark.parametrize("make", MODULES)
def test_every_parameter_is_in_exactly_one_block(make: Callable[[], nn.Module]) -> None:
    module = Wrapped(make())
    blocks = BlockMap.of(module)
    owned = [id(parameter) for name in blocks.names for parameter in blocks.parameters(name)]
    assert sorted(owned) == sorted(id(parameter) for parameter in module.parameters())


@pytest.mark.parametrize("make", MODULES)
def test_each_block_alone_is_frozen_and_thawed_whole(make: Callable[[], nn.Module]) -> None:
    module = Wrapped(make())
    blocks = BlockMap.of(module)
    names = {name: {n for n, _ in blocks.named_parameters(name)} for name in blocks.names}
    schedule = [{"train": [name], "steps": 1} for name in blocks.names] + [{"train": ["*"]}]
    flags = Seen(lambda *_: {name for name, p in module.named_parameters() if p.requires_grad})
    values = Seen(lambda *_: tensors(module))
    before = tensors(module)
    trainer(GradualUnfreezing(schedule), flags, values, max_epochs=len(names)).fit(module, loader())
    assert flags.values[: len(names) + 1] == [*names.values(), set().union(*names.values())]
    for block, old, new in zip(blocks.names, [before, *values.values], values.values, strict=False):
        moved = {
            name for name in old if not torch.equal(old[name], new[name]) and name in dict(module.named_parameters())
        }
        assert moved <= names[block]
        assert moved, block


@pytest.mark.parametrize("make", MODULES)
def test_explicit_blocks_take_a_parent_with_all_below_it(make: Callable[[], nn.Module]) -> None:
    module = Wrapped(make())
    before = tensors(module)
    blocks = {"below": ["layers"], "above": ["head", "temperature"]}
    trainer(GradualUnfreezing("linear_probe", blocks=blocks), max_epochs=1).fit(module, loader())
    changed = {name for name, tensor in tensors(module).items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight", "head.bias", "temperature"}


def test_an_optimizer_of_what_requires_gradients_gets_all_because_freezing_comes_after_it() -> None:
    module = Net(norm=False)
    module.make_optimizer = lambda parameters: SGD([p for p in parameters if p.requires_grad], lr=0.1)
    before = tensors(module)
    fit = trainer(GradualUnfreezing("gradual"), max_epochs=4)
    fit.fit(module, loader())
    assert len(fit.optimizers[0].param_groups[0]["params"]) == len(list(module.parameters()))
    assert all(not torch.equal(before[name], p) for name, p in module.named_parameters())


def test_an_optimizer_without_the_backbone_is_refused_with_the_remedy() -> None:
    module = Net()
    module.make_optimizer = lambda _: SGD(module.head.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"layers\.2 is to be trained, but no optimizer holds layers\.2\.0\.weight"):
        trainer(GradualUnfreezing("gradual"), max_epochs=4).fit(module, loader())


@pytest.mark.parametrize("where", ["setup", "configure_model"])
def test_a_module_that_is_built_in_a_hook_is_frozen_too(where: str) -> None:
    class Late(Net):
        def build(self) -> None:
            if len(self.layers) == 3:
                self.layers.append(nn.Sequential(nn.Linear(WIDTH, WIDTH)))

        def setup(self, stage: str) -> None:  # noqa: ARG002
            if where == "setup":
                self.build()

        def configure_model(self) -> None:
            if where == "configure_model":
                self.build()

    module = Late()
    callback = GradualUnfreezing([{"train": ["layers.3"], "epochs": 1}, {"train": ["head"]}])
    flags = Seen(lambda *_: {name for name, p in module.named_parameters() if p.requires_grad})
    trainer(callback, flags, max_epochs=2).fit(module, loader())
    assert flags.values[0] == {"layers.3.0.weight", "layers.3.0.bias"}
    assert flags.values[-1] == {"head.weight", "head.bias"}


def test_thawing_again_leaves_every_parameter_in_the_optimizer_once() -> None:
    module = Net()
    schedule: list[Any] = [{"train": train, "steps": 2} for train in (["*"], ["head"], ["*"], ["layers.0"], ["*"])]
    fit = trainer(GradualUnfreezing([*schedule, {"train": ["*"]}]), max_epochs=4)
    fit.fit(module, loader())
    held = [id(p) for group in fit.optimizers[0].param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in module.parameters())
