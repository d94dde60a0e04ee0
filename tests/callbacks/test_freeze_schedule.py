"""Phases as plain data: what is refused, the presets, and YAML there and back."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer
from nets import Net, Seen, loader, trainer
from torch import nn

from lightning_ft_callbacks import BlockMap, FreezeSchedule, GradualUnfreezing, Phase, Plateau

FOUR = ["a", "b", "c", "d"]
WATCHING = {"monitor": "val/loss", "patience": 2, "mode": "max", "min_delta": 0.5}
SCHEDULE = FreezeSchedule(
    [
        Phase(["d"], epochs=2),
        Phase(["c", "d"], steps=30),
        Phase(["[bc]", "d"], plateau=Plateau("val/loss", patience=2, mode="max", min_delta=0.5)),
        Phase(["*"]),
    ]
)


@pytest.fixture
def four() -> BlockMap:
    """Return the map of four blocks, a to d."""
    return BlockMap.of(nn.ModuleDict({name: nn.Linear(2, 2) for name in FOUR}))


def written(folder: Path, text: str, name: str = "schedule.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "minimum"}, "expected Plateau's mode to be 'min' or 'max', but got 'minimum'"),
        ({"patience": 0}, "expected Plateau's patience to be at least 1, but got 0"),
        ({"min_delta": -0.1}, "expected Plateau's min_delta to be at least 0, but got -0.1"),
    ],
)
def test_a_plateau_names_the_value_that_is_out_of_its_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plateau("val/loss", **values)


@pytest.mark.parametrize(
    ("value", "best", "mode", "improves"),
    [
        (1.0, None, "min", True),
        (0.4, 1.0, "min", True),
        (0.5, 1.0, "min", False),
        (1.6, 1.0, "max", True),
        (1.5, 1.0, "max", False),
        (float("nan"), None, "min", False),
        (float("nan"), 1.0, "max", False),
    ],
)
def test_better_is_better_by_more_than_min_delta(value: float, best: float | None, mode: Any, improves: bool) -> None:
    assert Plateau("val/loss", mode=mode, min_delta=0.5).improves(value, best) is improves


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": "head"}, r"expected train to be a list of patterns, but got 'head'; write \['head'\]"),
        ({"train": []}, "a phase trains nothing: its train is empty"),
        ({"train": ["*"], "epochs": 1, "steps": 2}, "ends by one of epochs, steps, plateau, but epochs and steps were"),
        ({"train": ["*"], "steps": 2, "plateau": Plateau("loss")}, "but steps and plateau were given"),
        ({"train": ["*"], "epochs": 0}, "expected a phase's epochs to be at least 1, but got 0"),
        ({"train": ["*"], "epochs": 1.5}, "expected a phase's epochs to be a whole number, but got 1.5"),
        ({"train": ["*"], "epochs": True}, "expected a phase's epochs to be a whole number, but got True"),
        ({"train": ["*"], "steps": -3}, "expected a phase's steps to be at least 1, but got -3"),
        ({"train": ["*"], "steps": "3"}, "expected a phase's steps to be a whole number, but got '3'; write 3"),
    ],
)
def test_a_phase_names_what_is_wrong_with_it(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Phase(**values)


def test_a_plateau_in_python_is_a_plateau_or_its_keys() -> None:
    (phase,) = FreezeSchedule.from_dict({"phases": [{"train": ["d"], "plateau": WATCHING}]}).phases
    assert phase.plateau == Plateau("val/loss", 2, "max", 0.5)


@pytest.mark.parametrize("plateau", ["val/loss", 3, True])
def test_a_plateau_of_another_kind_is_refused(plateau: Any) -> None:
    with pytest.raises(ValueError, match="plateau"):
        FreezeSchedule.from_dict({"phases": [{"train": ["d"], "plateau": plateau}, {"train": ["*"]}]})


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        (Phase(["*"], epochs=1), "after 1 epoch"),
        (Phase(["*"], epochs=2), "after 2 epochs"),
        (Phase(["*"], steps=1), "after 1 step"),
        (Phase(["*"], steps=2), "after 2 steps"),
        (Phase(["*"], plateau=Plateau("val/loss", 2)), "when val/loss is no better for 2 validations"),
        (Phase(["*"]), "with the fit"),
    ],
)
def test_when_a_phase_ends_is_told_in_words(phase: Phase, words: str) -> None:
    assert phase.ends == words


def test_a_schedule_without_phases_is_refused() -> None:
    with pytest.raises(ValueError, match="a schedule has no phases"):
        FreezeSchedule([])


def test_only_the_last_phase_may_have_no_end() -> None:
    with pytest.raises(ValueError, match=r"phase 1 \(train: c, d\) can never end, but phases follow"):
        FreezeSchedule([Phase(["d"], epochs=1), Phase(["c", "d"]), Phase(["*"])])
    assert len(FreezeSchedule([Phase(["d"], epochs=1), Phase(["*"])]).phases) == 2


PRESETS = {
    "linear_probe": ([["d"]], [None]),
    "lp_ft": ([["d"], FOUR], [1, None]),
    "gradual": ([["d"], ["c", "d"], ["b", "c", "d"], FOUR], [1, 1, 1, None]),
    "chain_thaw": ([["d"], ["a"], ["b"], ["c"], FOUR], [1, 1, 1, 1, None]),
    "full": ([FOUR], [None]),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_trains_the_blocks_that_it_says(preset: str, four: BlockMap) -> None:
    schedule = FreezeSchedule.of(preset, four)
    trained, epochs = PRESETS[preset]
    assert [list(names) for names in schedule.trained(four)] == trained
    assert [phase.epochs for phase in schedule.phases] == epochs
    assert all(phase.steps is None and phase.plateau is None for phase in schedule.phases)
    assert schedule.preset == preset


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fits_a_module_of_one_block(preset: str) -> None:
    one = BlockMap.of(nn.ModuleDict({"a": nn.Linear(2, 2)}), ["a"])
    assert all(names == ("a",) for names in FreezeSchedule.of(preset, one).trained(one))


def test_a_preset_takes_names_literally() -> None:
    blocks = {"a[0]": "a", "a0": "b", "b*": "c", "b?": "d"}
    module = nn.ModuleDict({name: nn.Linear(2, 2) for name in FOUR})
    block_map = BlockMap.of(module, blocks)
    assert FreezeSchedule.of("chain_thaw", block_map).trained(block_map)[:4] == (("b?",), ("a[0]",), ("a0",), ("b*",))


def test_phases_follow_the_map_and_not_the_patterns_order(four: BlockMap) -> None:
    assert SCHEDULE.trained(four) == (("d",), ("c", "d"), ("b", "c", "d"), ("a", "b", "c", "d"))


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"no block of Net matches 'layer\.1'; did you mean 'layers\.1'\?"):
        trainer(GradualUnfreezing([{"train": ["head", "layer.1"]}])).fit(Net(), loader())


def test_yaml_there_and_back_is_the_same_schedule(tmp_path: Path) -> None:
    assert FreezeSchedule.from_yaml(written(tmp_path, SCHEDULE.to_yaml())) == SCHEDULE


def test_yaml_holds_nothing_but_what_was_given() -> None:
    assert FreezeSchedule([Phase(["d"], epochs=1), Phase(["*"])]).to_dict() == {
        "phases": [{"train": ["d"], "epochs": 1}, {"train": ["*"]}]
    }


@pytest.mark.parametrize(
    "text",
    [
        'phases: [{train: [d], epochs: 1}, {train: ["*"]}]',
        '- {train: [d], epochs: 1}\n- {train: ["*"]}\n',
        'phases:\n  - train: [d]\n    epochs: 1\n  - train:\n      - "*"\n',
    ],
)
def test_yaml_may_be_a_mapping_or_a_list(text: str, tmp_path: Path, four: BlockMap) -> None:
    path = written(tmp_path, text)
    expected = FreezeSchedule([Phase(["d"], epochs=1), Phase(["*"])])
    assert FreezeSchedule.of(str(path), four) == expected
    assert FreezeSchedule.of(written(tmp_path, text, "no_suffix"), four) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    [
        [Phase(["d"], epochs=1), Phase(["*"])],
        [{"train": ["d"], "epochs": 1}, Phase(["*"])],
        {"phases": [{"train": ["d"], "epochs": 1}, {"train": ["*"]}]},
        FreezeSchedule([Phase(["d"], epochs=1), Phase(["*"])]),
    ],
)
def test_python_may_give_phases_or_their_keys(given: Any, four: BlockMap) -> None:
    assert FreezeSchedule.of(given, four).phases == (Phase(["d"], epochs=1), Phase(["*"]))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('phases:\n  - train: [d]\n    epochs: 1\n  - train: ["*"\n', 5),
        ("phases:\n  - train: [d]\n  epochs: 1\n", 3),
        ("phases:\n\t- train: [d]\n", 2),
        ("phases: [{train: [*]}]\n", 1),
    ],
)
def test_broken_yaml_tells_its_file_and_line(text: str, line: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"schedule\.yaml, line {line}: \w+"):
        FreezeSchedule.from_yaml(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"schedule\.yaml: expected a mapping with the key 'phases', but got None"),
        ("gradual", r"schedule\.yaml: expected a mapping with the key 'phases', but got 'gradual'"),
        ("phases: []", r"schedule\.yaml: a schedule has no phases"),
        ("phases:", r"schedule\.yaml: a schedule has no phases"),
        ("{}", r"schedule\.yaml: a schedule has no phases"),
        ("phase: [{train: [d]}]", r"schedule\.yaml: unknown key 'phase'; did you mean 'phases'\?"),
        ("stages: [{train: [d]}]", r"schedule\.yaml: unknown key 'stages'"),
        ("zzz: [{train: [d]}]", r"schedule\.yaml: unknown key 'zzz'; there are phases"),
        ("phases: [{trian: [d]}]", r"schedule\.yaml, phase 0: unknown key 'trian'; did you mean 'train'\?"),
        ("phases: [{train: [d], epoch: 1}]", r"phase 0: unknown key 'epoch'; did you mean 'epochs'\?"),
        ("phases: [{train: [d], epochs: 1}, {train: [d], until: 1}]", r"phase 1: unknown key 'until'; there are train"),
        ("phases: [{epochs: 1}]", r"phase 0: the key 'train' is missing"),
        ("phases: [d]", r"phase 0: expected the keys train and epochs, steps or plateau, but got 'd'"),
        ("phases: [{train: d}]", r"phase 0: expected train to be a list of patterns, but got 'd'"),
        ("phases: [{train: []}]", r"schedule\.yaml, phase 0: a phase trains nothing"),
        ("phases: [{train: [d], epochs: 0}]", r"phase 0: expected a phase's epochs to be .* but got 0"),
        ("phases: [{train: [d], epochs: 1, steps: 1}]", r"phase 0: .*but epochs and steps were given"),
        (
            "phases: [{train: [d], plateau: {monitor: a, patiense: 2}}]",
            r"schedule\.yaml, phase 0: plateau: unknown key 'patiense'; did you mean 'patience'\?",
        ),
        ("phases: [{train: [d], plateau: {patience: 2}}]", r"phase 0: .*monitor"),
        ("phases: [{train: [d], plateau: {monitor: a, mode: up}}]", r"phase 0: expected Plateau's mode .* got 'up'"),
        ("phases: [{train: [d]}]\nphases: [{train: [c]}]", r"schedule\.yaml, line 2: the key 'phases' is there twice"),
        (
            "phases:\n- {train: [d], epochs: 1,\n   epochs: 2}",
            r"schedule\.yaml, line 3: the key 'epochs' is there twice",
        ),
        ("phases: [{train: [d], plateau: {monitor: a, min_delta: 1e-4}}]", r"phase 0: .*got '1e-4'; write 0\.0001"),
        ("phases: [{train: [c, d]}, {train: [d]}]", r"schedule\.yaml: phase 0 \(train: c, d\) can never end"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_place(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        FreezeSchedule.from_yaml(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("phases: [{train: null}]", "phase 0: .*train"),
        ("phases: [{train: 3}]", "phase 0: .*train"),
        ("phases: 3", "phases"),
        ("phases: [{train: [1]}]", "phase 0: .*train"),
        ("phases: [{train: [d], plateau: {monitor: a, patience: many}}]", "phase 0: .*patience"),
        ("phases: [{train: [d], plateau: {monitor: a, patience: 1.5}}]", "phase 0: .*patience"),
        ("phases: [{train: [d], plateau: {monitor: a, min_delta: '1'}}]", "phase 0: .*min_delta"),
        ("phases: [{train: [d], plateau: {monitor: 3}}]", "phase 0: .*monitor"),
    ],
)
def test_a_value_of_the_wrong_kind_in_a_file_is_told_by_its_key(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as told:
        FreezeSchedule.from_yaml(written(tmp_path, text))
    assert "object is not" not in str(told.value)


@pytest.mark.parametrize("name", ["nowhere.yaml", "nowhere.yml"])
def test_a_file_that_is_not_there_is_named(name: str, tmp_path: Path, four: BlockMap) -> None:
    with pytest.raises(FileNotFoundError, match=rf"no schedule file '.*{name}'"):
        FreezeSchedule.of(str(tmp_path / name), four)
    with pytest.raises(FileNotFoundError, match=rf"no schedule file '.*{name}'"):
        trainer(GradualUnfreezing(str(tmp_path / name))).fit(Net(), loader())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gradul", r"no schedule 'gradul'; did you mean 'gradual'\?"),
        ("lpft", r"no schedule 'lpft'; did you mean 'lp_ft'\?"),
        ("zzz", r"no schedule 'zzz'; there are linear_probe, lp_ft, gradual, chain_thaw, full, or a YAML file"),
    ],
)
def test_an_unknown_preset_is_refused_with_the_nearest(name: str, message: str, four: BlockMap) -> None:
    with pytest.raises(ValueError, match=message):
        FreezeSchedule.of(name, four)


@pytest.mark.parametrize(
    ("schedule", "hint"), [(None, "None$"), (3, "3$"), (Phase(["*"]), r"Phase\(.*; write \[Phase\(\.\.\.\)\]$")]
)
def test_a_schedule_of_another_kind_is_refused_with_itself(schedule: Any, hint: str, four: BlockMap) -> None:
    with pytest.raises(ValueError, match=f"expected schedule to be a preset's name, .*, but got {hint}"):
        FreezeSchedule.of(schedule, four)


@pytest.mark.parametrize("preset", ["linear_probe", "lp_ft", "gradual", "chain_thaw"])
def test_a_preset_has_no_phase_for_a_frozen_teacher(preset: str) -> None:
    module = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("low", "high", "teacher", "tail")})
    module["teacher"].requires_grad_(False)
    module["tail"].requires_grad_(False)
    block_map = BlockMap.of(module, list(module))
    student = BlockMap.of(nn.ModuleDict({name: nn.Linear(2, 2) for name in ("low", "high")}))
    learning = FreezeSchedule.of(preset, block_map).phases
    assert [p for p in learning if p.train != ("*",)] == [
        p for p in FreezeSchedule.of(preset, student).phases if p.train != ("*",)
    ]
    assert len(FreezeSchedule.of("gradual", block_map, thaw_frozen=True).phases) == 4


@pytest.mark.parametrize(
    "schedule", ["gradul", [{"train": ["head"]}, {"train": ["*"]}], [], [{"train": ["head"], "epoch": 1}]]
)
def test_a_wrong_schedule_is_refused_before_the_first_step(schedule: Any) -> None:
    module = Net()
    module.training_step = lambda *_: pytest.fail("a step was made")  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"schedule|phase"):
        trainer(GradualUnfreezing(schedule), max_epochs=1).fit(module, loader())


def test_a_plateau_of_what_is_never_logged_is_an_error_after_the_first_validation() -> None:
    schedule = [{"train": ["head"], "plateau": {"monitor": "val/acc", "patience": 1}}, {"train": ["*"]}]
    fit = trainer(GradualUnfreezing(schedule), max_epochs=3)
    with pytest.raises(ValueError, match=r"phase 0 watches 'val/acc', but logged is train/loss, val/loss"):
        fit.fit(Net(), loader(), loader())
    assert fit.current_epoch == 0


def test_the_last_phases_plateau_must_be_logged_too() -> None:
    schedule = [{"train": ["head"], "epochs": 1}, {"train": ["*"], "plateau": {"monitor": "val/acc"}}]
    fit = trainer(GradualUnfreezing(schedule), max_epochs=3)
    told = r"phase 1 watches 'val/acc', but logged is train/loss, val/loss"
    with pytest.raises(ValueError, match=told), pytest.warns(UserWarning, match=told):
        fit.fit(Net(), loader(), loader())
    assert fit.current_epoch == 1


@pytest.mark.parametrize("validates", [True, False])
def test_a_plateau_to_come_of_what_is_never_logged_is_told_after_the_first_epoch(validates: bool) -> None:
    watched = "val/loss" if validates else "train/loss"
    schedule = [
        {"train": ["head"], "epochs": 3},
        {"train": ["layers.2"], "plateau": {"monitor": f"{watched}es"}},
        {"train": ["layers.1"], "plateau": {"monitor": watched}},
        {"train": ["*"], "plateau": {"monitor": f"{watched}es"}},
    ]
    fit = trainer(GradualUnfreezing(schedule), Timer({"seconds": 0}, "epoch", verbose=False), max_epochs=20)
    fit.fit_loop.min_epochs = 2
    with pytest.warns(UserWarning, match=f"phase 1 watches '{watched}es', but logged is") as caught:
        fit.fit(Net(), loader(), loader() if validates else None)
    told = [str(each.message) for each in caught if "watches" in str(each.message)]
    assert [message[:7] for message in told] == ["phase 1", "phase 3"]
    assert told[0].endswith(f"; did you mean {watched!r}?")


@pytest.mark.parametrize("every", [1, 2])
def test_a_plateau_of_training_is_judged_at_the_end_of_each_epoch_beside_a_validation(every: int) -> None:
    class Mean(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.log("train/mean", loss, on_step=False, on_epoch=True)
            return loss

    plateau = {"monitor": "train/mean", "patience": 1, "min_delta": 9.0}
    callback = GradualUnfreezing([{"train": ["head"], "plateau": plateau}, {"train": ["*"]}])
    seen = Seen(lambda *_: callback.phase)
    trainer(callback, seen, max_epochs=4, check_val_every_n_epoch=every).fit(Mean(), loader(), loader())
    assert seen.values == [0] * 8 + [1] * 8


@pytest.mark.parametrize("every", [1, 2])
def test_a_plateau_of_validation_is_judged_once_a_validation(every: int) -> None:
    plateau = {"monitor": "val/loss", "patience": 1, "min_delta": 9.0}
    callback = GradualUnfreezing([{"train": ["head"], "plateau": plateau}, {"train": ["*"]}])
    seen = Seen(lambda *_: callback.phase)
    trainer(callback, seen, max_epochs=3 * every, check_val_every_n_epoch=every).fit(Net(), loader(), loader())
    assert seen.values == [0] * (8 * every) + [1] * (4 * every)


@pytest.mark.parametrize("options", [{"limit_val_batches": 0}, {"limit_train_batches": 0}], ids=str)
def test_where_the_trainer_validates_or_logs_nothing_a_plateau_is_not_judged(
    options: dict[str, Any], tmp_path: Path
) -> None:
    callback = GradualUnfreezing([{"train": ["head"], "plateau": {"monitor": "val/loss"}}, {"train": ["*"]}])
    Trainer(callbacks=[callback], accelerator="cpu", max_epochs=2, default_root_dir=tmp_path, **options).fit(
        Net(), loader(), loader()
    )
    assert callback.phase == 0


def test_a_schedules_own_blocks_go_to_yaml_and_back(tmp_path: Path) -> None:
    schedule = FreezeSchedule([Phase(["top"], epochs=1), Phase(["*"])], blocks={"low": ["layers.*"], "top": ["head.*"]})
    (tmp_path / "own.yaml").write_text(schedule.to_yaml())
    assert FreezeSchedule.from_yaml(tmp_path / "own.yaml") == schedule
    seen = Seen(lambda _, module: sum(p.requires_grad for p in module.parameters()))
    trainer(GradualUnfreezing(tmp_path / "own.yaml"), seen, max_epochs=2).fit(Net(), loader())
    assert seen.values == [2] * 4 + [14] * 4


@pytest.mark.parametrize("blocks", ["head", "{head: head}", "[head]"])
def test_blocks_of_another_kind_in_a_file_are_refused(blocks: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(f"phases: [{{train: [head]}}]\nblocks: {blocks}")
    with pytest.raises(ValueError, match=r"own\.yaml: expected block"):
        FreezeSchedule.from_yaml(tmp_path / "own.yaml")


@pytest.mark.parametrize(
    ("monitor", "hint"), [("val/acc", "val/accuracy"), ("train/mean", None), ("val/los", "val/loss")]
)
def test_a_metric_that_looks_misspelt_is_told_after_the_sanity_check(
    monitor: str, hint: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    class Accurate(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.log_dict(
                {"val/accuracy": 0.0} if self.trainer.sanity_checking else {"val/accuracy": 0.0, monitor: 0.0}
            )

    schedule = [{"train": ["head"], "plateau": {"monitor": monitor, "patience": 1}}, {"train": ["*"]}]
    with caplog.at_level("INFO"):
        trainer(GradualUnfreezing(schedule), max_epochs=3).fit(Accurate(), loader(), loader())
    told = [record.message for record in caplog.records if "sanity check" in record.message]
    expected = f"phase 0 watches '{monitor}', which the sanity check has not logged"
    assert [line.startswith(expected) and line.endswith(f"did you mean '{hint}'?") for line in told] == [True] * bool(
        hint
    )


@pytest.mark.parametrize(
    ("schedule", "values", "line"),
    [
        ("full", {"ramp_steps": 5}, "ramp_steps=5 has no effect: no phase thaws a block"),
        ("full", {"restore_best": True}, "restore_best=True has no effect: the schedule has a single phase"),
        ("full", {"thaw_frozen": True}, "thaw_frozen=True has no effect: no parameter was frozen before fit"),
        (
            "lp_ft",
            {"ramp_steps": 9},
            "ramp_steps=9 is longer than what is left of the fit when phase 1 begins, 8 steps",
        ),
        ("lp_ft", {"ramp_steps": 8}, None),
        ([{"train": ["head"], "epochs": 1}] * 2, {}, "phases 0 and 1 train the same blocks: head"),
    ],
)
def test_what_has_no_effect_is_told(
    schedule: Any, values: dict[str, Any], line: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        trainer(GradualUnfreezing(schedule, **values), max_epochs=3).fit(Net(), loader())
    told = [
        record.message for record in caplog.records if "ramp_steps" in record.message or "no effect" in record.message
    ]
    told += [record.message for record in caplog.records if "same blocks" in record.message]
    assert [message.startswith(line or "") for message in told] == [True] * bool(line)


@pytest.mark.parametrize("values", [{"thaw_frozen": "yes"}, {"restore_best": 1}, {"ramp_steps": "5"}], ids=str)
def test_arguments_of_another_kind_are_refused_with_their_name(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(ValueError, match=f"expected {name} to be"):
        GradualUnfreezing(**values)


def test_what_was_frozen_before_is_not_said_to_be_trained(caplog: pytest.LogCaptureFixture) -> None:
    module = Net()
    module.layers.requires_grad_(False)
    callback = GradualUnfreezing([{"train": ["head"], "epochs": 1}, {"train": ["*"]}])
    with caplog.at_level("INFO"):
        trainer(callback, max_epochs=2).fit(module, loader())
    assert "phase 1: training head" in [record.message for record in caplog.records]
    assert callback.plan is not None
    assert [phase.trained for phase in callback.plan.phases] == [("head",), ("head",)]
    frozen = "layers.0, layers.1, layers.2"
    assert f"stay frozen, because they were frozen before: {frozen}; thaw_frozen=True thaws them" in str(callback.plan)


def test_negative_ramp_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="expected ramp_steps to be at least 0, but got -1"):
        GradualUnfreezing(ramp_steps=-1)
