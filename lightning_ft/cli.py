"""The command: a LightningCLI whose runs have folders of their own and whose errors are one sentence."""

import sys
from collections.abc import Sequence
from pathlib import Path
from signal import Signals
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, LRSchedulerTypeTuple
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.optim import Optimizer

from lightning_ft.config_errors import CLOSE, OPEN, explain
from lightning_ft.module import FineTuner
from lightning_ft.predictions import PredictionWriter
from lightning_ft.recipe import build_data, check_head, fill, move_optimizer, rebuild_from
from lightning_ft.report.run_report import RunReport
from lightning_ft.run.arguments import RUNS
from lightning_ft.run.board import RunBoard
from lightning_ft.run.checkpoint_io import AtomicCheckpointIO, load_checkpoint
from lightning_ft.run.checkpoints import LAST, BestCheckpoint, LastCheckpoint
from lightning_ft.run.config import RunConfig
from lightning_ft.run.folder import CHECKPOINTS, discard_unused, new_run_folder, run_folder_of
from lightning_ft.run.graceful_stop import GracefulStop
from lightning_ft.run.metrics_csv import Logged, LoggedRows, MetricsCSV
from lightning_ft.run.out_of_memory import advice, is_out_of_memory
from lightning_ft.run.records import RunRecords
from lightning_ft.run.results import print_results, save_results
from lightning_ft.trainer import FineTuningTrainer
from lightning_ft.trusted_code import denied_path, trusting
from lightning_ft_callbacks import DiscriminativeLR as DiscriminativeLR  # a recipe may name the callbacks alone
from lightning_ft_callbacks import FiniteLoss as FiniteLoss
from lightning_ft_callbacks import FrozenPrefixCache as FrozenPrefixCache
from lightning_ft_callbacks import GradualUnfreezing as GradualUnfreezing
from lightning_ft_callbacks import LRFinder as LRFinder

DESCRIPTION = (
    "Fine-tune pretrained models by recipes. Two further commands, with a --help of their own, use a finished run: "
    "`lightning-ft report` tells its story on a page, `lightning-ft export` writes its model for other programs."
)
# the commands that start from a recipe; the others need a trained model
TRAINING = ("fit", "plan", "lr_find")


class Parser(LightningArgumentParser):
    """LightningCLI's parser, whose errors are one sentence instead of a page of usage."""

    arguments: Sequence[str] = ()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what is wrong as one sentence: the file, the key, and the nearest valid one.

        Raises:
            ValueError: Always.
        """
        if denied_path(message) is not None:
            raise ValueError(message) from ex
        sentence = explain(message, self, self.arguments)
        nested = self._subcommands_action is None
        raise ValueError(f"{OPEN}{sentence}{CLOSE}" if nested else sentence) from ex


class Command(LightningCLI):
    """``lightning-ft fit``, ``plan``, ``lr_find``, ``validate``, ``test`` and ``predict``.

    Beside Lightning's own keys a recipe needs the backbone, the head and the data: the number of classes and the task
    are taken from the data's labels, the tokenizer and the image size from the backbone. ``lightning-ft export`` is a
    command of its own.

    Args:
        arguments: The command line without the program.
        safe: Whether to refuse classes that are none of this project, Lightning, torch and torchmetrics.
    """

    def __init__(self, arguments: Sequence[str], *, safe: bool = False) -> None:
        Parser.arguments = arguments
        self.safe = safe
        self.arguments = list(arguments)
        self.run_folder: Path | None = None
        self.stop: GracefulStop | None = None
        self.logged: Logged | None = None
        self.tested_step = 0
        super().__init__(
            FineTuner,
            LightningDataModule,
            trainer_class=FineTuningTrainer,
            subclass_mode_data=True,
            parser_class=Parser,
            parser_kwargs={"prog": "lightning-ft", "allow_abbrev": False, "description": DESCRIPTION},
            trainer_defaults={"default_root_dir": RUNS, "max_epochs": 3, "log_every_n_steps": 10},
            save_config_callback=RunConfig,
            auto_configure_optimizers=False,
            args=list(arguments),
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the trainer's methods that are commands, with the arguments that are not options."""
        commands = LightningCLI.subcommands()
        return commands | {"plan": commands["fit"], "lr_find": commands["fit"]}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments given; Lightning would warn that they are not ``sys.argv``.

        Raises:
            ValueError: If they are wrong, or name somebody else's class, and that is to be refused.
        """
        self.config = trusting(lambda: parser.parse_args(args), safe=self.safe)

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as the user gave it; Lightning would lay the checkpoint's over it, silently."""

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand not in TRAINING:
            parser.add_argument(
                "--run",
                type=str | None,
                default=None,
                help="A run's folder, or `last`: its configuration and best checkpoint.",
            )
        if subcommand == "predict":
            parser.set_defaults({"return_predictions": False})  # they are written, and need not be in memory together
        if subcommand in ("test", "validate"):
            parser.set_defaults({"verbose": False})  # the command prints the results itself, with names
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the default callbacks, which a recipe's own do not replace, and Lightning's optimizer keys."""
        parser.add_lightning_class_args(BestCheckpoint, "best_checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.add_lightning_class_args(RunReport, "report")
        parser.add_optimizer_args((Optimizer,))
        parser.add_lr_scheduler_args(LRSchedulerTypeTuple)

    def instantiate_classes(self) -> None:
        """Build the data, ask it for its labels, and build the rest for them."""
        config = self._config
        move_optimizer(config)
        checkpoint: dict[str, Any] | None = None
        if config.get("ckpt_path"):
            checkpoint = load_checkpoint(config.ckpt_path)
            if self.subcommand in TRAINING:
                self.logged = Logged.of(checkpoint)
            else:
                self.tested_step = checkpoint["global_step"]
                rebuild_from(config, checkpoint)
        elif self.subcommand not in TRAINING:
            raise ValueError(f"{self.subcommand} needs a trained model: give --run RUN_FOLDER or --ckpt_path FILE")
        data = build_data(config.data)
        labels = getattr(data, "labels", None)
        if labels is not None:
            check_head(config.model.head, labels.task, type(data).__name__)
            scale = {"target_mean": labels.mean, "target_std": labels.std}
            fill(config.model.head, task=labels.task, num_classes=labels.num_classes, **scale)
            fill(config.model.backbone, num_items=labels.num_classes)
        super().instantiate_classes()
        self.datamodule = data
        if checkpoint is not None:
            # before anything is written into the folder of the run that is resumed
            self.model.check_fits(checkpoint)
        # from these FineTuner.load_from_checkpoint builds the module again
        recipe = config.model.as_dict() | {"_instantiator": "lightning.pytorch.cli.instantiate_module"}
        self.model.save_hyperparameters(recipe)

    @property
    def _config(self) -> Namespace:
        """The configuration of the command that runs."""
        return self.config[str(self.subcommand)]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer, with the loggers and checkpoints in the run's folder."""
        config = self._get(self.config_init, "trainer")
        writes = self.subcommand in ("fit", "lr_find") and not config.fast_dev_run
        if writes:
            self.run_folder = self._run_folder(Path(config.default_root_dir))
        self.save_config_kwargs = {"folder": self.run_folder}
        if not writes:
            config.logger = False if config.logger in (None, True) else config.logger
        elif config.logger is not False:
            # other ranks have loggers too, which write nothing: callbacks ask for them on all ranks
            folder = self.run_folder or Path(config.default_root_dir) / f"rank_{_rank()}"
            own = config.logger if isinstance(config.logger, list) else [config.logger]
            config.logger = [*self._loggers(folder), *(logger for logger in own if isinstance(logger, Logger))]
        plugins = config.plugins if isinstance(config.plugins, list) else [config.plugins] if config.plugins else []
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [*plugins, AtomicCheckpointIO()]
        return super().instantiate_trainer(plugins=plugins, **kwargs)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
        if self.subcommand == "plan":
            config |= {"enable_progress_bar": False}
        if self.subcommand != "fit":
            config |= {"enable_model_summary": False}
        keeps = self.subcommand == "fit" and config.get("enable_checkpointing") is not False
        for callback in callbacks:
            if isinstance(callback, BestCheckpoint | LastCheckpoint) and self.run_folder is not None:
                callback.dirpath = str(self.run_folder / CHECKPOINTS)  # a Path would not load with weights_only
            if isinstance(callback, RunReport):
                callback.folder = self.run_folder
        chosen = [
            callback
            for callback in callbacks
            if (keeps or not isinstance(callback, BestCheckpoint | LastCheckpoint))
            and (self.subcommand == "predict" or not isinstance(callback, PredictionWriter))
            and (self.subcommand == "fit" or not isinstance(callback, RunReport))
        ]
        if self.subcommand == "fit":
            self.stop = GracefulStop()
            watched = any(isinstance(callback, FiniteLoss) for callback in chosen)
            chosen = [
                *chosen,
                *([] if watched else [FiniteLoss()]),
                LoggedRows(),
                RunRecords(self.run_folder, self.arguments),
                self.stop,
            ]
        try:
            return super()._instantiate_trainer(config, chosen)
        except RuntimeError as error:  # two callbacks of one class, for one
            raise ValueError(str(error)) from error

    def _run_folder(self, root: Path) -> Path | None:
        if _rank() != 0:
            return None
        checkpoint = self._config.get("ckpt_path")
        resumed = run_folder_of(checkpoint) if checkpoint else None
        return resumed or new_run_folder(root)

    def _loggers(self, folder: Path) -> list[Logger]:
        purge_step = None if self.logged is None else self.logged.next_step
        return [MetricsCSV(folder, self.logged), RunBoard(folder, purge_step)]

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the command; a new run's folder goes where the run failed before it trained."""
        try:
            super()._run_subcommand(subcommand)
        except BaseException as error:
            if self.run_folder is not None and self.logged is None:
                discard_unused(self.run_folder)
            if isinstance(error, SIGTERMException) and self.stop is not None and self.stop.asked is not None:
                print(self._stopped(self.stop.asked), file=sys.stderr)
                raise SystemExit(128 + self.stop.asked) from None
            if is_out_of_memory(error):
                raise MemoryError(advice(error, self.trainer, self._config)) from error
            raise

    def _stopped(self, asked: Signals) -> str:
        """Return the line that says how to go on with a run that was stopped."""
        said = f"lightning-ft: stopped by {asked.name} behind step {self.trainer.global_step}"
        checkpoint = None if self.run_folder is None else self.run_folder / CHECKPOINTS / LAST
        if checkpoint is None or not checkpoint.exists():
            return f"{said}; there is no checkpoint to go on from"
        return f"{said}; go on with: lightning-ft fit --ckpt_path {checkpoint}"

    def before_fit(self) -> None:
        """Say where the run's files go."""
        if self.run_folder is not None:
            print(f"run folder: {self.run_folder}", flush=True)

    def after_fit(self) -> None:
        """Make the run's report, and say where the run's files are."""
        callbacks: list[Callback] = self.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        for callback in callbacks:
            if isinstance(callback, RunReport) and callback.at_end and self.run_folder is not None:
                from lightning_ft.report.command import report_of_fit  # what draws it is loaded where it is needed

                print(report_of_fit(self.run_folder), flush=True)
        self.before_fit()

    def after_lr_find(self) -> None:
        """Say what to do with the rate that was found, and where the curve is."""
        callbacks: list[Callback] = self.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        for callback in callbacks:
            if isinstance(callback, LRFinder) and callback.factor is not None and _rank() == 0:
                print(f"train at it with: --model.lr {self.model.lr * callback.factor:.2g}")
        self.before_fit()

    def after_validate(self) -> None:
        """Print each metric on a line of its own, the confusion matrix, and the run's folder."""
        self.after_test()

    def after_test(self) -> None:
        """Print each metric on a line of its own, the confusion matrix, and the run's folder."""
        if _rank() == 0:
            stage = "test" if self.subcommand == "test" else "val"
            print_results(self.trainer, self.model, stage)
            folder = run_folder_of(self._config.ckpt_path)
            whole = getattr(self.trainer, f"limit_{stage}_batches") in (None, 1.0)
            if folder is not None and whole and not self._config.trainer.fast_dev_run:
                save_results(folder, stage, self.trainer, Path(self._config.ckpt_path), self.tested_step)
            print(f"run folder: {folder or 'none'}")

    def after_predict(self) -> None:
        """Say where the predictions are."""
        callbacks: list[Callback] = self.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        for callback in callbacks:
            if isinstance(callback, PredictionWriter) and _rank() == 0:
                print(f"predictions: {callback.file} ({callback.num_rows} rows)")


def _rank() -> int:
    """Return the rank of this process, which the launcher has told it before there is a trainer."""
    return rank_zero_only.rank  # pyright: ignore[reportFunctionMemberAccess]
