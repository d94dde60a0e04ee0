"""What to lower where the memory was not enough."""

import resource
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer

GIB = 2**30
SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)
KILLED_WORKER = ("DataLoader worker", "killed by signal: Killed")
SIZES = ("max_length", "image_size", "tile_size", "max_history")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that there is no more memory, on an accelerator or in the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        any(sign in text for sign in SIGNS) or all(part in text for part in KILLED_WORKER)
    )


def advice(error: BaseException, trainer: Trainer, config: Namespace) -> str:
    """Return one sentence: the batch size, the peak, and what to lower.

    Args:
        error: What was raised.
        trainer: The trainer.
        config: The command's configuration.
    """
    values = config.as_dict()
    data: dict[str, Any] = values["data"].get("init_args", {})
    backbone: dict[str, Any] = values["model"]["backbone"].get("init_args", {})
    size = data.get("batch_size")
    ways = []
    if not isinstance(size, int) or size > 1:
        ways.append("lower data.batch_size and raise trainer.accumulate_grad_batches by the same factor")
    limits = {name: data[name] for name in SIZES if name in data}
    ways += [f"lower data.{name}" + (f" (now {value})" if value is not None else "") for name, value in limits.items()]
    if trainer.state.fn == "fit":
        ways.append("train fewer blocks (GradualUnfreezing)")
        if backbone.get("gradient_checkpointing") is False:
            ways.append("set model.backbone.gradient_checkpointing to true")
    if "16" not in str(trainer.precision):
        ways.append("set trainer.precision to bf16-mixed")
    if all(part in str(error) for part in KILLED_WORKER):
        ways.insert(0, "lower data.num_workers")
    batch = f" with batches of {size}" if size is not None else ""
    return f"out of memory at step {trainer.global_step}{batch}, at a peak of {_peak(trainer)}: {'; or '.join(ways)}"


def _peak(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    if device.type == "cuda":
        used, total = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
        return f"{used / GIB:.1f} of {total / GIB:.1f} GiB on {device}"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB:.1f} GiB"
