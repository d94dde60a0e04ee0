"""The plan: what each phase trains, what it costs, and that making it leaves no trace."""

import builtins
import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from nets import Net, Save, loader, tensors, trainer
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset

from lightning_ft_callbacks import BlockMap, DiscriminativeLR, FineTuningPlan, GradualUnfreezing, Phase, Plateau
from lightning_ft_callbacks.block_costs import BlockCosts, count_costs

COSTS = BlockCosts({"a": 10, "b": 20, "c": 30, "d": 0}, {"a": 1, "b": 2, "c": 4, "d": 8}, other=0)


@pytest.mark.parametrize(
    ("trained", "operations"),
    [("a b c d", 180), ("d", 60), ("c d", 120), ("c", 120), ("b c d", 160), ("b", 60 + 50 + 20), ("a", 60 + 60 + 10)],
)
def test_the_backward_pass_ends_at_the_lowest_trained_block(trained: str, operations: int) -> None:
    assert COSTS.relative_time(["a", "b", "c", "d"], trained.split()) == pytest.approx(operations / 180)


@pytest.mark.parametrize(("trained", "operations"), [("a b c d", 180), ("d", 0), ("c d", 90), ("b d", 50 + 50 + 20)])
def test_with_a_cache_what_lies_below_does_not_run(trained: str, operations: int) -> None:
    assert COSTS.relative_time(["a", "b", "c", "d"], trained.split(), cached=True) == pytest.approx(operations / 180)


def test_the_plan_says_what_a_cache_holds_and_saves() -> None:
    module = Net()
    costs = count_costs(BlockMap.of(module), lambda: module(torch.zeros(5, 6)), num_samples=5)
    assert costs.input_bytes == {"layers.0": 24, "layers.1": 24, "layers.2": 24, "head": 24}
    schedule = [Phase(["head"], epochs=2), Phase(["*"])]
    plan = FineTuningPlan.of(module, schedule, costs=costs, cached_samples=1_000_000)
    first, second = plan.phases
    assert first.cached is not None
    assert first.cached[0] < (first.time or 0)
    assert first.cached[1] == 24_000_000
    assert second.cached is None
    assert "24 MB" in str(plan)
    assert "cached: " in str(plan)
    assert "cached" not in str(FineTuningPlan.of(module, schedule, costs=costs))


def test_activations_are_kept_from_the_lowest_trained_block_on() -> None:
    assert COSTS.kept_bytes(["a", "b", "c", "d"], ["c"]) == 12


def test_operations_are_those_of_the_matrix_products() -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    costs = count_costs(BlockMap.of(module), lambda: module(torch.zeros(5, 4)))
    assert costs.operations == {"0": 2 * 5 * 4 * 8, "2": 2 * 5 * 8 * 2}
    assert costs.other == 0


def test_operations_are_found_in_blocks_of_parameters_too() -> None:
    module = Net(norm=False)
    names = [name for name, _ in module.named_parameters()]
    parts = ("layers.0", "layers.1", "layers.2", "head")
    by_parameters = {part: [name for name in names if name.startswith(part)] for part in parts}
    costs = [
        count_costs(BlockMap.of(module, blocks), lambda: module(torch.zeros(5, 6)), num_samples=5)
        for blocks in (parts, by_parameters)
    ]
    assert costs[0] == costs[1]
    assert costs[0].other == 0


def test_operations_of_a_leaf_that_two_blocks_share_are_the_lowers_and_of_a_larger_module_nobodys() -> None:
    attention = nn.MultiheadAttention(4, 1)
    module = nn.Sequential(nn.Linear(4, 4), attention)
    blocks = {"low": ["0.weight"], "high": ["0.bias", "1.in_proj_weight"], "top": ["1.in_proj_bias", "1.out_proj"]}
    value = torch.zeros(3, 4)
    costs = count_costs(BlockMap.of(module, blocks), lambda: attention(*[module[0](value)] * 3))
    assert costs.operations["low"] == 2 * 3 * 4 * 4
    assert costs.operations["high"] == 0
    assert costs.other > 0


def test_the_plan_says_what_each_phase_trains() -> None:
    module = Net()
    schedule = [Phase(["head"], epochs=2), Phase(["layers.[12]", "head"], steps=6)]
    plan = FineTuningPlan.of(module, schedule, lrs={"head": 0.1, "layers.2": 0.05}, epochs=9, steps_per_epoch=4)
    first, second = plan.phases
    assert (first.trained, first.num_parameters, first.start) == (("head",), 14, 0.0)
    assert (second.trained, second.start, second.lrs) == (("layers.1", "layers.2", "head"), 2.0, (0.05, 0.1))
    assert first.share == pytest.approx(14 / sum(p.numel() for p in module.parameters()))
    assert plan.never_trained == ("layers.0",)
    assert "never trained: layers.0" in str(plan)
    assert (first.ends, second.ends) == ("after 2 epochs", "with the fit")  # whatever a last phase's end


def test_weights_gradients_and_adams_state_are_counted() -> None:
    module = Net()
    total = sum(p.numel() for p in module.parameters())
    (phase,) = FineTuningPlan.of(module, [Phase(["head"])]).phases
    assert phase.memory == 4 * (total + 3 * 14)


def test_it_is_printed_before_the_first_step(capsys: pytest.CaptureFixture[str]) -> None:
    module = Net()
    module.on_train_batch_start = lambda *_: print("first step")  # type: ignore[method-assign]
    trainer(GradualUnfreezing("lp_ft"), DiscriminativeLR(0.5), max_epochs=2).fit(module, loader())
    printed = capsys.readouterr().out
    assert printed.index("head") < printed.index("first step")
    assert "0.0013" in printed.replace("0.00125", "0.0013")


def test_it_is_printed_once_and_by_the_first_rank_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer(GradualUnfreezing("lp_ft"), DiscriminativeLR(0.5), max_epochs=2).fit(Net(), loader())
    assert capsys.readouterr().out.count("time: operations of a step") == 1
    monkeypatch.setattr(Trainer, "is_global_zero", False)
    trainer(GradualUnfreezing("lp_ft"), max_epochs=2).fit(Net(), loader())
    assert "time: operations of a step" not in capsys.readouterr().out


def test_without_rich_it_is_printed_as_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without_rich(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "rich":
            raise ImportError(name)
        return real(name, *arguments, **options)

    plan = FineTuningPlan.of(Net(), "lp_ft")
    monkeypatch.setattr(builtins, "__import__", without_rich)
    plan.show()
    assert capsys.readouterr().out == f"{plan}\n"


@pytest.mark.parametrize("width", [60, 72, 80, 95, 120])
def test_in_a_narrow_terminal_columns_are_left_out_and_no_number_or_heading_is_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    module = Net()
    costs = count_costs(BlockMap.of(module), lambda: module(torch.zeros(5, 6)), num_samples=5)
    schedule = [Phase(["head"], plateau=Plateau("val/loss")), Phase(["*"])]
    rates = {"head": 2e-4, "layers.0": 9.8e-05}
    plan = FineTuningPlan.of(module, schedule, costs=costs, cached_samples=10**8, lrs=rates)
    big = replace(plan, phases=tuple(replace(phase, num_parameters=22_566_146) for phase in plan.phases))
    monkeypatch.setenv("COLUMNS", str(width))
    big.show()
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("│", "┃"))]
    assert all(len(line) <= width for line in table)
    known = {word for row in big.rows() for cell in row for word in cell.split()} | {"share", "25.0%", "100.0%"}
    known |= {word.strip("()") for word in known}
    assert {word for line in table for word in line.replace("│", " ").replace("┃", " ").split()} <= known


def test_a_cache_that_keeps_nothing_has_no_cell() -> None:
    module = Net()
    costs = count_costs(BlockMap.of(module), lambda: module(torch.zeros(5, 6)), num_samples=5)
    once = [Phase(["head"], epochs=1), Phase(["*"])]
    assert "cached" not in str(FineTuningPlan.of(module, once, costs=costs, cached_samples=100))
    twice = [Phase(["head"], epochs=2), Phase(["*"])]
    assert "cached" in str(FineTuningPlan.of(module, twice, costs=costs, cached_samples=100))


def test_data_that_a_module_holds_is_not_copied_to_count_costs() -> None:
    class Holding(Net):
        def __init__(self, writes: bool) -> None:
            super().__init__()
            self.replay = [np.ones(4, dtype=np.float32)]
            self.writes, self.seen = writes, []

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.seen.append(self.replay[0].__array_interface__["data"][0])
            if self.writes:
                self.replay[0][0] += 1
            return super().training_step(batch, batch_idx)

    def planned(module: Holding) -> FineTuningPlan:
        callback = GradualUnfreezing("full")
        trainer(callback, max_epochs=1).fit(module, loader())
        assert callback.plan is not None
        return callback.plan

    seen: list[int] = []
    module = Holding(writes=False)
    module.seen = Shared(seen)
    assert planned(module).phases[0].time == 1.0
    assert len(seen) == 5  # one of them on the copy
    assert len(set(seen)) == 1
    writing = Holding(writes=True)
    assert planned(writing).phases[0].time is None
    assert writing.replay[0][0] == 5  # four steps, none of them on the copy


class Shared(list[int]):
    """Puts what it gets into another list, its copies too."""

    def __init__(self, into: list[int]) -> None:
        super().__init__()
        self.into = into

    def append(self, value: int) -> None:
        self.into.append(value)

    def __deepcopy__(self, memo: Any) -> "Shared":
        return self


@pytest.mark.parametrize("width", [80, 95, 200])
def test_in_a_narrow_terminal_names_are_folded_and_nothing_is_cut_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    module = nn.ModuleDict({f"a_long_name_of_block_{number}": nn.Linear(2000, 1000) for number in range(2)})
    plan = FineTuningPlan.of(module, [{"train": ["*_1"], "epochs": 1}, {"train": ["*"]}])
    monkeypatch.setenv("COLUMNS", str(width))
    plan.show()
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("│", "┃"))]
    assert all(len(line) <= width for line in table)
    columns = [
        "".join(cells).replace(" ", "") for cells in zip(*(line[1:-1].split(line[0]) for line in table), strict=True)
    ]
    assert columns == ["".join(cells).replace(" ", "") for cells in zip(*plan.rows(), strict=True)]
    assert any("4,002,000" in line for line in table)


def test_making_it_leaves_no_trace() -> None:
    class Stateful(Net):
        calls = 0

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.calls += 1
            return super().training_step(batch, batch_idx)

    results = []
    for callbacks in ([], [GradualUnfreezing("full")]):
        torch.manual_seed(0)
        module = Stateful(lambda parameters: SGD(parameters, lr=0.1))
        shuffled = torch.utils.data.DataLoader(loader().dataset, batch_size=8, shuffle=True)
        trainer(*callbacks, max_epochs=2).fit(module, shuffled)
        results.append(tensors(module) | {"calls": torch.tensor(module.calls)})
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_making_it_draws_nothing_from_the_data_and_logs_nothing(tmp_path: Path) -> None:
    class Drawing(Dataset):
        def __init__(self) -> None:
            self.generator = np.random.default_rng(0)

        def __len__(self) -> int:
            return 16

        def __getitem__(self, index: int) -> Any:
            return torch.tensor(self.generator.normal(size=6), dtype=torch.float32), index % 2

    class Logging(Net):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            assert self.logger is not None
            self.logger.log_metrics({"mine": 1.0}, step=self.global_step)
            return super().training_step(batch, batch_idx)

    results = []
    for name, callbacks in (("without", []), ("with", [GradualUnfreezing("full")])):
        torch.manual_seed(0)
        module, logger = Logging(lambda parameters: SGD(parameters, lr=0.1)), CSVLogger(tmp_path, name)
        trainer(*callbacks, max_epochs=1, logger=logger).fit(module, DataLoader(Drawing(), batch_size=8))
        with (Path(logger.log_dir) / "metrics.csv").open(newline="") as stream:
            num_rows = sum(bool(row["mine"]) for row in csv.DictReader(stream))
        results.append(tensors(module) | {"rows": torch.tensor(num_rows)})
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_of_a_run_resumed_within_a_ramp_it_says_the_full_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[FineTuningPlan] = []
    monkeypatch.setattr(FineTuningPlan, "show", lambda plan: plans.append(plan))
    schedule = [Phase(["head"], steps=4), Phase(["*"])]
    for checkpoint in (None, tmp_path / "step6.ckpt"):
        callbacks = [GradualUnfreezing(schedule, ramp_steps=20), DiscriminativeLR(0.5), Save(tmp_path)]
        trainer(*callbacks, max_epochs=3).fit(
            Net(), loader(), ckpt_path=checkpoint, weights_only=True if checkpoint else None
        )
    assert [[phase.lrs for phase in plan.phases] for plan in plans] == [[(0.01, 0.01), (0.00125, 0.01)]] * 2


def test_a_step_that_does_not_run_on_a_copy_costs_nobody_anything(capsys: pytest.CaptureFixture[str]) -> None:
    class Picky(Net):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("not to be copied")

    trainer(GradualUnfreezing("full"), max_epochs=1).fit(Picky(), loader())
    assert "time: not counted for this module" in capsys.readouterr().out
