"""What remains to be predicted: batches that no part of the same prediction holds."""

from collections.abc import Mapping
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_ft.data.predict_batches import PredictBatches
from lightning_ft.predictions.batch_size import fastest_batch_size
from lightning_ft.predictions.failures import failures_told
from lightning_ft.predictions.job import differences, job_of
from lightning_ft.predictions.parts import PartFolder


def batches_to_predict(
    trainer: Trainer,
    module: LightningModule,
    parts: PartFolder,
    options: Mapping[str, Any],
    *,
    batch_size: int | Literal["auto"] | None,
    resume: bool,
) -> tuple[PredictBatches, str]:
    """Return the batches of this rank, those left out that were predicted before; all ranks must ask.

    Args:
        trainer: The trainer, ready to predict.
        module: The module, with its weights on its device.
        parts: What was predicted before; where it is of another prediction it is emptied.
        options: What was asked of the writer.
        batch_size: Rows a step; None for the data's.
        resume: Whether to go on from the parts.

    Returns:
        The batches, and the state of the input when they were chosen; on ranks but the first that is empty.
    """
    data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    ranks: dict[str, Any] = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
    limit = _limit(trainer, ranks.get("num_replicas", 1))
    job: dict[str, Any] = {}
    known = None
    if trainer.is_global_zero:
        job = job_of(trainer, module, {**options, "limit": limit})
        known = _known_size(parts, job) if resume else None
    known = trainer.strategy.broadcast(known)
    size: Any = batch_size or data.batch_size_of("predict")
    if known is not None and batch_size == "auto":
        size = known
    elif size == "auto":
        size = fastest_batch_size(trainer, module, data)
    done: list[range] = []
    if trainer.is_global_zero:
        with failures_told(parts.file):
            if known != size:
                parts.begin(job | {"batch_size": size})
            done = parts.done()
    done = trainer.strategy.broadcast(done)
    num_rows = _limited(len(data.predict_samples), size, limit)
    if done:
        kept = sum(map(len, done))
        rank_zero_info(f"predictions: {kept} of {num_rows} rows were predicted before; going on with the others")
    return PredictBatches(num_rows, batch_size=size, done=done, **ranks), job.get("input", "")


def _known_size(parts: PartFolder, job: Mapping[str, Any]) -> int | None:
    """Return the batch size of the prediction that goes on; None where one begins."""
    record = parts.record()
    if record is None:
        return None
    if others := differences(job, record):
        rank_zero_info(f"predictions: {str(parts.folder)!r} is of a prediction with {' and '.join(others)}; begun anew")
        return None
    return record["batch_size"]


def _limit(trainer: Trainer, num_ranks: int) -> int | float:
    """Return the batches of all ranks to predict at most, or a share of them: Lightning's limits are those of one."""
    limit: int | float = trainer.limit_predict_batches
    return limit * num_ranks if isinstance(limit, int) else limit


def _limited(num_rows: int, batch_size: int, limit: int | float) -> int:
    """Return the rows that a limit on batches lets through."""
    num_batches = limit if isinstance(limit, int) else int(-(-num_rows // batch_size) * limit)
    return min(num_rows, num_batches * batch_size)
