"""Law 9 with steps and batches as people write them: results are those without a cache, or it says why not."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from prefix_nets import Foreign, Run, fit, images, pad, texts
from test_prefix_proof import BERT, RESNET, Image, both
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_ft_callbacks import FrozenPrefixCache

F = nn.functional
CHANGES = "is no longer what was kept of it"


# what changes from epoch to epoch without a trace in weights or data


class Curriculum(Image):
    def states(self, batch: Any) -> Tensor:
        return self.body(batch[0] * (1 + 0.1 * self.current_epoch))


class Patched(Image):
    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 2:
            stem = self.body.conv1
            stem.forward = lambda inputs, real=stem.forward: real(inputs) * 0.5


class Prompted(Foreign):
    """Trains something that is added to what frozen blocks are given."""

    def __init__(self) -> None:
        super().__init__(RESNET)
        self.head.gate = nn.Parameter(torch.zeros(1))

    def loss(self, batch: Any) -> Tensor:
        states = self.body(batch[0] * (1 + self.head.gate.tanh()))
        return F.cross_entropy(self.head(states), batch[1])


@pytest.mark.parametrize("kind", [Curriculum, Patched])
def test_what_changes_from_epoch_to_epoch_is_noticed_at_the_next(kind: type[Image]) -> None:
    with pytest.warns(UserWarning, match=f"{CHANGES}|has replaced a module"):
        without, cached, *_ = both(lambda: kind(RESNET), epochs=4)
    cached.same_as(without)


def test_validation_is_not_served_what_a_trained_part_gave_before() -> None:
    with pytest.warns(UserWarning, match="FrozenPrefixCache"):
        without, cached, *_ = both(Prompted, epochs=4)
    cached.same_as(without)


@pytest.mark.filterwarnings("error:FrozenPrefixCache")
def test_a_few_samples_are_looked_at_once_an_epoch_and_no_more() -> None:
    module = Image()
    run = fit(module, FrozenPrefixCache(), epochs=4)
    assert run.calls[1:] == [0, 0, 0]
    assert run.looks == 3 * 2  # training and validation, in each epoch after the first


# padding that is read, and samples of two lengths


class Mean(Foreign):
    def states(self, batch: Any) -> Tensor:
        return self.body(**{name: batch[name] for name in ("input_ids", "attention_mask")}).last_hidden_state.mean(1)


def test_padding_that_is_read_is_noticed_before_it_comes_back_as_zeros() -> None:
    rows = texts()
    equal = [row for row in rows if len(row[0]) == len(rows[0][0])][:1] * 4  # a first batch without padding

    def loaders() -> Any:
        return DataLoader([*equal, *rows], 4, collate_fn=pad), DataLoader(rows[:8], 4, collate_fn=pad)

    with pytest.warns(UserWarning, match="stands at padding"):
        without, cached, *_ = both(lambda: Mean(BERT), loaders=loaders)
    cached.same_as(without)


def test_two_texts_with_masks_of_their_own_are_refused() -> None:
    def pair(rows: list[Any]) -> dict[str, Tensor]:
        one, other = pad(rows), pad([(text.flip(0)[:4], label) for text, label in rows])
        return one | {f"{name}_b": other[name] for name in ("input_ids", "attention_mask")}

    data = DataLoader(texts(), 4, collate_fn=pair)
    with pytest.raises(ValueError, match="several attention masks that differ"):
        fit(Foreign(BERT), FrozenPrefixCache(), loaders=(data, data))


# batches that a step writes into, and batches of other kinds


class Writes(Image):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch[1].sub_(1).abs_()
        batch[0].mul_(0.5)
        return super().training_step(batch, batch_idx)

    validation_step = Image.validation_step


class Pops(Foreign):
    def loss(self, batch: Any) -> Tensor:
        labels = batch.pop("label")
        return F.cross_entropy(self.head(self.states(batch)), labels)


@dataclass
class Pair:
    images: Tensor
    labels: Tensor
    names: Any

    def __getitem__(self, place: int) -> Tensor:
        return (self.images, self.labels)[place]


def of_arrays(rows: list[Any]) -> Any:
    return [torch.stack([image for image, _ in rows]), torch.tensor([label for _, label in rows]), np.arange(len(rows))]


def of_a_dataclass(rows: list[Any]) -> Any:
    return Pair(*of_arrays(rows))


@pytest.mark.filterwarnings("error:FrozenPrefixCache")
@pytest.mark.parametrize(("kind", "name"), [(Writes, RESNET), (Pops, BERT)])
def test_a_step_may_write_into_its_batch_and_take_from_it(kind: Any, name: str) -> None:
    without, cached, *_ = both(lambda: kind(name))
    cached.same_as(without)
    assert cached.calls[1:] == [0, 0]


@pytest.mark.filterwarnings("error:FrozenPrefixCache")
@pytest.mark.parametrize("collate", [of_arrays, of_a_dataclass])
def test_batches_with_arrays_and_of_dataclasses_are_kept(collate: Callable[..., Any]) -> None:
    def loaders() -> Any:
        return DataLoader(images(), 4, collate_fn=collate), DataLoader(images(8), 4, collate_fn=collate)

    without, cached, *_ = both(lambda: Foreign(RESNET), loaders=loaders)
    cached.same_as(without)
    assert cached.calls[1:] == [0, 0]


class LogsNaN(Image):
    def look(self, features: Tensor, batch_idx: int) -> None:  # noqa: ARG002
        self.log("undefined", float("nan"))


@pytest.mark.filterwarnings("error:FrozenPrefixCache")
def test_what_is_logged_may_be_no_number() -> None:
    without, cached, *_ = both(LogsNaN)
    cached.same_as(without)


# steps that take nothing but whole batches, or do what a trial cannot


class Sized(Foreign):
    """Takes batches of four alone, and centres them where asked."""

    def __init__(self, *, centred: bool) -> None:
        super().__init__(RESNET)
        self.centred = centred

    def loss(self, batch: Any) -> Tensor:
        inputs = batch[0] - batch[0].mean(0) if self.centred else batch[0]
        return F.cross_entropy(self.head(self.body(inputs)), (torch.arange(4) + batch[1]) % 2)


def test_a_step_of_one_batch_size_is_tried_with_other_neighbours() -> None:
    without, cached, *_ = both(lambda: Sized(centred=False))
    cached.same_as(without)
    assert cached.calls[1:] == [0, 0]
    with pytest.raises(ValueError, match="depends on a sample's neighbours"):
        fit(Sized(centred=True), FrozenPrefixCache())


class Penalised(Image):
    def extra(self, features: Tensor, batch_idx: int) -> Tensor | float:  # noqa: ARG002
        features = features.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.head(features).sum(), features, create_graph=True)
        return gradient.square().sum()


class Encoded(nn.Module):
    """A frozen part that gives something that nobody can look into."""

    def __init__(self, body: nn.Module, kind: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.body, self.kind = body, kind

    def forward(self, inputs: Tensor) -> Any:
        states = self.body(inputs)
        return states, self.kind(states)


class Encodes(Foreign):
    def __init__(self, kind: Callable[[Tensor], Any]) -> None:
        super().__init__(RESNET)
        self.body = Encoded(self.body, kind)

    def states(self, batch: Any) -> Tensor:
        return self.body(batch[0])[0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Penalised, "a trial of the step, without gradients, raised RuntimeError"),
        (lambda: Encodes(lambda states: {states.mean().item()}), "holds a set, of which nobody knows what it depends"),
        (lambda: Encodes(lambda states: states.mean().item()), "give numbers as tensors"),
    ],
)
def test_what_a_trial_cannot_follow_is_refused_with_the_reason(make: Callable[[], Foreign], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit(make(), FrozenPrefixCache())


def test_scripted_modules_and_samplers_without_numbers_are_refused() -> None:
    module = Foreign(RESNET)
    module.body = torch.jit.trace(module.body.eval(), torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="does not work with TorchScript"):
        Trainer(accelerator="cpu", callbacks=[FrozenPrefixCache()], logger=False, max_epochs=2).fit(
            module, *module.loaders()
        )

    class ByName(dict):
        """Samples by name."""

    data = ByName({f"k{n}": row for n, row in enumerate(images())})
    loader = DataLoader(data, 4, sampler=list(data))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the sampler draws \['k0', .*no numbers of samples"):
        fit(Foreign(RESNET), FrozenPrefixCache(), loaders=(loader, loader))


class OwnPlace(DataLoader):
    """Keeps its place in an epoch, as torchdata's StatefulDataLoader does."""

    def state_dict(self) -> dict[str, int]:
        return {"batch": 0}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take the place."""


def test_loaders_that_keep_their_own_place_and_steps_that_fetch_batches_are_refused() -> None:
    loader = OwnPlace(images(), 4)
    with pytest.raises(ValueError, match="OwnPlace keeps its own place in an epoch"):
        fit(Foreign(RESNET), FrozenPrefixCache(), loaders=(loader, loader))

    class Fetches(Image):
        def training_step(self, dataloader_iter: Any) -> Tensor:  # type: ignore[override]
            return self.loss(next(dataloader_iter)[0])

    with pytest.raises(ValueError, match=r"Fetches\.training_step takes dataloader_iter"):
        fit(Fetches(RESNET), FrozenPrefixCache())


class Holes(torch.utils.data.Dataset):
    """Has a sample that nobody can read."""

    def __init__(self) -> None:
        self.data = images(48)
        self.names = ["image"] * 48

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return None if index == 9 else self.data[index]


def collate_readable(samples: list[Any]) -> Any:
    """Return a batch; None where a sample cannot be read, which Lightning passes over."""
    return None if None in samples else torch.utils.data.default_collate(samples)


def test_a_batch_that_lightning_passes_over_shifts_no_samples() -> None:
    def loaders() -> tuple[DataLoader, DataLoader]:
        torch.manual_seed(1)
        return DataLoader(Holes(), 8, shuffle=True, collate_fn=collate_readable), DataLoader(images(8), 8)

    without, cached, *_ = both(lambda: Image(RESNET), loaders=loaders, epochs=3)
    cached.same_as(without)


def ask_for_names(worker: int) -> None:
    """Ask for the data set, as the pages of torch advise."""
    assert worker >= 0
    info = torch.utils.data.get_worker_info()
    assert info is not None
    assert info.dataset.names == ["image"] * 48


def test_a_worker_finds_its_data_set_behind_augmented_views() -> None:
    def loaders() -> tuple[DataLoader, DataLoader]:
        torch.manual_seed(1)
        options: dict[str, Any] = {"num_workers": 1, "worker_init_fn": ask_for_names, "collate_fn": collate_readable}
        return DataLoader(Holes(), 8, **options), DataLoader(images(8), 8)

    fit(Image(RESNET), FrozenPrefixCache(views=2), loaders=loaders(), epochs=2)


# what a module is while the fit goes on


class Copies(Callback):
    """Keeps a copy of the module after the first epoch."""

    copied: Foreign

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.current_epoch == 0:
            self.copied = copy.deepcopy(pl_module)


def test_a_copy_of_the_module_runs_its_own_steps() -> None:
    copies, module = Copies(), Foreign(RESNET)
    run: Run = fit(module, FrozenPrefixCache(), copies, epochs=3)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    ((found,)) = Trainer(**quiet).validate(copies.copied, module.loaders()[1], verbose=False)
    assert found["val/loss"] == pytest.approx(run.val[0], rel=1e-4)
    assert not {"training_step", "validation_step"} & vars(module).keys()


class PassesOver(Image):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:  # noqa: ARG002
        return -1 if batch_idx == 3 else None


@pytest.mark.filterwarnings("error:FrozenPrefixCache")
def test_a_batch_that_the_module_passes_over_changes_nothing() -> None:
    without, cached, *_ = both(PassesOver, epochs=3)
    cached.same_as(without)


@pytest.mark.parametrize(("options", "copies"), [({}, 1.0), ({"dtype": "bf16"}, 0.5), ({"views": 3}, 3.0)])
def test_the_plan_shows_the_room_of_what_is_kept(options: dict[str, Any], copies: float) -> None:
    seen: list[Any] = []

    class Plan(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
            seen.append(next(c.plan for c in trainer.callbacks if getattr(c, "plan", None)).phases[0].cached[1])

    for cache in (FrozenPrefixCache(), FrozenPrefixCache(**options)):
        fit(Image(RESNET), Plan(), cache, epochs=2)
    assert seen[1] == copies * seen[0] > 0
