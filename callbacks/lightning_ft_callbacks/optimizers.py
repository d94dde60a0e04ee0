"""What optimizers differ in: some wrap another one, and in some no block can have a rate of its own."""

from collections.abc import Sequence

from torch.optim import LBFGS, Optimizer


def with_wrapped(optimizer: Optimizer) -> list[Optimizer]:
    """Return an optimizer and those that it wraps, the one that applies the updates last.

    timm's Lookahead, SAM and others hold another optimizer, whose parameter groups are theirs too: what is changed in
    these for an update must be changed in that one.

    Args:
        optimizer: The optimizer.
    """
    found = [optimizer]
    for value in vars(optimizer).values():
        if isinstance(value, Optimizer) and value.param_groups is optimizer.param_groups:
            found += with_wrapped(value)
    return found


def takes_one_rate(optimizer: Optimizer) -> bool:
    """Tell whether an optimizer estimates one learning rate for all its groups, as Prodigy and D-Adaptation do.

    Args:
        optimizer: The optimizer.
    """
    names = [found.__name__ for each in with_wrapped(optimizer) for found in type(each).__mro__]
    return any(name.startswith(("Prodigy", "DAdapt")) for name in names)


def check_scalable(optimizers: Sequence[Optimizer], what: str) -> None:
    """Make sure that blocks can have learning rates of their own.

    Args:
        optimizers: The optimizers.
        what: What gives blocks their rates, for the message.

    Raises:
        ValueError: If an optimizer takes no groups, or sets its rates itself.
    """
    if any(isinstance(optimizer, LBFGS) for optimizer in optimizers):
        raise ValueError("LBFGS takes a single parameter group, so its blocks cannot have rates of their own")
    for optimizer in optimizers:
        if takes_one_rate(optimizer):
            raise ValueError(
                f"{type(optimizer).__name__} takes one learning rate for all groups, so {what} cannot give each "
                "block its own"
            )
    check_has_rates(optimizers, what)


def check_has_rates(optimizers: Sequence[Optimizer], what: str) -> None:
    """Make sure that optimizers use the learning rates in their groups.

    Args:
        optimizers: The optimizers.
        what: What changes these, for the message.

    Raises:
        ValueError: If one sets its rates itself.
    """
    for optimizer in optimizers:
        if any(group["lr"] is None for group in optimizer.param_groups):
            raise ValueError(
                f"{type(optimizer).__name__} sets its learning rates itself (lr=None), so {what} cannot change them; "
                "give it one (transformers' Adafactor: lr=1e-3, relative_step=False)"
            )
