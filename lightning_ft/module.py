"""FineTuner: the LightningModule of a backbone and a head."""

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, cast, get_args

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import MeanMetric, Metric, MetricCollection

from lightning_ft.backbones.base import Backbone
from lightning_ft.features import FeatureInfo
from lightning_ft.heads.base import Head
from lightning_ft.lr_schedules import ScheduleName, make_schedule
from lightning_ft.optimizers import make_optimizer
from lightning_ft.rng import rng_state, set_rng_state
from lightning_ft.run.adapted_base import put_back
from lightning_ft.run.checkpoint_io import check_same_model

Batch = Mapping[str, Tensor]


class FineTuner(LightningModule):
    """A pretrained backbone with a new head, and how to train them.

    A batch is a mapping with the target under ``labels`` and the backbone's inputs under their own names. Logged are
    ``train/loss`` each step, and ``val/loss``, ``test/loss`` and the head's metrics each epoch.

    Args:
        backbone: The pretrained network.
        head: A factory of the head, called with the backbone's FeatureInfo: ``partial(SequenceClassificationHead,
            num_classes=2)``.
        lr: Learning rate at the schedule's peak.
        weight_decay: Weight decay, except of biases, norms and embeddings.
        lr_schedule: ``"constant"``, ``"linear"``, ``"cosine"``, ``"one_cycle"`` or ``"plateau"``, stepped at each
            optimizer step; or a callable from the optimizer to a torch scheduler, stepped each epoch as in Lightning,
            or to Lightning's dictionary of scheduler, interval and frequency.
        warmup: Warm-up of the learning rate, a share of the run's steps below 1, or a number of steps.
        optimizer: A factory, called with parameter groups that carry ``lr`` and ``weight_decay``.
        compile: Whether to run the backbone through torch.compile.

    Attributes:
        label_names: Names of the classes in the order of the prediction, from the data or the checkpoint.
        tables: The last values of metrics that are no single number: ``"test/confusion_matrix"``.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Callable[[FeatureInfo], Head],
        *,
        lr: float = 2e-4,
        weight_decay: float = 0.01,
        lr_schedule: ScheduleName | Callable[[Optimizer], LRScheduler | ReduceLROnPlateau] = "linear",
        warmup: float = 0.1,
        optimizer: Callable[[Iterable], Optimizer] = AdamW,
        compile: bool = False,  # noqa: A002 - torch's name for it
    ) -> None:
        super().__init__()
        if not lr > 0:  # NaN too
            raise ValueError(f"expected lr to be positive, but got {lr}")
        if not weight_decay >= 0:
            raise ValueError(f"expected weight_decay to be at least 0, but got {weight_decay}")
        if isinstance(lr_schedule, str) and lr_schedule not in get_args(ScheduleName):
            near = get_close_matches(lr_schedule, get_args(ScheduleName), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"no lr_schedule {lr_schedule!r}; there are {', '.join(get_args(ScheduleName))}{hint}")
        self.save_hyperparameters("lr", "weight_decay", "warmup", "compile")
        self.backbone = backbone
        self.head = head(backbone.features)
        self.lr = lr
        self.weight_decay = weight_decay
        self.lr_schedule = lr_schedule
        self.warmup = warmup
        self.optimizer = optimizer
        self.compiled = compile
        self.label_names: tuple[str, ...] | None = None
        self.tables: dict[str, Tensor] = {}
        stages = ("val", "test")
        self.losses = nn.ModuleDict({stage: MeanMetric() for stage in stages})
        self.scores = nn.ModuleDict({stage: self.head.metrics().clone(prefix=f"{stage}/") for stage in stages})
        self._resumed_rng: dict[str, Any] | None = None
        self._plateau: ReduceLROnPlateau | None = None

    def forward(self, batch: Batch) -> Tensor:
        """Return the head's prediction for a batch."""
        return self.head.predict_from(self.backbone(batch), batch)

    def readable(self, batch: Batch) -> list[str]:
        """Return the texts of a batch, one a sample, for messages; none where it has no texts."""
        tokenizer = getattr(self.backbone, "tokenizer", None)
        if tokenizer is None or "input_ids" not in batch:
            return []
        return tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)

    @property
    def prefix_inputs(self) -> frozenset[str]:
        """Names of the entries of a batch that only the backbone's lowest blocks read: FrozenPrefixCache skips them."""
        return self.backbone.prefix_inputs

    def blocks(self) -> dict[str, list[str]]:
        """Return the blocks, input first: the backbone's, and the head unless all of it is tied to those."""
        inner = self.backbone.blocks().items()
        layout = {f"backbone.{name}": [f"backbone.{path}" for path in paths] for name, paths in inner}
        tied = {id(parameter) for parameter in self.backbone.parameters()}
        if any(id(parameter) not in tied for parameter in self.head.parameters()):
            layout["head"] = ["head"]
        return layout

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FineTuner":
        """Convert the parameters; sums of metrics stay in 32 bits: in bfloat16 they would soon stop growing."""
        super()._apply(fn, recurse)
        for metric in (module for module in self.modules() if isinstance(module, Metric)):
            # not by set_dtype, which would make numbers of counts
            for name in metric._defaults:
                setattr(metric, name, _in_32_bits(getattr(metric, name)))
            metric._defaults = {name: _in_32_bits(value) for name, value in metric._defaults.items()}
        return self

    def setup(self, stage: str) -> None:
        """Take the label names from the data, and compile where asked.

        Raises:
            ValueError: If the data has another number of classes than the head.
        """
        labels = getattr(getattr(self.trainer, "datamodule", None), "labels", None) if stage != "predict" else None
        if labels is not None:
            if self.head.num_classes not in (None, labels.num_classes):
                raise ValueError(
                    f"{type(self.head).__name__} has num_classes={self.head.num_classes}, but the data has "
                    f"{labels.num_classes}: {', '.join(labels.names[:20])}"
                )
            if getattr(self.head, "task", labels.task) != labels.task:
                raise ValueError(
                    f"{type(self.head).__name__} has task={self.head.task!r}, but the data is {labels.task}"
                )
            self.label_names = labels.names or None
        if stage == "fit":
            self._check_monitors()
        if self.compiled and self.backbone._compiled_call_impl is None:
            self.backbone.compile(dynamic=True)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the loss of a batch."""
        features, target = self.head.judged(self.backbone(batch), batch["labels"])
        loss = self.head.loss(self.head.predict_from(features, batch), target)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["labels"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Add a batch to the validation's loss and metrics."""
        self._evaluate("val", batch)

    def on_validation_epoch_end(self) -> None:
        """Log the validation, and step a plateau schedule before checkpoints are saved.

        Raises:
            ValueError: If what the schedule monitors is not logged; lists what is.
        """
        self._log("val")
        if self._plateau is None or self.trainer.sanity_checking or self.trainer.state.fn != "fit":
            return
        monitor, metrics = getattr(self._plateau, "monitor", "val/loss"), self.trainer.callback_metrics
        if monitor not in metrics:
            raise ValueError(f"lr_schedule monitors {monitor!r}, but only {', '.join(sorted(metrics))} are logged")
        self._plateau.step(metrics[monitor].item())

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        """Step a schedule.

        Lightning steps a plateau schedule after the checkpoint of that validation is saved, and not at all where a
        run is resumed from it. So FineTuner steps its own in ``on_validation_epoch_end`` instead.
        """
        if scheduler is not self._plateau:
            super().lr_scheduler_step(scheduler, metric)

    def test_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Add a batch to the test's loss and metrics."""
        self._evaluate("test", batch)

    def on_test_epoch_end(self) -> None:
        """Log the test."""
        self._log("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:  # noqa: ARG002
        """Return one row a sample, with label names."""
        return self.head.predict(self.backbone, batch, self.label_names)

    def configure_optimizers(self) -> Any:
        """Return the optimizer and its schedule.

        Raises:
            ValueError: If the optimizer's own lr or weight_decay was set too, which would have no effect.
        """
        optimizer = make_optimizer(self.optimizer, self, self.lr, self.weight_decay)
        if callable(self.lr_schedule):
            schedule: Any = self.lr_schedule(optimizer)
        else:
            steps = self.trainer.estimated_stepping_batches
            schedule = make_schedule(cast("ScheduleName", self.lr_schedule), optimizer, steps, self.warmup)
        if isinstance(schedule, ReduceLROnPlateau):
            self._plateau = schedule
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "monitor": "val/loss", "strict": False},
            }
        if isinstance(self.lr_schedule, str):
            schedule = {"scheduler": schedule, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what prediction and exact resume need: label names, the backbone's description, all ranks' RNG states."""
        checkpoint["label_names"] = None if self.label_names is None else list(self.label_names)
        checkpoint["backbone"] = self.backbone.description()
        if self.backbone.base is not None:
            self.backbone.base.leave_out(checkpoint, "backbone.")
        states: list[Any] = [rng_state()]
        if self.trainer.world_size > 1:
            states = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(states, rng_state())
        checkpoint["rng"] = states

    def check_fits(self, checkpoint: dict[str, Any]) -> None:
        """Raise unless a checkpoint's tensors are this model's; what was left out under adapters is put back.

        Args:
            checkpoint: The checkpoint, changed in place.

        Raises:
            ValueError: If they are not, with their number and the first; or if what was left out is no longer what the
                adapters were trained on.
        """
        ours = self.state_dict()
        put_back(checkpoint, ours)
        check_same_model(ours, checkpoint["state_dict"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the label names and RNG states.

        Raises:
            ValueError: If the checkpoint is of another model, with the first tensor that differs; or if a run is
                resumed with another lr or weight_decay, which its optimizer would not take.
        """
        self.check_fits(checkpoint)
        names = checkpoint.get("label_names")
        self.label_names = None if names is None else tuple(names)
        states = checkpoint.get("rng", [])
        trainer = self._trainer
        if trainer is not None and trainer.state.fn == "fit":
            for key, ours in (("lr", self.lr), ("weight_decay", self.weight_decay)):
                if (theirs := checkpoint.get("hyper_parameters", {}).get(key, ours)) != ours:
                    raise ValueError(
                        f"{key}={ours} would have no effect: the resumed run goes on with {theirs}; for another start "
                        "a new run from its backbone"
                    )
            if len(states) == trainer.world_size:
                self._resumed_rng = states[trainer.global_rank]
            else:
                rank_zero_info(
                    f"the checkpoint has random states of {len(states)} ranks, this run has {trainer.world_size}: "
                    "dropout will draw other masks than a run that was never stopped"
                )

    def on_train_start(self) -> None:
        """Set the random states of the run that is resumed."""
        if self._resumed_rng is not None:
            set_rng_state(self._resumed_rng)
            self._resumed_rng = None

    def _check_monitors(self) -> None:
        """Raise where a checkpoint or an early stop watches a misspelt metric; one that a callback logs may be any."""
        metrics = ["train/loss", "val/loss", *cast("MetricCollection", self.scores["val"])]
        for callback in self.trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            monitor = getattr(callback, "monitor", None)
            near = get_close_matches(monitor or "", metrics, n=1, cutoff=0.8)
            if monitor and monitor not in metrics and near:
                raise ValueError(f"{type(callback).__name__} monitors {monitor!r}; did you mean {near[0]!r}?")

    def _evaluate(self, stage: str, batch: Batch) -> None:
        features, target = self.head.judged(self.backbone(batch), batch["labels"])
        prediction = self.head.predict_from(features, batch)
        self._loss(stage).update(self.head.loss(prediction, target), weight=self.head.count(target))
        self._metrics(stage).update(*self.head.evaluated(prediction.float(), target, batch))

    def _log(self, stage: str) -> None:
        results = {f"{stage}/loss": self._loss(stage).compute(), **self._metrics(stage).compute()}
        self._loss(stage).reset()
        self._metrics(stage).reset()
        numbers = {name: value for name, value in results.items() if value.ndim == 0}
        # the values are those of all ranks already; the largest of equal ones is exact, a mean of them may round
        for name, value in numbers.items():
            watched = name in ("val/loss", f"val/{self.head.main_metric}")
            self.log(name, value, prog_bar=watched, sync_dist=True, reduce_fx="max")
        self.tables.update({name: value for name, value in results.items() if value.ndim > 0})

    def _metrics(self, stage: str) -> MetricCollection:
        return cast("MetricCollection", self.scores[stage])

    def _loss(self, stage: str) -> MeanMetric:
        return cast("MeanMetric", self.losses[stage])


def _in_32_bits(state: Any) -> Any:
    """Return a metric's state, a tensor or a list of them, with floating-point numbers of 32 bits."""
    if isinstance(state, list):
        return [_in_32_bits(value) for value in state]
    return state.float() if isinstance(state, Tensor) and state.is_floating_point() else state
