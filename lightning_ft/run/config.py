"""RunConfig: the configuration that a run's folder keeps."""

from pathlib import Path

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from lightning_ft.run.folder import CONFIG
from lightning_ft_callbacks.whole_file import write_whole


class RunConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the run's folder, whole or not at all; a resumed run writes its own over it.

    ``ckpt_path`` is left out, so that the file starts a new run.

    Args:
        *args: Lightning's.
        folder: The run's folder; None on ranks that do not write.
        **kwargs: Lightning's.
    """

    def __init__(self, *args, folder: Path | None, **kwargs) -> None:  # noqa: ANN002, ANN003
        super().__init__(*args, **kwargs)
        self.folder = folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write nothing yet: a run that cannot be resumed is left as it was."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Write the file, on rank zero."""
        if self.folder is None:
            return
        config = yaml.safe_load(self.parser.dump(self.config, skip_unset=False, format="yaml"))
        config.pop("ckpt_path", None)
        write_whole(self.folder / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
