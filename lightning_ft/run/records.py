"""RunRecords: what a run's folder says of how it was made."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_ft.run.environment import environment
from lightning_ft.run.folder import ENVIRONMENT, PLAN
from lightning_ft_callbacks import FineTuningPlan, GradualUnfreezing
from lightning_ft_callbacks.base_rates import group_peaks
from lightning_ft_callbacks.whole_file import remove_partial, write_whole


class RunRecords(Callback):
    """Writes ``environment.txt``, a section a start, and ``plan.txt``, what each phase trains.

    Args:
        folder: The run's folder; None on ranks that do not write.
        arguments: The command line without the program.
    """

    def __init__(self, folder: Path | None, arguments: Sequence[str]) -> None:
        self.folder = folder
        self.arguments = list(arguments)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write both, on rank zero; of a resumed run remove what a kill left half written."""
        if self.folder is None:
            return
        remove_partial(self.folder)
        file = self.folder / ENVIRONMENT
        before = file.read_text(encoding="utf-8") + "\n" if file.exists() else ""
        write_whole(file, before + environment(trainer, self.arguments))
        write_whole(self.folder / PLAN, f"{_plan(trainer, pl_module)}\n")


def _plan(trainer: Trainer, module: LightningModule) -> FineTuningPlan:
    """Return the plan that was printed, or without GradualUnfreezing that of one phase."""
    callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    for callback in callbacks:
        if isinstance(callback, GradualUnfreezing) and callback.plan is not None:
            return callback.plan
    highest = max(group_peaks(trainer).values(), default=0.0)
    blocks = FineTuningPlan.of(module, "full").names
    return FineTuningPlan.of(module, "full", lrs=dict.fromkeys(blocks, highest))
