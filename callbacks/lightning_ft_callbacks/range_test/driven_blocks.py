"""What a range test trains: what the rate that it finds will drive."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_ft_callbacks.plan import in_few_words


@dataclass(frozen=True, slots=True)
class DrivenBlocks:
    """Blocks that a range test trains where a schedule has phases.

    Attributes:
        names: The blocks, input first; empty where no schedule says which are trained.
        words: The same in few words, with the phases that train them: ``"all, which phase 1 trains"``.
    """

    names: tuple[str, ...] = ()
    words: str = ""


@contextmanager
def driven_blocks(trainer: Trainer, *, each_phase: bool) -> Iterator[DrivenBlocks]:
    """Train, within it, what the rate that a test finds will drive.

    Where each phase has a test of its own, that is what the phase trains. Else it is all that this phase and later ones
    train: a head alone wants a rate that ruins what a later phase trains with it.

    Args:
        trainer: The trainer, in a fit; one of its callbacks may say which phases come, and train others for trial.
        each_phase: Whether each phase has a test of its own.
    """
    callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    phased = next((one for one in callbacks if getattr(one, "phases_to_come", None)), None)
    if phased is None:
        yield DrivenBlocks()
        return
    names: tuple[str, ...] = phased.block_map.names
    now, *later = [trained for trained, _ in phased.phases_to_come]
    if each_phase:
        yield DrivenBlocks(now, f"{in_few_words(now, names)}, which phase {phased.phase} trains")
        return
    driven = {name for trained in (now, *later) for name in trained}
    wide = tuple(name for name in names if name in driven)
    widest = next((n for n, trained in enumerate((now, *later), phased.phase) if set(trained) == driven), None)
    which = f"phase {widest} trains" if widest is not None else f"phases {phased.phase} and later train together"
    tested = DrivenBlocks(wide, f"{in_few_words(wide, names)}, which {which}")
    if wide == now:
        yield tested
        return
    rank_zero_info(f"LRFinder: tests {tested.words}, because the rate found drives the whole schedule")
    with phased.training(wide):
        yield tested
