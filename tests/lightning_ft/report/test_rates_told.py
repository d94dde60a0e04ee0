"""The report tells the learning rates that were really used."""

from dataclasses import replace
from typing import Any

import pytest
from report_parts import worst_story

from lightning_ft.report.facts import facts


def lr_test(phase: int, before: float, used: float, found: float | None) -> dict[str, Any]:
    return {"phase": phase, "lr_before": before, "lr_used": used, "lr": found}


@pytest.mark.parametrize(
    ("tests", "told"),
    [
        ([], "0.0002 at the peak"),
        ([lr_test(0, 2e-4, 2e-4, 0.004)], "0.0002 at the peak"),  # told only
        ([lr_test(0, 2e-4, 4e-4, 4e-4)], "0.0004 at the peak, by LRFinder (0.0002 was given)"),
        (
            [lr_test(0, 2e-4, 0.05, 0.05), lr_test(1, 0.05, 2e-4, None)],
            "0.05 in phase 0, 0.0002 in phase 1 (nothing was found) at the peak, by LRFinder (0.0002 was given)",
        ),
    ],
)
def test_the_rate_is_the_one_trained_at(tests: list[dict[str, Any]], told: str) -> None:
    run = worst_story(2, 400, 2)
    config = {**run.config, "model": {**run.config["model"], "lr": 2e-4, "lr_schedule": "linear"}}
    found = dict(facts(replace(run, config=config, tests=tests)))
    assert found["Learning rate"] == f"{told}, schedule linear"
