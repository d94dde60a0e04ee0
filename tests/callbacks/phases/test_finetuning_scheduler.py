"""Schedules of finetuning-scheduler: read, trained with, and refused where a key has no counterpart."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nets import Net, Seen, loader, trainer
from torch import nn

from lightning_ft_callbacks import FreezeSchedule, GradualUnfreezing, Phase, Plateau

SCHEDULE = r"""
0:
  params:
  - head.weight
  - head.bias
  max_transition_epoch: 1
1:
  params:
  - layers\.2\.\d\.(weight|bias)
  max_transition_epoch: 3
2:
  params:
  - layers.1.0.weight
  - layers.1.0.bias
"""
HEAD = {"head.weight", "head.bias"}
THIRD = {"layers.2.0.weight", "layers.2.0.bias", "layers.2.1.weight", "layers.2.1.bias"}
SECOND = {"layers.1.0.weight", "layers.1.0.bias"}


class Deep(Net):
    """The same with twelve layers, of which ``layers.1`` is the beginning of three names."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(12))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "RobertaForSequenceClassification_ft_schedule.yaml"


def trained_in(schedule: Path, module: Net, epochs: int) -> list[set[str]]:
    """Train, and return the names of the parameters that moved in each epoch."""
    callback = GradualUnfreezing(str(schedule))
    seen = Seen(lambda *_: {name: p.detach().clone() for name, p in module.named_parameters()})
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    trainer(callback, seen, max_epochs=epochs).fit(module, loader())
    ends = [before, *seen.values[3::4]]
    return [{name for name in old if not torch.equal(old[name], new[name])} for old, new in pairwise(ends)]


def test_each_phase_adds_its_parameters_to_those_before_and_ends_at_its_epoch(path: Path) -> None:
    path.write_text(SCHEDULE)
    assert trained_in(path, Net(), epochs=5) == [
        HEAD,
        HEAD | THIRD,
        HEAD | THIRD,
        HEAD | THIRD | SECOND,
        HEAD | THIRD | SECOND,
    ]


def test_a_file_is_phases_over_blocks_of_its_own(path: Path) -> None:
    path.write_text(SCHEDULE)
    schedule = FreezeSchedule.from_yaml(path)
    assert schedule.phases == (
        Phase(["phase_0"], epochs=1),
        Phase(["phase_0", "phase_1"], epochs=2),
        Phase(["phase_0", "phase_1", "phase_2"]),
    )
    assert schedule.blocks is not None
    assert list(schedule.blocks) == ["phase_2", "phase_1", "phase_0"]
    callback = GradualUnfreezing(schedule)
    trainer(callback, max_epochs=5).fit(Net(), loader())
    assert callback.block_map is not None
    assert callback.block_map.names == ("unlisted", "phase_2", "phase_1", "phase_0")


def test_what_no_phase_lists_is_never_trained(path: Path) -> None:
    path.write_text("0: {params: ['head.*']}")
    module = Net()
    assert trained_in(path, module, epochs=1) == [HEAD]


def test_without_an_epoch_a_phase_ends_as_finetuning_scheduler_stops_early_by_default(path: Path) -> None:
    path.write_text("0: {params: ['head.*']}\n1: {params: ['layers.*']}")
    assert FreezeSchedule.from_yaml(path).phases == (
        Phase(["phase_0"], plateau=Plateau("val_loss", patience=3)),
        Phase(["phase_0", "phase_1"]),
    )


def test_a_parameter_listed_twice_belongs_to_the_first_phase_that_lists_it(path: Path) -> None:
    path.write_text("0: {params: ['head.*'], max_transition_epoch: 1}\n1: {params: ['.*']}")
    callback = GradualUnfreezing(str(path))
    trainer(callback, max_epochs=2).fit(Net(), loader())
    assert callback.block_map is not None
    assert {name for name, _ in callback.block_map.named_parameters("phase_0")} == HEAD


@pytest.mark.parametrize("entry", ["layers.1.weight", r"layers\.1\.\w+", r"layers.1\..*"])
def test_layer_1_does_not_take_layer_10(entry: str, path: Path) -> None:
    path.write_text(yaml.safe_dump({0: {"params": [entry]}}))
    (moved,) = trained_in(path, Deep(), epochs=1)
    assert {name.split(".")[1] for name in moved} == {"1"}


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("lr", 1e-5, r"'lr' has no counterpart; give the rates to DiscriminativeLR\(scales=\.\.\.\)"),
        ("new_optimizer", {"optimizer_init": {}}, "'new_optimizer' has no counterpart; one optimizer holds for all"),
        ("new_lr_scheduler", {}, "'new_lr_scheduler' has no counterpart; one schedule holds for all phases"),
        ("max_transition_epochs", 3, r"unknown key 'max_transition_epochs'"),
    ],
)
def test_a_key_without_counterpart_is_refused_with_the_reason(key: str, value: Any, reason: str, path: Path) -> None:
    path.write_text(
        yaml.safe_dump({0: {"params": ["head.*"], "max_transition_epoch": 1}, 1: {"params": [".*"], key: value}})
    )
    with pytest.raises(ValueError, match=rf"_ft_schedule\.yaml, phase 1: {reason}"):
        trainer(GradualUnfreezing(str(path)), max_epochs=3).fit(Net(), loader())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("head.wieght", r"phase_1: no parameter of Net matches 'head\.wieght'; did you mean 'head\.weight'\?"),
        ("layers", "phase_1: no parameter of Net matches 'layers'"),
        ("ayers.2.0.weight", r"phase_1: no parameter of Net matches 'ayers\.2\.0\.weight'; did you mean 'layers"),
        (r"encoder\..*", r"phase_1: no parameter of Net matches 'encoder"),
    ],
)
def test_an_entry_that_matches_no_whole_name_is_refused_with_the_nearest(entry: str, message: str, path: Path) -> None:
    path.write_text(
        yaml.safe_dump({0: {"params": ["head.*"], "max_transition_epoch": 1}, 1: {"params": ["layers.0.*", entry]}})
    )
    with pytest.raises(ValueError, match=message):
        trainer(GradualUnfreezing(str(path)), max_epochs=3).fit(Net(), loader())


def test_a_phase_that_only_lists_what_earlier_ones_did_is_refused_by_its_number(path: Path) -> None:
    path.write_text("0: {params: ['.*'], max_transition_epoch: 1}\n1: {params: ['head.*']}")
    with pytest.raises(ValueError, match="block 'phase_1' has no parameters of its own"):
        trainer(GradualUnfreezing(str(path)), max_epochs=3).fit(Net(), loader())


def test_a_broken_regular_expression_is_told_with_its_entry(path: Path) -> None:
    path.write_text(yaml.safe_dump({0: {"params": ["head.(weight"]}}))
    with pytest.raises(ValueError, match=r"phase_0.*head\.\(weight"):
        trainer(GradualUnfreezing(str(path)), max_epochs=3).fit(Net(), loader())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1: {params: [a]}", r"expected phases 0 to 0, but got \[1\]"),
        ("0: {params: [a]}\n2: {params: [b]}", r"expected phases 0 to 1, but got \[0, 2\]"),
        ("0: {params: []}", r"phase 0: the key 'params' is missing or empty"),
        ("0: {param: [a]}", r"phase 0: the key 'params' is missing or empty"),
        ("0:", r"phase 0: the key 'params' is missing or empty"),
        ("0: [a]", r"phase 0: the key 'params' is missing or empty"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_phase(text: str, message: str, path: Path) -> None:
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"_ft_schedule\.yaml.*{message}"):
        FreezeSchedule.from_yaml(path)


def test_transition_epochs_that_do_not_rise_are_told_with_their_phase(path: Path) -> None:
    path.write_text(
        "0: {params: [a], max_transition_epoch: 3}\n1: {params: [b], max_transition_epoch: 3}\n2: {params: [c]}"
    )
    with pytest.raises(ValueError, match=r"_ft_schedule\.yaml, phase 1: .*max_transition_epoch"):
        FreezeSchedule.from_yaml(path)


def test_a_transition_epoch_after_a_phase_without_one_is_refused(path: Path) -> None:
    path.write_text("0: {params: [a]}\n1: {params: [b], max_transition_epoch: 2}\n2: {params: [c]}")
    with pytest.raises(ValueError, match=r"_ft_schedule\.yaml, phase 1: .*max_transition_epoch"):
        FreezeSchedule.from_yaml(path)


def test_blocks_cannot_be_given_beside_a_schedule_that_brings_its_own(path: Path) -> None:
    path.write_text(SCHEDULE)
    with pytest.raises(ValueError, match="the schedule brings its own blocks along, so blocks cannot be given too"):
        trainer(GradualUnfreezing(str(path), blocks=["layers", "head"]), max_epochs=3).fit(Net(), loader())


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("name", ["schedule.yaml", "schedule"])
def test_a_file_is_read_however_its_path_is_given(kind: Any, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("0: {params: ['head.*'], max_transition_epoch: 1}\n1: {params: ['layers.*']}")
    callback = GradualUnfreezing(kind(tmp_path / name))
    trainer(callback, max_epochs=2).fit(Net(), loader())
    assert callback.trained_blocks == ("phase_1", "phase_0")
