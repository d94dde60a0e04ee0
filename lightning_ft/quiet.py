"""What the command does not show: advertisements, and notices that its user can do nothing about."""

import logging
import warnings

WARNINGS = (
    r".*isinstance\(treespec, LeafSpec\).*",  # Lightning's own use of a name that torch renames
    r".*does not have many workers.*",  # the order and the samples are the same with any number
    r".*Checkpoint directory .* exists and is not empty.*",  # a resumed run's own folder
    r".*callbacks used to create the checkpoint need to be provided.*",  # those of a fit, in a test
    r".*is smaller than the logging interval.*",
    r".*ended before the epoch ended and your dataloader is not resumable.*",  # our data's order is
)
NOTICES = ("💡 Tip", "`weights_only` was not set", "Loading `train_dataloader` to estimate", "TPU available")


def quiet() -> None:
    """Silence them; a user's own warning filters come later and win."""
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message)
    for home in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"lightning.pytorch.{home}").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(NOTICES)
