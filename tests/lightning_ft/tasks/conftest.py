"""The small data sets of the tasks, written once for all tests of a process."""

from pathlib import Path

import pytest
from task_sets import write_films, write_mentions, write_scenes, write_shapes


@pytest.fixture(scope="session")
def mentions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mentions(tmp_path_factory.mktemp("mentions"))


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_films(tmp_path_factory.mktemp("films"))
