"""What the command does not show: advertisements, and warnings that its user can do nothing about."""

import logging
import warnings


def quiet() -> None:
    """Silence them; a user's own warning filters come later and win."""
    for message in (
        r".*isinstance\(treespec, LeafSpec\).*",  # Lightning's own use of a name that torch renames
        r".*does not have many workers.*",  # the order and the samples are the same with any number
        r".*Checkpoint directory .* exists and is not empty.*",  # a resumed run's own folder
        r".*ended before the epoch ended and your dataloader is not resumable.*",  # our data's order is
    ):
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "💡 Tip" not in record.getMessage()
    )
