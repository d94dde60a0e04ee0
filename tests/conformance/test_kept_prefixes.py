"""Law 9, of what is kept in files: a full disk, a kill, another run, or code that has changed never change results."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from kept_runs import Named, named_loaders
from lightning.pytorch import Callback, LightningModule, Trainer
from prefix_nets import CASES, SMALL, Case, Foreign, Run, StopsAt, fit, images, upper_half
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_ft_callbacks import FrozenPrefixCache

TRIES, PROOF = 2, 1  # whole runs of a step before anything is kept, and before what an earlier fit has kept is used
NET = "timm resnet"
SCRIPT = Path(__file__).with_name("kept_runs.py")


def cache(folder: Path) -> FrozenPrefixCache:
    return FrozenPrefixCache(directory=str(folder), keep=True)


# room


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def many_images() -> tuple[DataLoader, DataLoader]:
    """Return so many images that an index of them is larger than two pages."""
    data = images(400, size=16)
    named = Named(torch.stack([image for image, _ in data]), torch.tensor([label for _, label in data]))
    return DataLoader(named, 16), DataLoader(named, 16)


@pytest.mark.parametrize("free", [0, 8192, 2**20 + 2**16])
@pytest.mark.parametrize("keep", [False, True])
def test_on_a_full_disk_results_are_those_without_it(small_disk: Path, free: int, keep: bool) -> None:
    (small_disk / "fill").write_bytes(b"0" * (3 * 2**20 - free))
    without = fit(Foreign(NET), loaders=many_images(), epochs=2)
    full = FrozenPrefixCache(directory=str(small_disk), max_bytes=0, keep=keep)
    with pytest.warns(UserWarning, match="there is no room"):
        cached = fit(Foreign(NET), full, loaders=many_images(), epochs=2)
    cached.same_as(without)
    assert not list(small_disk.glob("fit-*"))


@pytest.mark.parametrize("keep", [False, True])
def test_where_no_file_can_be_made_results_are_those_without_it(keep: bool) -> None:
    with pytest.warns(UserWarning, match="there is no room: /proc/nowhere"):
        cached = fit(
            Foreign(NET),
            FrozenPrefixCache(directory="/proc/nowhere", max_bytes=0, keep=keep),
            loaders=named_loaders(),
            epochs=2,
        )
    cached.same_as(fit(Foreign(NET), loaders=named_loaders(), epochs=2))


# what an earlier run has kept


class Scales(Foreign):
    """Normalises in its step."""

    def states(self, batch: Any) -> Tensor:
        return super().states([batch[0] * 0.25])


class ScalesOnDevice(Foreign):
    """Normalises where Lightning lets it."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ARG002
        return [batch[0] * 0.25, batch[1]]


def doubled(samples: Any) -> Any:
    return [torch.stack([image for image, _ in samples]) * 2, torch.tensor([int(label) for _, label in samples])]


@pytest.mark.parametrize(
    ("kind", "loaders"),
    [(Scales, named_loaders), (ScalesOnDevice, named_loaders), (Foreign, lambda: named_loaders(collate_fn=doubled))],
)
def test_what_code_that_has_changed_since_had_kept_is_not_used_and_kept_anew_under_another_name(
    kind: type[Foreign], loaders: Callable[[], Any], tmp_path: Path
) -> None:
    cold = fit(Foreign(NET), cache(tmp_path), loaders=named_loaders(), epochs=2)
    without = fit(kind(NET), loaders=loaders(), epochs=2)
    with pytest.warns(UserWarning, match="holds other values than the frozen blocks give now"):
        changed = fit(kind(NET), cache(tmp_path), loaders=loaders(), epochs=2)
    changed.same_as(without)
    assert changed.calls == [cold.calls[0] + 2 * PROOF, 0]
    with pytest.warns(UserWarning, match="holds other values than the frozen blocks give now"):
        again = fit(kind(NET), cache(tmp_path), loaders=loaders(), epochs=2)
    again.same_as(without)
    assert again.calls == [2 * (TRIES + 2 * PROOF), 0]
    before = fit(Foreign(NET), cache(tmp_path), loaders=named_loaders(), epochs=2)
    before.same_as(cold)


def vit(heads: int, activation: str = "gelu") -> Case:
    shape = SMALL | {"num_attention_heads": heads, "hidden_act": activation, "num_hidden_layers": 4}
    config = hf.ViTConfig(**shape, image_size=32, patch_size=8)
    return Case(lambda: hf.ViTModel(config, add_pooling_layer=False))


@pytest.mark.parametrize("changed", [vit(4), vit(2, "relu")], ids=["heads", "activation"])
def test_with_the_same_weights_in_another_network_nothing_is_found(
    changed: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CASES, "one", vit(2))
    monkeypatch.setitem(CASES, "other", changed)
    cold = fit(Foreign("one"), cache(tmp_path), loaders=named_loaders(), epochs=2)
    other = fit(Foreign("other"), cache(tmp_path), loaders=named_loaders(), epochs=2)
    assert other.calls == cold.calls
    other.same_as(fit(Foreign("other"), loaders=named_loaders(), epochs=2))


def test_training_and_validation_that_read_one_data_set_in_two_ways_never_share(tmp_path: Path) -> None:
    class TwoWays(Foreign):
        def states(self, batch: Any) -> Tensor:
            return super().states([batch[0] if self.training else batch[0] * 0.25])

    # where nothing random stands at the line, both have one fingerprint
    options = {"schedule": [{"train": upper_half(NET)}], "epochs": 2}
    without = fit(TwoWays(NET), loaders=named_loaders(), **options)
    fit(TwoWays(NET), cache(tmp_path), loaders=named_loaders(), **options).same_as(without)
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.warns(UserWarning, match="holds other values"):
        fit(TwoWays(NET), cache(tmp_path), loaders=named_loaders(), **options).same_as(without)


# other processes


def start(*arguments: Any) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, SCRIPT, *map(str, arguments)], env=environment, stderr=subprocess.PIPE, text=True
    )


def done(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]


def result(output: Path, rank: int = 0) -> Run:
    return Run(**json.loads(output.with_name(f"{output.name}.{rank}").read_text()))


def test_what_a_killed_run_left_in_its_own_folder_is_removed_by_the_next(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    killed = start(logs, tmp_path / "killed", "--logs", "--slow", 0.5)
    while not list(logs.rglob("segment-*.bin")):
        assert killed.poll() is None, killed.communicate()[1]
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert list(logs.rglob("segment-*.bin"))
    done(start(logs, tmp_path / "next", "--logs"))
    assert not list(logs.rglob("*.bin"))


def test_two_runs_at_once_in_one_folder_are_right_and_leave_what_a_third_begins_with(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    both = [start(kept, tmp_path / name, "--slow", 0.05) for name in ("one", "other")]
    for process in both:
        done(process)
    without = fit(Foreign(NET), loaders=named_loaders(), epochs=2)
    for name in ("one", "other"):
        result(tmp_path / name).same_as(without)
    assert not list(kept.glob("fit-*"))
    third = fit(Foreign(NET), cache(kept), loaders=named_loaders(), epochs=2)
    third.same_as(without)
    assert third.calls == [2 * (TRIES + PROOF), 0]


def test_two_ranks_keep_together_and_begin_with_what_they_kept(tmp_path: Path) -> None:
    for name, calls in (("cold", [3 + 3 + 2 * TRIES, 0]), ("warm", [2 * (TRIES + PROOF), 0])):
        done(start(tmp_path / "kept", tmp_path / name, "--devices", 2))
        assert [result(tmp_path / name, rank).calls for rank in (0, 1)] == [calls] * 2
    for rank in (0, 1):
        result(tmp_path / "warm", rank).same_as(result(tmp_path / "cold", rank))
    assert not list((tmp_path / "kept").glob("fit-*"))


# a resumed run


@pytest.mark.parametrize("step", [3, 9, 15])  # in mid-fill, in the first phase's second epoch, in the second phase
@pytest.mark.parametrize("keep", [False, True])
def test_a_resumed_run_ends_as_one_that_was_resumed_without_it(step: int, keep: bool, tmp_path: Path) -> None:
    schedule = [{"train": ["head"], "epochs": 2}, {"train": upper_half(NET)}]
    runs = []
    for cached in (False, True):
        file = tmp_path / f"{cached}.ckpt"

        def callbacks(cached: bool = cached) -> list[Callback]:
            options = {"directory": str(tmp_path / "kept"), "keep": True} if keep else {}
            return [FrozenPrefixCache(**options)] if cached else []

        options = {"schedule": schedule, "epochs": 4}
        with pytest.raises(InterruptedError):
            fit(Foreign(NET), *callbacks(), StopsAt(file, step), loaders=named_loaders(), **options)
        runs.append(fit(Foreign(NET), *callbacks(), loaders=named_loaders(), ckpt_path=file, **options))
    runs[1].same_as(runs[0])


# data that change


class NoisyValidation(TensorDataset):
    """Draws new noise each time."""

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return image + torch.randn_like(image) * 0.1, label


def test_validation_data_that_are_refused_change_no_training() -> None:
    def loaders() -> tuple[DataLoader, DataLoader]:
        train, val = named_loaders()
        return train, DataLoader(NoisyValidation(*val.dataset.tensors), 4)

    without = fit(Foreign(NET), loaders=loaders())
    with pytest.warns(UserWarning, match="validation data: NoisyValidation gives another sample"):
        cached = fit(Foreign(NET), FrozenPrefixCache(), loaders=loaders())
    cached.same_as(without)


class Grows(Dataset):
    """Has more samples from one epoch to the next."""

    def __init__(self) -> None:
        self.samples = images()
        self.length = 16

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]


class Grown(Callback):
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        trainer.fit_loop._combined_loader.flattened[0].dataset.length = 24


def test_data_that_grow_are_kept_anew() -> None:
    without = fit(Foreign(NET), Grown(), loaders=(DataLoader(Grows(), 4, shuffle=True),), epochs=4)
    with pytest.warns(UserWarning, match="the training data are others than before, or more"):
        cached = fit(
            Foreign(NET), Grown(), FrozenPrefixCache(), loaders=(DataLoader(Grows(), 4, shuffle=True),), epochs=4
        )
    cached.same_as(without)
    assert cached.calls[-1] < 4  # of the four batches of an epoch, which Lightning counts once


class Reloads(Foreign):
    """Makes its loaders anew, of one data set or of another each time."""

    def __init__(self, name: str, *, same: bool) -> None:
        super().__init__(name)
        self.data = images()
        self.same = same

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.data if self.same else [*self.data], 4, shuffle=True)


def test_loaders_made_anew_of_the_same_data_go_on_with_what_is_kept() -> None:
    def run(module: Foreign, *callbacks: Callback) -> Run:
        return fit(module, *callbacks, loaders=(None,), reload_dataloaders_every_n_epochs=1)

    cached = run(Reloads(NET, same=True), FrozenPrefixCache())
    cached.same_as(run(Reloads(NET, same=True)))
    assert cached.calls[1:] == [0, 0]
    with pytest.warns(UserWarning, match="give them the same data set, or one with an attribute fingerprint"):
        run(Reloads(NET, same=False), FrozenPrefixCache()).same_as(run(Reloads(NET, same=False)))


class Unread(Foreign):
    """Says what only its body reads."""

    prefix_inputs = ("pixel_values",)

    def states(self, batch: Any) -> Tensor:
        return super().states([batch["pixel_values"]])

    def loss(self, batch: Any) -> Tensor:
        return torch.nn.functional.cross_entropy(self.head(self.states(batch)), batch["label"])


def as_dictionary(samples: Any) -> dict[str, Tensor]:
    return {
        "pixel_values": torch.stack([image for image, _ in samples]),
        "label": torch.tensor([label for _, label in samples]),
    }


class ChangesWeights(Callback):
    """Changes a frozen weight in mid-epoch."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        if trainer.current_epoch == 2 and batch_idx == 2:
            with torch.no_grad():
                next(pl_module.body.parameters()).mul_(1.5)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_that_workers_were_told_are_kept_are_read_where_they_no_longer_are(num_workers: int) -> None:
    def run(*callbacks: Callback) -> Run:
        loader = DataLoader(images(), 4, shuffle=True, collate_fn=as_dictionary, num_workers=num_workers)
        return fit(Unread(NET), ChangesWeights(), *callbacks, loaders=(loader,), epochs=4)

    without = run()
    with pytest.warns(UserWarning, match="somebody has changed weights"):
        cached = run(FrozenPrefixCache())
    cached.same_as(without)


# augmented views


class Augmented(Dataset):
    """Draws from all three generators, as transforms of several libraries do."""

    def __init__(self) -> None:
        self.samples = images()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        image, label = self.samples[index]
        return image * (1 + random.random()) + torch.rand(()) + float(np.random.rand()), label


class Sees(Callback):
    """Notes what training sees of each sample."""

    def __init__(self) -> None:
        self.epochs: defaultdict[int, dict[int, float]] = defaultdict(dict)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        for image in batch[0]:
            self.epochs[trainer.current_epoch][self._number(image)] = image[0, 0, 0].item()

    @staticmethod
    def _number(image: Tensor) -> int:
        """Tell a sample by what augmentation leaves: how its pixels correlate."""
        found = torch.stack([original.flatten() for original, _ in images()])
        return int(torch.corrcoef(torch.cat([image.reshape(1, -1), found]))[0, 1:].argmax())


def views(number: int, num_workers: int, *callbacks: Callback, epochs: int = 5, **options: Any) -> tuple[Run, Sees]:
    sees = Sees()
    loader = DataLoader(Augmented(), 4, shuffle=True, num_workers=num_workers)
    run = fit(
        Foreign(NET), sees, FrozenPrefixCache(views=number), *callbacks, loaders=(loader,), epochs=epochs, **options
    )
    return run, sees


@pytest.mark.parametrize("num_workers", [0, 2])
def test_any_data_set_gives_views_that_come_round_again(num_workers: int) -> None:
    run, sees = views(2, num_workers)
    assert run.calls[2:] == [0, 0, 0]
    assert sees.epochs[0] == sees.epochs[2] == sees.epochs[4]
    assert sees.epochs[1] == sees.epochs[3]
    assert all(sees.epochs[0][number] != sees.epochs[1][number] for number in range(24))
    assert sees.epochs == views(2, 0)[1].epochs  # in workers too


@pytest.mark.parametrize(("num_workers", "step"), [(0, 12), (0, 14), (2, 14)])
def test_a_resumed_run_goes_on_with_the_view_of_its_epoch(num_workers: int, step: int, tmp_path: Path) -> None:
    _, whole = views(3, num_workers)
    with pytest.raises(InterruptedError):
        views(3, num_workers, StopsAt(tmp_path / "it.ckpt", step))
    _, resumed = views(3, num_workers, ckpt_path=tmp_path / "it.ckpt")
    assert max(resumed.epochs) == 4
    for epoch, seen in resumed.epochs.items():
        assert seen.items() <= whole.epochs[epoch].items()


class OwnGenerator(Augmented):
    """Draws from a generator that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(0)

    def __getitem__(self, index: int) -> Any:
        image, label = self.samples[index]
        return image + self.generator.random(), label


def test_views_of_data_that_draw_elsewhere_are_refused_with_what_to_change() -> None:
    loader = DataLoader(OwnGenerator(), 4)
    with pytest.raises(ValueError, match=r"OwnGenerator gives another sample .* views=2; draw from these"):
        fit(Foreign(NET), FrozenPrefixCache(views=2), loaders=(loader,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_bytes": "4GB"}, "expected max_bytes to be a whole number, but got '4GB'"),
        ({"views": "2"}, "expected views to be a whole number, but got '2'; write 2"),
        ({"keep": "no"}, "expected keep to be True or False, but got 'no'"),
    ],
)
def test_options_of_a_wrong_type_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrozenPrefixCache(**arguments)
