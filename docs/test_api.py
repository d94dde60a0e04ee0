"""The API page speaks of each public name."""

import re
from pathlib import Path
from types import ModuleType

import pytest

import lightning_ft
import lightning_ft_callbacks


@pytest.mark.parametrize("package", [lightning_ft, lightning_ft_callbacks])
def test_the_api_page_lists_every_public_name(package: ModuleType) -> None:
    """A name that a package exports stands on the page, and nothing else does."""
    page = Path(__file__).with_name("api.md").read_text(encoding="utf-8")
    exported = {name for name, value in vars(package).items() if not name.startswith("_") and callable(value)}
    assert set(re.findall(rf":: {package.__name__}\.(\w+)$", page, re.MULTILINE)) == exported
