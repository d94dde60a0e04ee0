"""Importing by name: optional dependencies, and classes that a recipe names."""

from importlib import import_module
from types import ModuleType
from typing import Any


def require(module: str, *, extra: str, needed_by: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: The module's import name, as in ``"transformers"``.
        extra: The extra of lightning-ft that installs it.
        needed_by: The public name that needs it, for the message.

    Returns:
        The imported module.

    Raises:
        ModuleNotFoundError: If it is not installed; the message names the extra.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != top:
            raise
        raise ModuleNotFoundError(
            f"{needed_by} needs {top}: pip install 'lightning-ft[{extra}]'", name=error.name
        ) from None


def import_class(path: str) -> Any:
    """Import a class by its whole name, as in ``"lightning_ft.heads.image_classification.ImageClassificationHead"``.

    Raises:
        ImportError: If there is no such module.
        AttributeError: If the module has no such class.
    """
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)
