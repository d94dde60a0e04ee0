"""Optimizers of which a phase trains nothing, as one network of a GAN that is frozen for a while."""

from collections.abc import Collection, Sequence

from torch.nn import Parameter
from torch.optim import Optimizer


def idle_optimizers(optimizers: Sequence[Optimizer], trained: Collection[Parameter]) -> list[int]:
    """Return the numbers of the optimizers that hold nothing of what is trained.

    Args:
        optimizers: A trainer's optimizers.
        trained: The parameters that are trained.
    """
    learning = {id(parameter) for parameter in trained}
    return [
        number
        for number, optimizer in enumerate(optimizers)
        if not any(id(parameter) in learning for group in optimizer.param_groups for parameter in group["params"])
    ]


def idle_notes(optimizers: Sequence[Optimizer], phases: Sequence[Collection[Parameter]]) -> list[str]:
    """Return a line for each of several optimizers that is idle in a phase.

    Args:
        optimizers: A trainer's optimizers.
        phases: The parameters that each phase trains.
    """
    idle = [idle_optimizers(optimizers, trained) for trained in phases]
    notes = []
    for number, optimizer in enumerate(optimizers):
        where = [str(phase) for phase, numbers in enumerate(idle) if number in numbers]
        if where and len(optimizers) > 1:
            notes.append(
                f"optimizer {number} (of {len(optimizers)}, {type(optimizer).__name__}) has nothing to train in phase "
                f"{', '.join(where)}: where training_step toggles it, its loss has no gradient, so call "
                "manual_backward only if loss.requires_grad"
            )
    return notes
