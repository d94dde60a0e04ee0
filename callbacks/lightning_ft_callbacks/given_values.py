"""Whether the values that a user gives are of the kind, and in the range, that they are for."""

from math import isfinite
from numbers import Integral, Real
from typing import Any


def check_number(
    name: str, value: Any, *, above: float | None = None, at_least: float | None = None, at_most: float | None = None
) -> None:
    """Make sure that a value is a finite number within a range.

    Args:
        name: What the value is, for the message: ``"decay"``, ``"the scale of 'head'"``.
        value: The value.
        above: What it must be more than.
        at_least: What it must not be less than.
        at_most: What it must not be more than.

    Raises:
        ValueError: If it is not, with its name, the value and, of a text that says a number, how to write it.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise ValueError(f"expected {name} to be a number, but got {value!r}{_as_number(value)}")
    number = float(value)
    within = (above is None or number > above) and (at_least is None or number >= at_least)
    if not within or (at_most is not None and not number <= at_most):
        raise ValueError(f"expected {name} to be {_range(above, at_least, at_most)}, but got {value}")
    if not isfinite(number):
        raise ValueError(f"expected {name} to be finite, but got {value}")


def check_count(name: str, value: Any, *, at_least: int = 0) -> None:
    """Make sure that a value is a whole number that is not too small.

    Args:
        name: What the value is, for the message: ``"ramp_steps"``.
        value: The value.
        at_least: What it must not be less than.

    Raises:
        ValueError: If it is not, with its name, the value and, of a text or fraction that says one, how to write it.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"expected {name} to be a whole number, but got {value!r}{_as_number(value)}")
    check_number(name, value, at_least=at_least)


def check_switch(name: str, value: Any) -> None:
    """Make sure that a value is True or False; a text such as ``"no"`` would count as true.

    Args:
        name: What the value is, for the message.
        value: The value.

    Raises:
        ValueError: If it is neither, with its name and the value.
    """
    if not isinstance(value, bool):
        raise ValueError(f"expected {name} to be True or False, but got {value!r}")


def _range(above: float | None, at_least: float | None, at_most: float | None) -> str:
    if at_most is not None:
        lower = f"({above:g}" if above is not None else "(-inf" if at_least is None else f"[{at_least:g}"
        return f"in {lower}, {at_most:g}]"
    if above is not None:
        return f"above {above:g}" if above else "positive"
    return f"at least {at_least:g}"


def _as_number(value: Any) -> str:
    """Return how to write the number that a text or a fraction says; YAML takes 1e-4 for a text, and 1.0e-4 for none.

    Source: https://yaml.org/type/float.html
    """
    try:
        number = float(value) if isinstance(value, str | Real) and not isinstance(value, bool) else None
    except ValueError:
        return ""
    if number is None or not isfinite(number):
        return ""
    if number.is_integer():
        return f"; write {number:.0f}"
    mantissa, mark, exponent = repr(number).partition("e")
    return f"; write {mantissa}{'' if '.' in mantissa else '.0'}{mark}{exponent}" if isinstance(value, str) else ""
