"""EvalModeHint: Lightning's warning of modules in eval mode, which counts what is frozen on purpose."""

import warnings
from typing import Any


class EvalModeHint:
    """Silences the warning between the start of a fit and that of its training, and no longer."""

    def __init__(self) -> None:
        self._filter: Any = None

    def silence(self) -> None:
        """Have Lightning say nothing of modules in eval mode."""
        self.release()
        warnings.filterwarnings("ignore", message="Found .* in eval mode at the start of training")
        self._filter = warnings.filters[0]

    def release(self) -> None:
        """Let it speak again."""
        if self._filter in warnings.filters:
            warnings.filters.remove(self._filter)  # pyright: ignore[reportAttributeAccessIssue]
        self._filter = None
