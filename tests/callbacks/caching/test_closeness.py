"""What is close is so in each number; what is no number is the same only where the other is so too."""

from typing import Any

import numpy as np
import pytest
import torch

from lightning_ft_callbacks.caching.closeness import close, equal, tolerance_of

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ([1.0, 2.0], [1.0, 2.0 + 1e-5], True),
        ([1.0, 2.0], [1.0, 2.1], False),
        ([INF, 1.0], [INF, 5.0], False),
        ([INF, 1.0], [INF, 1.0], True),
        ([INF, 1.0], [-INF, 1.0], False),
        ([NAN, 1.0], [NAN, 1.0], True),
        ([NAN, 1.0], [INF, 1.0], False),
        ([NAN, 1.0], [1.0, 1.0], False),
        ([NAN, INF], [NAN, INF], True),
    ],
)
def test_numbers_are_compared_one_by_one(one: list[float], other: list[float], same: bool) -> None:
    assert close([torch.tensor(one)], [torch.tensor(other)], 1e-4) is same


def test_the_coarsest_type_tells_the_tolerance() -> None:
    assert tolerance_of([torch.zeros(1), "text"]) == 1e-4
    assert tolerance_of([torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16)]) == 2e-2
    assert tolerance_of([torch.zeros(1)], torch.float16) == 2e-2
    assert tolerance_of([torch.zeros(1, dtype=torch.long)]) == 0.0


class Box:
    """Holds something."""

    def __init__(self, inside: Any) -> None:
        self.inside = inside


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (torch.tensor([NAN, 1.0]), torch.tensor([NAN, 1.0]), True),
        (torch.tensor([NAN, 1.0]), torch.tensor([NAN, 1.0 + 1e-6]), False),
        (torch.tensor([1]), torch.tensor([1.0]), False),
        (torch.tensor([1]), np.array([1]), False),
        (np.array([NAN, 1.0]), np.array([NAN, 1.0]), True),
        (np.array(["a", "b"]), np.array(["a", "c"]), False),
        (np.array(["a", "b"]), np.array(["a", "b"]), True),
        ({"a": [1, "b", NAN]}, {"a": [1, "b", NAN]}, True),
        ({"a": [1, "b"]}, {"a": [1, "b", 2]}, False),
        (Box([torch.ones(2)]), Box([torch.ones(2)]), True),
        (Box([torch.ones(2)]), Box([torch.zeros(2)]), False),
    ],
)
def test_what_is_read_twice_is_the_same_to_the_bit(one: Any, other: Any, same: bool) -> None:
    assert equal([one], [other]) is same
