"""A rate for each block: how it is chosen, what is refused, and its meeting with GradualUnfreezing."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from nets import Net, Seen, loader, tensors, trainer
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim import lr_scheduler as schedulers

from lightning_ft_callbacks import DiscriminativeLR, GradualUnfreezing
from lightning_ft_callbacks.weight_decay import decay_exempt

NAMES = ("a", "b", "c", "d")
BLOCKS = ["layers.0", "layers.1", "layers.2", "head"]


class Noting(SGD):
    """Notes the rate of each parameter in its first update."""

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        groups = self.param_groups
        self.__dict__.setdefault("used", {id(p): group["lr"] for group in groups for p in group["params"]})
        super().step()
        return loss


def first_rates(callback: Callback, scheduler: Any = None) -> dict[str, float]:
    """Return each block's rate in the first update, as it was in the optimizer."""
    module = Net(lambda parameters: Noting(parameters, lr=0.1), scheduler)
    fit = trainer(callback, max_epochs=1)
    fit.fit(module, loader())
    used: Any = fit.optimizers[0]
    rates = {name: {used.used[id(p)] for p in module.get_submodule(name).parameters()} for name in BLOCKS}
    assert all(len(values) == 1 for values in rates.values())
    return {name: values.pop() for name, values in rates.items()}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decay": 0}, r"expected decay to be in \(0, 1\], but got 0"),
        ({"decay": 1.1}, r"expected decay to be in \(0, 1\], but got 1\.1"),
        ({"decay": float("nan")}, r"expected decay to be in \(0, 1\], but got nan"),
        ({"decay": "0.8"}, r"expected decay to be a number, but got '0\.8'; write 0\.8"),
        ({"low": "1e-5", "high": 1e-3}, r"expected low to be a number, but got '1e-5'; write 1\.0e-05"),
        ({"scales": {"head": "2"}}, "expected the scale of 'head' to be a number, but got '2'; write 2"),
        ({"scales": [0.5]}, r"expected scales to be a mapping from patterns to numbers, but got \[0\.5\]"),
        (
            {"low": 1e-2, "high": 1e-3},
            r"expected low, the first block's rate, to be at most high=0\.001, but got 0\.01",
        ),
        ({"weight_decay_exempt": "no"}, "expected weight_decay_exempt to be True or False, but got 'no'"),
        ({"low": 1e-4}, "low needs high, the rate of the last block"),
        ({"low": -1e-4, "high": 1e-3}, r"expected low to be positive, but got -0\.0001"),
        ({"high": -1.0}, r"expected high to be positive, but got -1\.0"),
        ({"high": float("nan")}, "expected high to be positive, but got nan"),
        ({"scales": {"head": -2.0}}, r"expected the scale of 'head' to be at least 0, but got -2\.0"),
        ({"decay": 0.5, "high": 1e-3}, "decay and high both choose the blocks' rates; give one"),
        ({"decay": 0.5, "scales": {"head": 1.0}}, "decay and scales both choose the blocks' rates; give one"),
        ({"high": 1e-3, "scales": {"head": 1.0}}, "high and scales both choose the blocks' rates; give one"),
        ({"low": 1e-5, "high": 1e-3, "decay": 0.5}, "decay and high both choose the blocks' rates; give one"),
    ],
)
def test_a_value_out_of_its_range_or_a_second_way_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiscriminativeLR(**values)


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (1e-4, 0.0), (0.0, 1e-3)])
def test_a_geometric_spacing_from_or_to_zero_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match=r"low|high"):
        DiscriminativeLR(low=low, high=high)


@pytest.mark.parametrize("frozen", [False, True])
def test_blocks_that_no_optimizer_holds_are_told_unless_they_are_frozen(
    frozen: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class HeadOnly(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.head.parameters(), lr=0.1)

    module = HeadOnly()
    module.layers.requires_grad_(not frozen)
    with caplog.at_level("INFO"):
        trainer(DiscriminativeLR(0.5), max_epochs=1).fit(module, loader())
    told = [record.message for record in caplog.records if "no optimizer holds" in record.message]
    expected = "DiscriminativeLR: no optimizer holds layers.0, layers.1, layers.2, which require gradients"
    assert [line.startswith(expected) for line in told] == ([] if frozen else [True])


def test_scales_without_a_pattern_have_no_effect_and_are_refused() -> None:
    with pytest.raises(ValueError, match="scales"):
        DiscriminativeLR(scales={})


@pytest.mark.parametrize(
    ("given", "scales"),
    [
        ({}, [0.8**3, 0.8**2, 0.8, 1.0]),
        ({"decay": 0.5}, [0.125, 0.25, 0.5, 1.0]),
        ({"decay": 1 / 2.6}, [2.6**-3, 2.6**-2, 2.6**-1, 1.0]),
        ({"decay": 1}, [1.0, 1.0, 1.0, 1.0]),
        ({"low": 1e-5, "high": 1e-2}, [1e-5, 1e-4, 1e-3, 1e-2]),
        ({"high": 1e-2}, [1e-3, 1e-3, 1e-3, 1e-2]),
        ({"low": 1e-3, "high": 1e-3}, [1e-3] * 4),
        ({"scales": {"[ab]": 0.0, "d": 3.0}}, [0.0, 0.0, 1.0, 3.0]),
    ],
    ids=str,
)
def test_blocks_scales_are_powers_of_decay_or_fastais_slice_or_those_of_patterns(
    given: dict[str, Any], scales: list[float]
) -> None:
    assert list(DiscriminativeLR(**given).block_scales(NAMES).values()) == pytest.approx(scales)


@pytest.mark.parametrize("given", [{}, {"low": 1e-5, "high": 1e-2}, {"high": 1e-2}], ids=str)
def test_of_one_block_the_scale_is_that_of_the_last(given: dict[str, float]) -> None:
    assert DiscriminativeLR(**given).block_scales(("a",)) == {"a": pytest.approx(given.get("high", 1.0))}


@pytest.mark.parametrize(
    ("given", "rates"),
    [
        ({"decay": 0.5}, [0.0125, 0.025, 0.05, 0.1]),
        ({"low": 1e-5, "high": 1e-2}, [1e-5, 1e-4, 1e-3, 1e-2]),
        ({"high": 1e-2}, [1e-3, 1e-3, 1e-3, 1e-2]),
        ({"scales": {"layers.[01]": 0.5, "head": 2.0}}, [0.05, 0.05, 0.1, 0.2]),
    ],
    ids=str,
)
def test_the_optimizer_uses_the_blocks_rates(given: dict[str, Any], rates: list[float]) -> None:
    assert first_rates(DiscriminativeLR(**given)) == pytest.approx(dict(zip(BLOCKS, rates, strict=True)))


@pytest.mark.parametrize(
    ("scheduler", "share"),
    [
        (lambda o: schedulers.LinearLR(o, start_factor=0.25), 0.25),
        (lambda o: schedulers.OneCycleLR(o, max_lr=0.4, total_steps=10, div_factor=4.0), 0.25),
        (lambda o: schedulers.LambdaLR(o, lambda _: 0.5), 0.5),
    ],
)
def test_high_is_the_rate_at_the_schedules_peak(scheduler: Any, share: float) -> None:
    rates = first_rates(DiscriminativeLR(high=1e-2), scheduler=scheduler)
    assert rates["head"] == pytest.approx(share * 1e-2)
    assert rates["layers.0"] == pytest.approx(share * 1e-3)


def test_a_scale_of_zero_holds_a_block_where_it_is() -> None:
    module = Net(lambda p: SGD(p, lr=0.1), norm=False)
    before = tensors(module)
    trainer(DiscriminativeLR(scales={"layers.0": 0.0}), max_epochs=1).fit(module, loader())
    moved = {name for name, tensor in tensors(module).items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if not name.startswith("layers.0")}


def test_a_block_that_two_patterns_match_is_refused_with_both() -> None:
    message = r"block 'layers\.1' is matched by two patterns, 'layers\.\*' and 'layers\.1'"
    with pytest.raises(ValueError, match=message):
        trainer(DiscriminativeLR(scales={"layers.*": 0.5, "layers.1": 0.1}), max_epochs=1).fit(Net(), loader())


def test_a_pattern_that_matches_no_block_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no block of Net matches 'haed'; did you mean 'head'\?"):
        trainer(DiscriminativeLR(scales={"haed": 0.5}), max_epochs=1).fit(Net(), loader())


def test_high_on_a_rate_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="high has no effect on an optimizer whose lr is 0"):
        trainer(DiscriminativeLR(high=0.1), max_epochs=1).fit(Net(lambda p: SGD(p, lr=0.0)), loader())


def test_an_exemption_from_a_decay_that_no_optimizer_has_is_refused() -> None:
    module = Net(lambda p: torch.optim.LBFGS(p))
    with pytest.raises(ValueError, match="weight_decay_exempt=True has no effect: no optimizer has a weight_decay"):
        trainer(DiscriminativeLR(1.0, weight_decay_exempt=True), max_epochs=1).fit(module, loader())


def test_without_the_exemption_the_users_decay_is_left_alone() -> None:
    results = []
    for callbacks in ([], [DiscriminativeLR(1.0)]):
        torch.manual_seed(0)
        module = Net(lambda p: AdamW(p, lr=0.01, weight_decay=0.5))
        trainer(*callbacks, max_epochs=1).fit(module, loader())
        results.append(tensors(module))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("order", [1, -1])
def test_it_works_beside_gradual_unfreezing_in_both_orders(order: int) -> None:
    results = []
    for step in (order, -order):
        torch.manual_seed(0)
        module = Net()
        unfreezing = GradualUnfreezing("gradual", ramp_steps=3)
        pair = [DiscriminativeLR(0.5), unfreezing][::step]
        seen = Seen(lambda *_, pair=pair: pair[0].block_rates())
        trainer(*pair, seen, max_epochs=4).fit(module, loader())
        results.append((tensors(module), seen.values))
        assert unfreezing.phase == 3
    assert results[0][1] == results[1][1]
    assert results[0][1][4] == pytest.approx({"head": 0.01, "layers.2": 0.005 / 3})
    assert all(torch.equal(results[0][0][name], results[1][0][name]) for name in results[0][0])


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("given_to", [DiscriminativeLR, GradualUnfreezing])
def test_blocks_given_to_one_hold_for_both(given_to: type, order: int) -> None:
    blocks = {"body": ["layers"], "top": ["head"]}
    pair: list[Any] = [
        DiscriminativeLR(0.5, blocks=blocks if given_to is DiscriminativeLR else None),
        GradualUnfreezing("gradual", blocks=blocks if given_to is GradualUnfreezing else None),
    ]
    trainer(*pair[::order], max_epochs=2).fit(Net(), loader())
    assert pair[0].block_map.names == pair[1].block_map.names == ("body", "top")
    assert pair[1].trained_blocks == ("body", "top")


@pytest.mark.parametrize("order", [1, -1])
def test_the_same_blocks_may_be_given_to_both_and_different_ones_are_refused(order: int) -> None:
    pair = [DiscriminativeLR(0.5, blocks=["layers", "head"]), GradualUnfreezing(blocks=["layers", "head"])]
    trainer(*pair[::order], max_epochs=2).fit(Net(), loader())
    pair = [DiscriminativeLR(0.5, blocks=["layers", "head"]), GradualUnfreezing(blocks={"body": "layers", "b": "head"})]
    with pytest.raises(ValueError, match="two callbacks were given different blocks; give them to one"):
        trainer(*pair[::order], max_epochs=2).fit(Net(), loader())


@pytest.mark.parametrize("spec", [("layers", "head"), {"layers": "layers", "head": ["head"]}], ids=str)
def test_equal_blocks_written_in_two_ways_are_no_difference(spec: Any) -> None:
    pair = [DiscriminativeLR(0.5, blocks=["layers", "head"]), GradualUnfreezing(blocks=spec)]
    trainer(*pair, max_epochs=2).fit(Net(), loader())


@pytest.mark.parametrize("beside", [[], [GradualUnfreezing("gradual")]], ids=["alone", "beside GradualUnfreezing"])
def test_lbfgs_is_refused_with_the_reason(beside: list[Callback]) -> None:
    with pytest.raises(ValueError, match="LBFGS takes a single parameter group, so its blocks cannot have rates of"):
        trainer(DiscriminativeLR(0.5), *beside, max_epochs=2).fit(Net(lambda p: torch.optim.LBFGS(p)), loader())


def test_lbfgs_is_refused_before_the_first_step() -> None:
    module = Net(lambda p: torch.optim.LBFGS(p))
    module.training_step = lambda *_: pytest.fail("a step was made")  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="LBFGS takes a single parameter group"):
        trainer(DiscriminativeLR(0.5), max_epochs=1).fit(module, loader())


def test_lbfgs_with_one_rate_for_all_is_left_alone() -> None:
    results = []
    for callbacks in ([], [DiscriminativeLR(1.0), GradualUnfreezing("full")]):
        torch.manual_seed(0)
        module = Net(lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3), dropout=0.0)
        trainer(*callbacks, max_epochs=1).fit(module, loader())
        results.append(tensors(module))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_a_group_that_is_added_in_the_fit_has_a_rate_of_its_own_under_high() -> None:
    module = Net(lambda _: SGD(module.head.parameters(), lr=0.1))

    def add(fit: Trainer, _: Any) -> None:
        if fit.global_step == 2:
            fit.optimizers[0].add_param_group({"params": list(module.layers.parameters()), "lr": 0.05})

    rates = DiscriminativeLR(low=1e-3, high=1e-2)
    used = Seen(lambda *_: rates.block_rates())
    trainer(rates, used, Seen(add), max_epochs=1).fit(module, loader())
    assert used.values[1] == pytest.approx({"head": 1e-2})
    assert used.values[2]["layers.0"] == pytest.approx(1e-3)


def test_low_and_high_are_the_rates_of_the_blocks_under_several_optimizers() -> None:
    class Two(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.manual_backward(super().training_step(batch, batch_idx))
            for optimizer in self.optimizers():  # type: ignore[union-attr]
                optimizer.step()
                optimizer.zero_grad()

        def configure_optimizers(self) -> Any:
            return [SGD(self.layers.parameters(), lr=0.5), SGD(self.head.parameters(), lr=0.1)]

    rates = DiscriminativeLR(low=1e-4, high=1e-1)
    used = Seen(lambda *_: rates.block_rates())
    trainer(rates, used, max_epochs=1).fit(Two(), loader())
    assert used.values[-1] == pytest.approx({"layers.0": 1e-4, "layers.1": 1e-3, "layers.2": 1e-2, "head": 1e-1})


def test_what_is_spared_from_decay_goes_by_the_modules_type_and_not_by_shape() -> None:
    kinds = {
        "norm": nn.LayerNorm((2, 3)),
        "batch_norm": nn.BatchNorm1d(2),
        "embedding": nn.EmbeddingBag(3, 2),
        "slope": nn.PReLU(4),
        "attention": nn.MultiheadAttention(2, 1),
        "recurrent": nn.GRU(2, 2, bidirectional=True),
    }
    module = nn.ModuleDict(kinds)
    exempt = decay_exempt(module)
    decaying = {name for name, parameter in module.named_parameters() if id(parameter) not in exempt}
    assert decaying == {
        "slope.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        *(f"recurrent.weight_{kind}_l0{way}" for kind in ("ih", "hh") for way in ("", "_reverse")),
    }
