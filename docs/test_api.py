"""The API page speaks of each public name."""

import re
from pathlib import Path

import lightning_ft


def test_the_api_page_lists_every_public_name() -> None:
    """A name that ``lightning_ft`` exports stands on the page, and nothing else does."""
    page = Path(__file__).with_name("api.md").read_text(encoding="utf-8")
    exported = {name for name, value in vars(lightning_ft).items() if not name.startswith("_") and callable(value)}
    assert set(re.findall(r":: lightning_ft\.(\w+)$", page, re.MULTILINE)) == exported
