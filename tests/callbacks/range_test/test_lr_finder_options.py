"""Options of LRFinder that make no test are refused when it is made."""

import re
from typing import Any

import pytest

from lightning_ft_callbacks import LRFinder


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_lr": 0}, "expected min_lr to be positive, but got 0"),
        ({"max_lr": -1.0}, "expected max_lr to be positive, but got -1.0"),
        ({"max_lr": float("inf")}, "expected max_lr to be finite, but got inf"),
        ({"min_lr": "1e-6"}, "expected min_lr to be a number, but got '1e-6'; write 1.0e-06"),
        ({"min_lr": 0.1, "max_lr": 0.1}, "expected min_lr to be below max_lr, but got 0.1 and 0.1"),
        ({"num_steps": 1}, "expected num_steps to be at least 2, but got 1"),
        ({"num_steps": 1e2}, "expected num_steps to be a whole number, but got 100.0; write 100"),
        ({"trial_steps": -1}, "expected trial_steps to be at least 0, but got -1"),
        ({"each_phase": "yes"}, "expected each_phase to be True or False, but got 'yes'"),
        ({"spacing": "log"}, "expected spacing to be 'exponential' or 'linear', but got 'log'"),
        ({"suggestion": "steap"}, "no suggestion 'steap'; did you mean 'steep'"),
    ],
)
def test_an_option_that_makes_no_test_is_refused_with_its_name_and_its_value(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        LRFinder(**options)
