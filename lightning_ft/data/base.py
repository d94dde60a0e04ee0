"""FineTuningData: labelled tables, split, encoded and loaded in an order that a resumed run can continue."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from lightning_ft.data.labels import Labels, Task, is_missing, task_of
from lightning_ft.data.predict_batches import PredictBatches
from lightning_ft.data.sampler import EpochSampler
from lightning_ft.data.split import stratified_split
from lightning_ft.data.written_rows import WrittenRows

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

Part = Literal["train", "val", "test", "predict"]
PARTS_OF_STAGE: dict[str, tuple[Part, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}


class FineTuningData(LightningDataModule, ABC):
    """Data of a fine-tuning run: one table a part, with a label column.

    A subclass reads a file into a table (``read``) and a table into samples (``samples``); splitting, label names,
    batch order and exact resume are here. Where no file is given for validation or test, rows of the training file
    are held out for it, the same ones in every run with the same ``split_seed``, the shares of the classes kept.

    Args:
        files: The file of each part.
        label_column: Name of the label column.
        labels: Class names in the order of the prediction; None: those of the training data, sorted.
        task: What the labels are; None: as their values say.
        val_size: Rows held out for validation where it has no file: a share below 1, or a number of rows.
        test_size: The same for the test.
        split_seed: Seed of the choice of held-out rows; not the run's seed, so that runs can be compared.
        batch_size: Samples a step on one device.
        num_workers: Processes that load samples; the order and the samples are the same with any number.

    Attributes:
        labelled: Whether rows have labels; where texts or images are all there is to learn from they have none.
        choose_batches: Returns the batches to predict where not all are; set by who writes the predictions.
    """

    labelled: ClassVar[bool] = True

    def __init__(
        self,
        files: Mapping[Part, str | None],
        *,
        label_column: str = "label",
        labels: Sequence[str] | None = None,
        task: Task | None = None,
        val_size: float,
        test_size: float,
        split_seed: int,
        batch_size: int,
        num_workers: int,
    ) -> None:
        super().__init__()
        for name, size in (("val_size", val_size), ("test_size", test_size)):
            if size < 0:
                raise ValueError(f"expected {name} to be a share below 1 or a number of rows, but got {size}")
        if batch_size < 1:
            raise ValueError(f"expected batch_size to be a positive integer, but got {batch_size}")
        self.files = dict(files)
        self.label_column = label_column
        self.label_names = None if labels is None else tuple(str(name) for name in labels)
        self.task: Task | None = task
        self.split_sizes = {"val": val_size, "test": test_size}
        self.split_seed = split_seed
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        self.choose_batches: Callable[[], PredictBatches] | None = None
        self._samples: dict[Part, Any] = {}
        self._resumed_at = (0, 0)

    @abstractmethod
    def read(self, part: Part) -> "Dataset":
        """Return the whole table of a part's file; labels stand in the column ``label_column``."""

    @abstractmethod
    def samples(self, part: Part, table: "Dataset", targets: Sequence[Any] | None) -> Any:
        """Return what a loader draws from: an indexable of samples.

        Args:
            part: The part.
            table: Its rows.
            targets: Their targets, as ``Labels.encode`` gives them; None for predictions.
        """

    @abstractmethod
    def collate(self) -> Callable[[list[Any]], Any]:
        """Return the function that makes a batch of a list of samples."""

    def batch_size_of(self, part: Part) -> int:  # noqa: ARG002
        """Return the samples a step of a part; here the same of all."""
        return self.batch_size

    def lengths(self, samples: Any) -> Sequence[int] | None:  # noqa: ARG002
        """Return the tokens of each sample, shape (sample,), where batches are to be of similar length."""
        return None

    @cached_property
    def labels(self) -> Labels | None:
        """The labels: those given, else those of the training data; None where there are none.

        Raises:
            ValueError: If the training data has one class only.
        """
        if not self.labelled:
            return None
        if self.label_names is not None:
            known = self.files["train"] is not None and self.task is None
            task = task_of(self.tables["train"][self.label_column]) if known else self.task
            return Labels(task or "multiclass", self.label_names)
        return Labels.of(self.tables["train"][self.label_column], self.task, self.place("train"))

    @cached_property
    def tables(self) -> dict[Part, "Dataset"]:
        """The rows of training, validation and test, held-out rows taken from the training file.

        Raises:
            ValueError: If nothing is left to train on.
        """
        if self.files["train"] is None:
            raise ValueError(f"{type(self).__name__} needs train_file, or a checkpoint that knows the labels")
        table = self._labelled("train")
        tables: dict[Part, Dataset] = {}
        parts: tuple[Part, ...] = ("val", "test")
        sizes = {part: self.split_sizes[part] for part in parts if self.files[part] is None}
        for part, indices in self.split(table, sizes).items():
            tables[cast("Part", part)] = table.select(indices)
        return tables

    def split(self, table: "Dataset", sizes: Mapping[str, float]) -> Mapping[str, Any]:
        """Return the rows of the training file for each part; where rows have one class each, its shares are kept.

        Args:
            table: All labelled rows of the training file.
            sizes: Size of each part that is held out: a share below 1, or a number of rows.

        Returns:
            Row numbers of each of these parts and of ``"train"``, rising.
        """
        classes = None
        if self.labelled:
            values = table[self.label_column]
            one_class_each = (self.task or task_of(values)) == "multiclass"
            classes = [str(value) for value in values] if one_class_each else None
        return stratified_split(len(table), classes, sizes, self.split_seed, self.place("train"))

    def setup(self, stage: str) -> None:
        """Read, check and encode the parts of a stage: ``fit``, ``validate``, ``test`` or ``predict``."""
        self._resumed_at = (0, 0)
        vars(self).pop("written", None)
        for part in PARTS_OF_STAGE[stage]:
            # made anew each time: another fit can be of another backbone
            self._samples[part] = self._prepared(part)

    def table(self, part: Part) -> "Dataset":
        """Return the labelled rows of a part; its own file is read alone, so that a test needs no training file."""
        return self.tables[part] if self.files[part] is None or part == "train" else self._labelled(part)

    def train_dataloader(self) -> DataLoader:
        """Return the training batches, those that a resumed run has behind it left out."""
        epoch, start_batch = self._resumed_at
        return self._loader("train", epoch=epoch, start_batch=start_batch)

    def val_dataloader(self) -> DataLoader:
        """Return the validation batches."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader:
        """Return the test batches."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader:
        """Return the batches to predict, in the order of the file."""
        if self.choose_batches is not None:
            batches = self.choose_batches()
        else:
            size = self.batch_size_of("predict")
            batches = PredictBatches(len(self.predict_samples), batch_size=size, **self._ranks())
        return self._loader_of(self.predict_samples, batches)

    @property
    def predict_samples(self) -> Any:
        """What is to be predicted, one sample a row of the file, in its order."""
        return self._samples["predict"]

    @cached_property
    def written(self) -> WrittenRows:
        """The rows to predict as they stand in their file."""
        return WrittenRows(self.read("predict"))

    def predict_rows(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Return the rows ``start`` to ``stop`` of the file to predict, as a person wrote them."""
        return self.written.rows(start, stop)

    def predict_columns(self) -> list[str]:
        """Return the names of what ``predict_rows`` returns, in the order of the file."""
        return self.written.columns

    def predict_schema(self) -> "pyarrow.Schema | None":
        """Return the types of these columns, where the file to predict has types."""
        return self.written.schema

    def mask_names(self, start: int, stop: int) -> list[str]:
        """Return a file name for each of the rows ``start`` to ``stop``, where what is predicted is an image."""
        return [f"{row}.png" for row in range(start, stop)]

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: labels, the order's seed, the number of rows, and how far training came."""
        state: dict[str, Any] = {
            "seed": self.seed,
            "position": list(self._position()),
            "batch_size": self.batch_size * (1 if self.trainer is None else self.trainer.world_size),
        }
        if "train" in self._samples:
            state["num_rows"] = len(self._samples["train"])
        known = "labels" in self.__dict__ or self.label_names is not None
        if known and (labels := self.labels) is not None:
            state |= {"task": labels.task, "label_names": list(labels.names)}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the order of a checkpoint's run.

        Raises:
            ValueError: If that run trained on another number of rows, or had other labels.
        """
        self.seed = state_dict["seed"]
        epoch, batch = state_dict["position"]
        self._resumed_at = (epoch, batch)
        size = self.batch_size * (1 if self.trainer is None else self.trainer.world_size)
        if batch and "train" in self._samples and size != state_dict["batch_size"]:
            raise ValueError(
                f"the checkpoint stands in mid-epoch behind {batch} batches of {state_dict['batch_size']} samples on "
                f"all ranks together, but they have {size} now: resume with the same size, or from the end of an epoch"
            )
        theirs, ours = state_dict.get("num_rows"), len(self._samples.get("train", ()))
        if ours and theirs not in (None, ours):
            raise ValueError(f"the checkpoint's run trained on {theirs} rows, but {self.place('train')} gives {ours}")
        if "label_names" not in state_dict or not self._samples or "predict" in self._samples:
            return
        saved = Labels(state_dict["task"], tuple(state_dict["label_names"]))
        if (labels := self.labels) is not None and saved != labels:
            raise ValueError(
                f"the checkpoint's labels are {saved.task} {list(saved.names)}, the data's {labels.task} "
                f"{list(labels.names)}"
            )

    def place(self, part: Part) -> str:
        """Return where a part's rows come from, for messages: ``train_file 'reviews.csv'``."""
        source = part if self.files[part] is not None else "train"
        return f"{source}_file {self.files[source]!r}"

    def _prepared(self, part: Part) -> Any:
        if part == "predict":
            return self.samples(part, self.read(part), None)
        table = self.table(part)
        if not len(table):
            if part == "test":
                raise ValueError(f"no rows to test: give test_file, or a test_size above {self.split_sizes['test']}")
            return []  # nothing was to be held out
        labels = self.labels
        if labels is None or not self.labelled:
            return self.samples(part, table, None)
        return self.samples(part, table, labels.encode(table[self.label_column], self.place(part)))

    def _position(self) -> tuple[int, int]:
        """Return the epoch and the batch that a run resumed from a checkpoint saved now begins with.

        It must be known here: Lightning draws the first batches before it restores its loops.
        """
        if self.trainer is None:
            return (0, 0)
        loop = self.trainer.fit_loop
        epochs: Any = loop.epoch_progress.current
        # `ready` counts a batch when it is drawn; `completed` lags behind it by one in a checkpoint
        batch = loop.epoch_loop.batch_progress.current.ready
        if epochs.processed == epochs.started or batch >= self.trainer.num_training_batches:
            return (epochs.started, 0)
        return (epochs.processed, batch)

    def _labelled(self, part: Part) -> "Dataset":
        """Read a part and drop rows without a label, with a notice."""
        table = self.read(part)
        values = [] if not self.labelled else table[self.label_column]
        rows = [row for row, value in enumerate(values) if not is_missing(value)]
        if len(rows) < len(values):
            rank_zero_info(f"{self.place(part)}: {len(table) - len(rows)} of {len(table)} rows have no label; dropped")
            table = table.select(rows)
        if not len(table):
            raise ValueError(f"{self.place(part)}: no rows to use")
        return table

    def _loader(self, part: Part, epoch: int = 0, start_batch: int = 0) -> DataLoader:
        samples = self._samples[part]
        sampler = EpochSampler(
            len(samples),
            batch_size=self.batch_size_of(part),
            lengths=self.lengths(samples) if len(samples) else None,
            shuffle=part == "train",
            seed=self.seed,
            epoch=epoch,
            start_batch=start_batch,
            **self._ranks(),
        )
        if hasattr(samples, "epoch"):
            # samples that are augmented are a function of these and of their row
            samples.epoch, samples.seed = sampler.shared_epoch, self.seed
        return self._loader_of(samples, sampler)

    def _ranks(self) -> dict[str, Any]:
        """Return the number of ranks and this one, as samplers take them."""
        strategy = None if self.trainer is None else self.trainer.strategy
        return getattr(strategy, "distributed_sampler_kwargs", None) or {}

    def _loader_of(self, samples: Any, sampler: EpochSampler | PredictBatches) -> DataLoader:
        return DataLoader(
            samples,
            batch_size=sampler.batch_size,
            sampler=sampler,
            collate_fn=self.collate(),
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            # its own generator: drawing the workers' base seed must not move the global one, or a resume would differ
            generator=torch.Generator(),
        )
