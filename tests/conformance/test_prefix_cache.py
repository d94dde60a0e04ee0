"""Law 9: a cache of the frozen prefix changes the time that a fit takes, and never its results."""

import re
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from prefix_nets import CASES, Foreign, fit, images, pad, texts, upper_half
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from lightning_ft_callbacks import FrozenPrefixCache, LRFinder

TRIES = 2  # whole runs of a step before anything is kept: one, and one of a smaller batch
PROOF = 1  # and one before what an earlier fit has kept is used
HEAD = [{"train": ["head"]}]
DOWNWARDS = [
    {"train": ["head"], "epochs": 2},
    {"train": ["body.encoder.layer.3", "head"], "epochs": 2},
    {"train": ["body.encoder.layer.[23]", "head"], "epochs": 1},
    {"train": ["*"]},
]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("part", ["head", "upper half"])
def test_losses_validations_and_weights_are_those_without_it_and_the_prefix_runs_once(name: str, part: str) -> None:
    schedule = HEAD if part == "head" else [{"train": upper_half(name)}]
    without = fit(Foreign(name), schedule=schedule)
    cached = fit(Foreign(name), FrozenPrefixCache(), schedule=schedule)
    cached.same_as(without)
    assert without.calls[1:] == [8, 8]  # 6 batches and 2 of validation
    assert cached.calls[1:] == [0, 0]


@pytest.mark.parametrize("name", ["bert", "gpt2", "vit", "timm resnet", "timm vit", "timm efficientnet"])
def test_in_bf16_losses_are_those_without_it(name: str) -> None:
    schedule = [{"train": upper_half(name)}]
    without = fit(Foreign(name), schedule=schedule, precision="bf16-mixed")
    cached = fit(Foreign(name), FrozenPrefixCache(), schedule=schedule, precision="bf16-mixed")
    cached.same_as(without, rel=2e-2)
    assert cached.calls[1:] == [0, 0]


def test_kept_in_bf16_when_asked() -> None:
    without, cached = fit(Foreign("bert")), fit(Foreign("bert"), FrozenPrefixCache(dtype="bf16"))
    cached.same_as(without, rel=2e-2)
    assert cached.losses != without.losses


def test_a_frontier_that_goes_down_is_served_from_what_the_first_pass_kept() -> None:
    without = fit(Foreign("bert"), schedule=DOWNWARDS, epochs=6)
    cached = fit(Foreign("bert"), FrozenPrefixCache(), schedule=DOWNWARDS, epochs=6)
    cached.same_as(without)
    assert cached.calls[1:5] == [0, 0, 0, 0]
    assert cached.calls[5] == 8


def test_a_frontier_that_goes_up_and_down_again_never_meets_what_was_trained_meanwhile() -> None:
    schedule = [
        {"train": ["head"], "epochs": 2},
        {"train": ["body.encoder.layer.2"], "epochs": 2},
        {"train": ["head"], "epochs": 2},
        {"train": ["body.encoder.layer.[23]"]},
    ]
    without = fit(Foreign("bert"), schedule=schedule, epochs=8)
    cached = fit(Foreign("bert"), FrozenPrefixCache(), schedule=schedule, epochs=8)
    cached.same_as(without)
    # what lies below layer 2 stays right all the time; the head's new line is tried on a batch of each part
    assert cached.calls[1:] == [0, 0, 0, TRIES * 2, 0, 0, 0]


def test_a_phase_that_changes_in_mid_epoch_is_right() -> None:
    schedule = [{"train": ["head"], "steps": 9}, {"train": ["body.encoder.layer.3", "head"]}]
    without = fit(Foreign("bert"), schedule=schedule, epochs=4)
    for order in (0, 1):
        callbacks: list[Callback] = [Callback(), Callback()]
        callbacks[order] = FrozenPrefixCache()
        fit(Foreign("bert"), *callbacks, schedule=schedule, epochs=4).same_as(without)


def test_learning_rates_are_tested_as_without_it() -> None:
    schedule = [{"train": ["head"], "epochs": 2}, {"train": ["body.encoder.layer.3", "head"]}]
    found = []
    runs = []
    for first in ([], [FrozenPrefixCache()]):  # before it, so that the second test comes when a step is under way
        finder = LRFinder(num_steps=30, min_lr=1e-4, each_phase=True, apply=False)
        runs.append(fit(Foreign("bert"), finder, first=first, schedule=schedule, epochs=4))
        assert finder.curve is not None
        found.append(finder.curve.raw)
    runs[1].same_as(runs[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_with_accumulation_and_clipping_it_is_right() -> None:
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}
    fit(Foreign("bert"), FrozenPrefixCache(), **options).same_as(fit(Foreign("bert"), **options))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_with_workers_and_a_generator_of_the_loader_the_order_is_the_same(num_workers: int) -> None:
    def loaders(module: Foreign) -> Any:
        options: dict[str, Any] = {"persistent_workers": True} if num_workers else {}
        generator = torch.Generator().manual_seed(3)
        return module.loaders(num_workers=num_workers, generator=generator, **options)

    module = Foreign("bert")
    cached = fit(module, FrozenPrefixCache(), loaders=loaders(module))
    module = Foreign("bert")
    cached.same_as(fit(module, loaders=loaders(module)))
    assert cached.calls[1:] == [0, 0]


class ChangesWeights(Callback):
    """Changes a frozen weight behind everybody's back."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 2:
            with torch.no_grad():
                next(pl_module.get_submodule("body").parameters()).mul_(1.5)


def test_weights_that_somebody_changes_are_noticed() -> None:
    without = fit(Foreign("bert"), ChangesWeights(), epochs=4)
    with pytest.warns(UserWarning, match="somebody has changed weights"):
        cached = fit(Foreign("bert"), ChangesWeights(), FrozenPrefixCache(), epochs=4)
    cached.same_as(without)


def test_a_second_fit_with_one_callback_is_right() -> None:
    runs = []
    for callbacks in ([FrozenPrefixCache()], []):
        module = Foreign("bert")
        fit(module, *callbacks)
        runs.append(fit(module, *callbacks))
    runs[0].same_as(runs[1])


# room


def test_beyond_the_memory_it_goes_to_files_that_are_gone_afterwards(tmp_path: Path) -> None:
    seen: list[Path] = []

    class Looks(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
            seen.extend(tmp_path.rglob("segment-*.bin"))

    cache = FrozenPrefixCache(directory=str(tmp_path), max_bytes=0)
    cached = fit(Foreign("bert"), cache, Looks())
    cached.same_as(fit(Foreign("bert")))
    assert cached.calls[1:] == [0, 0]
    assert seen
    assert not list(tmp_path.iterdir())


def test_what_is_kept_higher_up_is_dropped_when_the_frontier_goes_down_and_there_is_no_room_to_spare(
    tmp_path: Path,
) -> None:
    kept: list[int] = []

    class Looks(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
            kept.append(len(list(tmp_path.glob("fit-*/training-*"))))

    cache = FrozenPrefixCache(directory=str(tmp_path), max_bytes=0)
    cached = fit(Foreign("bert"), cache, Looks(), schedule=DOWNWARDS, epochs=6)
    cached.same_as(fit(Foreign("bert"), schedule=DOWNWARDS, epochs=6))
    assert kept == [1, 1, 1, 1, 0, 0]  # the phases that last one epoch keep nothing
    assert cached.calls[1:] == [0, 6 + 2 + 2 * TRIES, 0, 8, 8]


def test_the_progress_bar_shows_how_much_is_kept_until_all_is(capsys: pytest.CaptureFixture[str]) -> None:
    bar = TQDMProgressBar(refresh_rate=1)
    fit(Foreign("bert"), FrozenPrefixCache(), bar, enable_progress_bar=True)
    drawn = capsys.readouterr().out.replace("\r", "\n").splitlines()
    for epoch, shares in ((0, ["17%", "33%", "50%", "67%", "83%"]), (1, [])):
        lines = [line for line in drawn if line.startswith(f"Epoch {epoch}:")]
        assert lines
        assert [*dict.fromkeys(re.findall(r"cached=(\d+%)", "\n".join(lines)))] == shares
    assert "get_metrics" not in vars(bar)


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Let this process write no file of more than half a megabyte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("full_disk")
def test_on_a_full_disk_the_fit_goes_on_without_it(tmp_path: Path) -> None:
    without = fit(Foreign("bert"))
    with pytest.warns(UserWarning, match="there is no room"):
        cached = fit(Foreign("bert"), FrozenPrefixCache(directory=str(tmp_path), max_bytes=0))
    cached.same_as(without)
    assert cached.calls[1] > 0


# kept for later fits


class Named(TensorDataset):
    """Images with a fingerprint."""

    fingerprint = "noise"


def named_loaders() -> tuple[DataLoader, DataLoader]:
    data = images()
    named = Named(torch.stack([image for image, _ in data]), torch.tensor([label for _, label in data]))
    return DataLoader(named, 4, shuffle=True), DataLoader(named, 4)


def kept(folder: Path, name: str = "timm resnet", seed: float = 1.0) -> Any:
    module = Foreign(name)
    with torch.no_grad():
        next(module.body.parameters()).mul_(seed)
    return fit(module, FrozenPrefixCache(directory=str(folder), keep=True), loaders=named_loaders(), epochs=2)


def test_a_second_run_starts_warm_and_a_changed_or_foreign_cache_is_never_used(tmp_path: Path) -> None:
    without = fit(Foreign("timm resnet"), loaders=named_loaders(), epochs=2)
    cold = kept(tmp_path)
    cold.same_as(without)
    folders = sorted(tmp_path.iterdir())
    assert len(folders) == 1  # training and validation keep the same of one data set
    warm = kept(tmp_path)
    warm.same_as(without)
    assert cold.calls == [6 + 6 + 2 * TRIES + PROOF, 0]  # whether validation may keep them beside those of training
    assert warm.calls == [2 * (TRIES + PROOF), 0]
    others = kept(tmp_path, seed=1.25)
    assert others.calls == cold.calls  # of other weights
    others.same_as(fit_of_other_weights())
    for folder in folders:
        segment = next(folder.glob("segment-*.bin"))
        data = bytearray(segment.read_bytes())
        data[100] ^= 1
        segment.write_bytes(data)
    with pytest.warns(UserWarning, match="is damaged; it is removed"):
        again = kept(tmp_path)
    assert again.calls == cold.calls
    again.same_as(without)
    for folder in tmp_path.iterdir():
        (folder / "manifest.json").write_text("{}")
    kept(tmp_path).same_as(without)


def fit_of_other_weights() -> Any:
    module = Foreign("timm resnet")
    with torch.no_grad():
        next(module.body.parameters()).mul_(1.25)
    return fit(module, loaders=named_loaders(), epochs=2)


def folds(number: int, of: int = 3) -> tuple[DataLoader, DataLoader]:
    """Return the data of a fold: what is validated is every third sample."""
    data = named_loaders()[1].dataset
    held_out = list(range(number, len(data), of))
    rest = [index for index in range(len(data)) if index not in held_out]
    return DataLoader(Subset(data, rest), 4, shuffle=True), DataLoader(Subset(data, held_out), 4)


def test_folds_of_one_data_set_find_what_others_have_kept(tmp_path: Path) -> None:
    calls = []
    # where nothing random stands at the line, training and validation keep the same
    schedule = [{"train": upper_half("timm resnet")}]
    for number in range(3):
        cache = FrozenPrefixCache(directory=str(tmp_path), keep=True)
        run = fit(Foreign("timm resnet"), cache, schedule=schedule, loaders=folds(number), epochs=2)
        run.same_as(fit(Foreign("timm resnet"), schedule=schedule, loaders=folds(number), epochs=2))
        calls.append(run.calls)
    assert calls[0] == [4 + 2 + 2 * TRIES + PROOF, 0]  # validation begins with what training has kept
    assert calls[1:] == [[2 * (TRIES + PROOF), 0]] * 2
    assert len(list(tmp_path.iterdir())) == 1


def test_a_fold_whose_samples_are_partly_kept_runs_the_prefix_for_the_others_alone(tmp_path: Path) -> None:
    def run(first: int, last: int) -> list[int]:
        data = Subset(named_loaders()[1].dataset, range(first, last))
        cache = FrozenPrefixCache(directory=str(tmp_path), keep=True)
        found = fit(Foreign("timm resnet"), cache, loaders=(DataLoader(data, 4),), epochs=2)
        found.same_as(fit(Foreign("timm resnet"), loaders=(DataLoader(data, 4),), epochs=2))
        return found.calls

    assert run(0, 12) == [3 + TRIES, 0]
    assert run(4, 20) == [2 + TRIES + PROOF, 0]
    assert run(0, 20) == [TRIES + PROOF, 0]


def test_what_a_fit_had_kept_when_it_failed_is_not_lost(tmp_path: Path) -> None:
    class Fails(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
            if batch_idx == 3:
                raise ValueError("stop")

    def cached(*callbacks: Callback) -> Any:
        cache = FrozenPrefixCache(directory=str(tmp_path), keep=True)
        data = named_loaders()[1].dataset
        return fit(Foreign("timm resnet"), cache, *callbacks, loaders=(DataLoader(data, 4),), epochs=2)

    with pytest.raises(ValueError, match="stop"):
        cached(Fails())
    assert cached().calls == [2 + TRIES + PROOF, 0]  # of six batches four were kept


def test_what_a_killed_fit_left_behind_is_removed_and_what_lives_is_not(tmp_path: Path) -> None:
    import fcntl

    for name in ("fit-dead", "fit-alive"):
        (tmp_path / name / "training-1").mkdir(parents=True)
        (tmp_path / name / "lock").touch()
        (tmp_path / name / "training-1" / "segment-1.bin").write_bytes(b"half")
    with (tmp_path / "fit-alive" / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        kept(tmp_path)
        assert not (tmp_path / "fit-dead").exists()
        assert (tmp_path / "fit-alive" / "training-1" / "segment-1.bin").exists()
    shutil.rmtree(tmp_path / "fit-alive")


# refused with the reason


class Noisy(TensorDataset):
    """Draws new noise each time."""

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return image + torch.randn_like(image) * 0.1, label


def noisy_loaders() -> tuple[DataLoader, DataLoader]:
    train, val = named_loaders()
    return DataLoader(Noisy(*train.dataset.tensors), 4), val


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        return iter(images())


class Prompted(Foreign):
    """Trains something that comes before the frozen network."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.prompt = nn.Parameter(torch.zeros(3, 1, 1))

    def states(self, batch: Any) -> Tensor:
        return super().states([batch[0] + self.prompt])


class Peeks(Foreign):
    """Reads what a lower block made, beside the upper ones."""

    def states(self, batch: Any) -> Tensor:
        states = super().states(batch)
        return states + self.body.conv1(batch[0]).mean()


class Draws(Foreign):
    """Draws random numbers before the frozen network."""

    def states(self, batch: Any) -> Tensor:
        return super().states([batch[0] + torch.randn_like(batch[0]) * 0.1])


class Manual(Foreign):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.manual_backward(self.loss(batch))


class Hooked(Foreign):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.body.conv1.register_forward_hook(lambda *_: None)


class TrainsMode(Callback):
    """Puts a frozen part in train mode, as a careless freezing would."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        pl_module.body.train()


@pytest.mark.parametrize(
    ("kind", "loaders", "before", "message"),
    [
        (Foreign, noisy_loaders, None, "gives another sample for the same number.*turn random augmentation off"),
        (Foreign, lambda: (DataLoader(Stream(), 4),), None, "Stream is iterable"),
        (Foreign, lambda: ([DataLoader(images(), 4)] * 2,), None, "several training loaders"),
        (Draws, named_loaders, None, "random numbers are drawn before head"),
        (Manual, named_loaders, None, "under manual optimization"),
        (Hooked, named_loaders, None, "'body.conv1' below head has a hook.*remove it"),
        (Foreign, named_loaders, TrainsMode, "is in train mode; freeze it with GradualUnfreezing"),
    ],
)
def test_what_it_cannot_keep_is_refused_before_the_first_step(
    kind: type[Foreign], loaders: Any, before: Any, message: str
) -> None:
    callbacks = [before()] if before else []
    if loaders is not named_loaders and "several" in message:
        kind = type("Several", (kind,), {"training_step": lambda self, batch, _: self.loss(batch[0])})
    with pytest.raises(ValueError, match=message):
        fit(kind("timm resnet"), *callbacks, FrozenPrefixCache(), loaders=loaders())


def test_a_gradient_through_the_prefix_is_noticed_before_anything_is_used() -> None:
    schedule = [{"train": ["tail"]}]  # prompt and head
    without = fit(Prompted("timm resnet"), schedule=schedule, loaders=named_loaders())
    with pytest.warns(UserWarning, match="a gradient flows through what is below"):
        cached = fit(Prompted("timm resnet"), FrozenPrefixCache(), schedule=schedule, loaders=named_loaders())
    cached.same_as(without)


def test_what_is_read_beside_the_upper_blocks_is_kept_or_refused() -> None:
    fit(Peeks("timm resnet"), FrozenPrefixCache(), loaders=named_loaders()).same_as(
        fit(Peeks("timm resnet"), loaders=named_loaders())
    )


class AugmentsOnDevice(Foreign):
    """Augments batches where nobody but Lightning sees it."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ARG002
        if not self.trainer.training:
            return batch
        return [batch[0] + torch.randn_like(batch[0]) * 0.1, batch[1]]


def test_augmentation_on_the_device_is_noticed_before_anything_is_used() -> None:
    without = fit(AugmentsOnDevice("timm resnet"), loaders=named_loaders())
    with pytest.warns(UserWarning, match="is no longer what was kept"):
        cached = fit(AugmentsOnDevice("timm resnet"), FrozenPrefixCache(), loaders=named_loaders())
    cached.same_as(without)


def test_padded_texts_without_a_mask_are_refused() -> None:
    class Unmasked(Foreign):
        def states(self, batch: Any) -> Tensor:
            return self.body(input_ids=batch["input_ids"]).last_hidden_state.mean(1)

    def collate(samples: Any) -> dict[str, Tensor]:
        return {key: value for key, value in pad(samples).items() if key != "attention_mask"}

    loaders = (DataLoader(texts(), 4, collate_fn=collate),)
    with pytest.warns(UserWarning, match="attention_mask if they are padded"):
        fit(Unmasked("bert"), FrozenPrefixCache(), schedule=[{"train": upper_half("bert")}], loaders=loaders)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_bytes": -1}, "max_bytes to be at least 0, but got -1"),
        ({"dtype": "int8"}, "dtype to be 'bf16', 'fp16' or None, but got 'int8'"),
        ({"views": 0}, "views to be at least 1, but got 0"),
        ({"keep": True}, "keep=True needs a directory"),
    ],
)
def test_wrong_options_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrozenPrefixCache(**arguments)
