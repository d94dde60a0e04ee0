"""What a user gives is of the kind, and in the range, that it is for; else the error says what and how."""

from typing import Any

import numpy as np
import pytest
import yaml

from lightning_ft_callbacks.given_values import check_count, check_number, check_switch


@pytest.mark.parametrize("value", [0.5, 1, np.float32(0.5), np.int64(1)])
def test_a_number_of_any_library_is_one(value: Any) -> None:
    check_number("decay", value, above=0, at_most=1)


@pytest.mark.parametrize("value", ["0.8", None, True, [0.8], 1j])
def test_what_is_no_number_is_refused_with_its_name_and_itself(value: Any) -> None:
    with pytest.raises(ValueError, match="expected decay to be a number, but got ") as told:
        check_number("decay", value)
    assert repr(value) in str(told.value)


@pytest.mark.parametrize(
    ("value", "bounds", "words"),
    [
        (0, {"above": 0}, "positive, but got 0"),
        (1, {"above": 1}, "above 1, but got 1"),
        (-1.0, {"at_least": 0}, "at least 0, but got -1.0"),
        (1.5, {"above": 0, "at_most": 1}, r"in \(0, 1\], but got 1.5"),
        (-1, {"at_least": 0, "at_most": 1}, r"in \[0, 1\], but got -1"),
        (float("nan"), {"above": 0}, "positive, but got nan"),
        (float("inf"), {"above": 0}, "finite, but got inf"),
        (float("nan"), {}, "finite, but got nan"),
    ],
)
def test_a_number_out_of_its_range_is_refused_with_the_range(value: Any, bounds: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"expected x to be {words}$"):
        check_number("x", value, **bounds)


@pytest.mark.parametrize("text", ["1e-4", "1e-6", "0.8", "5", "2.5e-7", "1e3"])
def test_of_a_text_that_says_a_number_the_error_says_how_yaml_reads_one(text: str) -> None:
    with pytest.raises(ValueError, match="; write ") as told:
        check_number("min_delta", text)
    assert yaml.safe_load(str(told.value).rpartition("write ")[2]) == float(text)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("5", "a whole number, but got '5'; write 5"),
        (1e2, "a whole number, but got 100.0; write 100"),
        (1.5, "a whole number, but got 1.5"),
        ("4GB", "a whole number, but got '4GB'"),
        (True, "a whole number, but got True"),
        (None, "a whole number, but got None"),
        (1, "at least 2, but got 1"),
    ],
)
def test_a_count_is_a_whole_number(value: Any, words: str) -> None:
    check_count("num_steps", 2, at_least=2)
    with pytest.raises(ValueError, match=f"expected num_steps to be {words}$"):
        check_count("num_steps", value, at_least=2)


@pytest.mark.parametrize("value", ["yes", "no", 1, None])
def test_a_switch_is_true_or_false(value: Any) -> None:
    check_switch("thaw_frozen", True)
    with pytest.raises(ValueError, match=f"expected thaw_frozen to be True or False, but got {value!r}$"):
        check_switch("thaw_frozen", value)
