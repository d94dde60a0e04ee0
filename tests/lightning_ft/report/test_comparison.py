"""Several runs: the settings in which they differ."""

from types import SimpleNamespace

from lightning_ft.report.comparison import difference_table


def run(name: str, *callbacks: str | tuple[str, dict]) -> SimpleNamespace:
    parts = [
        {"class_path": f"lightning_ft_callbacks.{part}"}
        if isinstance(part, str)
        else {"class_path": f"lightning_ft_callbacks.{part[0]}", "init_args": part[1]}
        for part in callbacks
    ]
    return SimpleNamespace(name=name, config={"trainer": {"callbacks": parts}})


def test_callbacks_are_compared_with_those_of_their_class_wherever_they_stand():
    rate = ("DiscriminativeLR", {"decay": 0.8})
    first = run("a", ("GradualUnfreezing", {"schedule": "lp_ft"}), rate)
    second = run("b", "FrozenPrefixCache", rate, ("GradualUnfreezing", {"schedule": "gradual"}))
    assert difference_table([first, second]).rows == [
        ("trainer.callbacks.GradualUnfreezing.init_args.schedule", "lp_ft", "gradual"),
        ("trainer.callbacks.FrozenPrefixCache.class_path", "not set", "lightning_ft_callbacks.FrozenPrefixCache"),
    ]


def test_several_callbacks_of_a_class_keep_their_places():
    first = run("a", ("Save", {"k": 1}), ("Save", {"k": 2}))
    second = run("b", ("Save", {"k": 1}), ("Save", {"k": 3}))
    assert difference_table([first, second]).rows == [("trainer.callbacks.Save_1.init_args.k", "2", "3")]


def test_phases_are_compared_by_their_number():
    first, second = (
        run(name, ("GradualUnfreezing", {"schedule": [{"train": ["head"], "epochs": n}, {"train": ["*"]}]}))
        for name, n in (("a", 1), ("b", 2))
    )
    assert difference_table([first, second]).rows == [
        ("trainer.callbacks.GradualUnfreezing.init_args.schedule.0.epochs", "1", "2")
    ]
