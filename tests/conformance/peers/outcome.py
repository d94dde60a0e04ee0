"""Outcome: what became of a tool in a trap."""

import traceback
from dataclasses import dataclass

# an explicit refusal is raised by one of these
TOOLS = (
    "lightning_ft_callbacks",
    "finetuning_scheduler",
    "lightning/pytorch/callbacks/finetuning.py",
    "lightning/pytorch/callbacks/lr_finder.py",
    "lightning/pytorch/tuner",
)
NUM_WORDS = 16


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a tool in a trap.

    Attributes:
        passed: Whether the tool did what its user asked.
        seen: What was seen, in a few words.
        refused: Whether the tool said by itself that it does not do this.
    """

    passed: bool
    seen: str
    refused: bool = False

    @property
    def verdict(self) -> str:
        """The outcome in one word."""
        return "passed" if self.passed else "refused" if self.refused else "failed"

    @classmethod
    def of_exception(cls, error: BaseException) -> "Outcome":
        """Return the outcome of a run that raised.

        A refusal is a ``raise`` written in the tool's own code; all else that comes out of a run is a failure.
        """
        last = traceback.extract_tb(error.__traceback__)[-1]
        own = any(tool in last.filename for tool in TOOLS) and (last.line or "").startswith("raise ")
        return cls(False, first_words(str(error) if own else f"{type(error).__name__}: {error}"), refused=own)


def first_words(text: str) -> str:
    """Return the beginning of a message."""
    words = text.split()
    return " ".join(words[:NUM_WORDS]) + (" ..." if len(words) > NUM_WORDS else "")
