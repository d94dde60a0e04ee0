"""gpu_speed: training a BERT of base size in bf16 on a GPU, beside Hugging Face's Trainer."""

import gc
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from clock import Clock, Contender, Turns
from hf_trainer import hf_trainer
from lightning_fit import lightning_fit
from random_texts import RandomTextData, RandomTexts, save_random_bert
from rich.table import Table
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForSequenceClassification

from lightning_ft import FineTuner, SequenceClassificationHead, TransformersBackbone

# dense bf16 matrix rates that the maker states [FLOP/s]
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
AT_LEAST = 1.0
BATCH_SIZE = 64
LENGTH = 128
WARMUP_STEPS = 10


class BlockClock(Clock):
    """Times all steps after the warm-up as one, because a GPU works behind the program's back.

    Args:
        steps: Steps to time.
        device: Where they run.
    """

    def __init__(self, steps: int, device: torch.device) -> None:
        super().__init__("", Turns([""]))
        self.steps = steps
        self.device = device
        self.num_steps = 0

    def begin(self) -> None:
        """Start the first step."""

    def end_step(self) -> None:
        """End a step; the GPU is waited for where the timing begins and ends."""
        self.num_steps += 1
        if self.num_steps in (WARMUP_STEPS, WARMUP_STEPS + self.steps):
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            if self.num_steps == WARMUP_STEPS:
                self._pause()
            else:
                self.seconds.append((perf_counter() - self._start[0]) / self.steps)


@dataclass(slots=True)
class GPUSpeed:
    """Trainings of one model on one GPU.

    Attributes:
        device: The GPU's name.
        flops: Operations of a step, forward and backward [FLOP].
        seconds: Time of a step of each contender in each round [s].
        memory: Peak memory of each contender [byte].
    """

    device: str
    flops: float
    seconds: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)

    @property
    def peak(self) -> float | None:
        """The GPU's dense bf16 rate [FLOP/s]; None where it is not known."""
        return next((rate for name, rate in PEAKS.items() if name in self.device), None)

    @property
    def ratio(self) -> float:
        """How many times as fast as the Trainer lightning-ft is, the median over rounds."""
        pairs = zip(self.seconds["lightning-ft"], self.seconds["HF Trainer"], strict=True)
        return median(theirs / ours for ours, theirs in pairs)

    def tables(self) -> list[Table]:
        """Return the speeds, and the goal."""
        title = f"gpu: BERT base, random weights, bf16-mixed, {BATCH_SIZE} x {LENGTH} tokens, {self.device}"
        speeds = Table("contender", "samples/s", "TFLOP/s", "of the peak", "peak memory", title=title)
        for name, seconds in self.seconds.items():
            rate = self.flops / median(seconds)
            share = "unknown" if self.peak is None else f"{rate / self.peak:.1%}"
            speed = f"{BATCH_SIZE / median(seconds):.0f}"
            speeds.add_row(name, speed, f"{rate / 1e12:.1f}", share, f"{self.memory[name] / 2**30:.2f} GiB")
        goal = Table("ratio", "median", "goal", "holds")
        holds = "yes" if self.ratio >= AT_LEAST else "NO"
        goal.add_row("lightning-ft / HF Trainer", f"{self.ratio:.3f}", f">= {AT_LEAST}", holds)
        return [speeds, goal]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return asdict(self) | {"peak": self.peak, "ratio": self.ratio, "holds": self.ratio >= AT_LEAST}


def measure_gpu_speed(
    rounds: int, steps: int, folder: Path, *, config: BertConfig | None = None, device: str = "cuda"
) -> GPUSpeed:
    """Train in rounds, one contender after the other, and return how fast that went.

    Args:
        rounds: Rounds with new models.
        steps: Steps of each contender that are timed in a round.
        folder: Where they may write.
        config: The model; None for BERT base.
        device: ``"cuda"``, or ``"cpu"`` to try this out.
    """
    config = config or BertConfig()
    source = save_random_bert(config, folder / "model")
    place = torch.device(device)
    texts = RandomTexts(BATCH_SIZE * (steps + WARMUP_STEPS), LENGTH, config.vocab_size)
    name = torch.cuda.get_device_name() if place.type == "cuda" else "CPU"
    speed = GPUSpeed(name, count_flops(new_module(source), texts, place))
    for number in range(rounds):
        contenders = gpu_contenders(source, texts, steps + WARMUP_STEPS, folder, place)
        for contender in sorted(contenders, reverse=number % 2 == 1):
            clock = BlockClock(steps, place)
            memory = peak_memory(contenders.pop(contender), clock)
            speed.seconds.setdefault(contender, []).extend(clock.seconds)
            speed.memory[contender] = max(memory, speed.memory.get(contender, 0))
    return speed


def gpu_contenders(
    source: Path, texts: RandomTexts, steps: int, folder: Path, device: torch.device
) -> dict[str, Contender]:
    """Return two trainings of the same model on as many texts."""
    module = new_module(source)
    model = BertForSequenceClassification.from_pretrained(source, num_labels=2, dtype=torch.float32)
    options = {"per_device_train_batch_size": BATCH_SIZE, "learning_rate": module.lr, "weight_decay": 0.01}
    ours = {"accelerator": device.type, "devices": 1, "precision": "bf16-mixed"}
    theirs = {"bf16": True, "use_cpu": device.type == "cpu"}
    return {
        "lightning-ft": lightning_fit(module, RandomTextData(texts, BATCH_SIZE), steps, folder, **ours),
        "HF Trainer": hf_trainer(model, texts, default_collate, steps, folder / "hf", **options, **theirs),
    }


def new_module(source: Path) -> FineTuner:
    """Return a module with the saved weights."""
    return FineTuner(TransformersBackbone(str(source)), partial(SequenceClassificationHead, num_classes=2))


def count_flops(module: FineTuner, texts: RandomTexts, device: torch.device) -> float:
    """Return the operations of a step, forward and backward [FLOP]."""
    batch = {key: value.to(device) for key, value in default_collate([texts[i] for i in range(BATCH_SIZE)]).items()}
    module = module.to(device)
    with FlopCounterMode(display=False) as counter, torch.autocast(device.type, torch.bfloat16):
        module.head.loss(module(batch), batch["labels"]).backward()
    return float(counter.get_total_flops())


def peak_memory(contender: Contender, clock: Clock) -> int:
    """Run a training and return the most memory that it took on the GPU beyond what was taken before [byte]."""
    gc.collect()
    if not torch.cuda.is_available():
        contender(clock)
        return 0
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    contender(clock)
    return torch.cuda.max_memory_allocated() - before
