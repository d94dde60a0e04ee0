"""ReplacedStep: a module's step that is run in another way for the length of a batch."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from lightning.pytorch import LightningModule

Run = Callable[[Callable[[], Any]], Any]  # runs a step that takes no arguments any more


class ReplacedStep:
    """Replaces a module's step, for one batch at a time, because a module may be copied between them.

    Args:
        module: The module.
    """

    def __init__(self, module: LightningModule) -> None:
        self._module = module
        self._own: tuple[str, Any] | None = None

    def begin(self, name: str, run: Run) -> None:
        """Have a step run by somebody.

        Args:
            name: The step's name.
            run: Runs it.
        """
        step = getattr(self._module, name)

        @wraps(step)
        def replaced(*args: Any, **kwargs: Any) -> Any:
            return run(partial(step, *args, **kwargs))

        self._own = name, self._module.__dict__.get(name)
        self._module.__dict__[name] = replaced

    def end(self) -> None:
        """Give the module its own step back."""
        if self._own is not None:
            name, own = self._own
            self._module.__dict__.pop(name, None)
            if own is not None:
                self._module.__dict__[name] = own
        self._own = None
