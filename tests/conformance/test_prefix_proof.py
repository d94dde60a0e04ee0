"""Law 9 whatever a step does: frozen blocks that are not run give what they would have given, or it says why not."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import transformers as hf
from lightning.pytorch import Callback
from prefix_nets import CASES, WIDTH, Case, Foreign, Run, fit, images, pad, texts, upper_half
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_ft_callbacks import FrozenPrefixCache

F = nn.functional
RESNET, BERT = "timm resnet", "bert"


def both(make: Callable[[], Foreign], **options: Any) -> tuple[Run, Run, Foreign, Foreign]:
    """Return two fits, without a cache and with one, and their modules."""
    cache = options.pop("cache", FrozenPrefixCache)
    callbacks = options.pop("callbacks", list)
    loaders = options.pop("loaders", lambda: None)
    module = make()  # which seeds random numbers
    without = fit(module, *callbacks(), loaders=loaders(), **options)
    other = make()
    cached = fit(other, *callbacks(), cache(), loaders=loaders(), **options)
    return without, cached, module, other


class Image(Foreign):
    """A step of one's own on images and labels."""

    def __init__(self, name: str = RESNET) -> None:
        super().__init__(name)
        self.seen: list[Any] = []
        self.summed: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        features = self.states([images])
        self.look(features, batch_idx)
        return F.cross_entropy(self.head(features), labels) + self.extra(features, batch_idx)

    def look(self, features: Tensor, batch_idx: int) -> None:
        """Do something beside the loss."""

    def extra(self, features: Tensor, batch_idx: int) -> Tensor | float:  # noqa: ARG002
        return 0.0


# what a step reads of frozen blocks on some batches only, or beside the head


class Bank(Image):
    def look(self, features: Tensor, batch_idx: int) -> None:  # noqa: ARG002
        self.seen.append(features.detach())

    def on_train_epoch_end(self) -> None:
        self.summed.append(torch.cat(self.seen).abs().mean().item())
        self.seen.clear()


class ValidationBank(Image):
    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        features = self.states(batch)
        self.seen.append(features)
        self.log("val/loss", F.cross_entropy(self.head(features), batch[1]))

    def on_validation_epoch_end(self) -> None:
        self.summed.append(torch.cat(self.seen).std().item())
        self.seen.clear()


class Logs(Image):
    def look(self, features: Tensor, batch_idx: int) -> None:
        if batch_idx % 4 == 3:
            self.log("norm", features.norm())
            self.summed.append(features.norm().item())


class HelpsLater(Image):
    def extra(self, features: Tensor, batch_idx: int) -> Tensor | float:  # noqa: ARG002
        return F.mse_loss(self.head(features).tanh().mean(1), features.mean(1)) if self.current_epoch >= 2 else 0.0


class HelpsSometimes(Image):
    def extra(self, features: Tensor, batch_idx: int) -> Tensor | float:
        return F.mse_loss(self.head(features).tanh().mean(1), features.mean(1)) if batch_idx % 3 == 2 else 0.0


@pytest.mark.parametrize("kind", [Bank, ValidationBank, Logs, HelpsLater, HelpsSometimes])
def test_what_a_step_reads_of_frozen_blocks_is_true_in_every_batch(kind: type[Image]) -> None:
    without, cached, module, other = both(kind, epochs=4)
    cached.same_as(without)
    assert other.summed == pytest.approx(module.summed)
    assert cached.calls[1:] == [0, 0, 0]


# what is made of the batch before frozen blocks


class Permutes(Image):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        return super().training_step([images.flip(0), labels.flip(0)] if batch_idx % 3 == 2 else batch, batch_idx)


class Flips(Image):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        return super().training_step([images.flip(-1) if self.current_epoch % 2 else images, labels], batch_idx)


class Resizes(Image):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        return super().training_step([F.interpolate(images, size=24 + 4 * self.current_epoch), labels], batch_idx)


class Switches(Foreign):
    """Asks its network for something else from the second epoch on."""

    def states(self, batch: Any) -> Tensor:
        mask = batch["attention_mask"]
        late = self.current_epoch > 0
        found = self.body(input_ids=batch["input_ids"], attention_mask=mask, output_hidden_states=late)
        return (found.hidden_states[1] if late else found.last_hidden_state)[:, 0]


@pytest.mark.parametrize("kind", [Permutes, Flips, Resizes, partial(Switches, BERT)])
def test_a_step_that_gives_frozen_blocks_something_else_is_noticed_before_it_is_served(kind: Any) -> None:
    with pytest.warns(
        UserWarning, match="FrozenPrefixCache: (no longer used for|nothing is kept below head for) training data"
    ):
        without, cached, *_ = both(kind)
    cached.same_as(without)


class Rare(TensorDataset):
    """Augments one sample of all, in each epoch but the first."""

    def __init__(self, *tensors: Tensor) -> None:
        super().__init__(*tensors)
        self.read_all = False

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        augments = index == 0 and self.read_all
        self.read_all |= index == len(self) - 1
        return (image.mean(0, keepdim=True).expand(3, -1, -1) * 4 if augments else image), label


def rare(kind: type[TensorDataset] = Rare) -> tuple[DataLoader, DataLoader]:
    torch.manual_seed(1)
    data = images(96)
    tensors = torch.stack([image for image, _ in data]), torch.tensor([label for _, label in data])
    return DataLoader(kind(*tensors), 8), DataLoader(TensorDataset(*tensors), 8)


def test_rare_augmentation_is_noticed_before_a_sample_of_it_is_served() -> None:
    with pytest.warns(UserWarning, match="is no longer what was kept of it.*random augmentation"):
        without, cached, *_ = both(Image, loaders=rare, epochs=2)
    cached.same_as(without)


# what is trained meets what is not


class TwoDepths(Image):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(512 + 128, 2)

    def states(self, batch: Any) -> Tensor:
        body = self.body
        low = body.layer2(body.layer1(body.maxpool(body.act1(body.bn1(body.conv1(batch[0]))))))
        return torch.cat([low.mean((2, 3)), body.layer4(body.layer3(low)).mean((2, 3))], 1)


class Mix(Foreign):
    """Reads a learnt average of all layers."""

    def __init__(self) -> None:
        super().__init__(BERT)
        self.mix = nn.Parameter(torch.zeros(5))

    def states(self, batch: Any) -> Tensor:
        mask = batch["attention_mask"]
        layers = self.body(**{key: batch[key] for key in ("input_ids", "attention_mask")}, output_hidden_states=True)
        weighted = [weight * layer for weight, layer in zip(self.mix.softmax(0), layers.hidden_states, strict=True)]
        return (sum(weighted) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


class Residual(nn.Module):
    """Adds its input after each layer, and a trained layer's output meets it outside of a module."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(12, 12) for _ in range(4)])

    def forward(self, images: Tensor) -> Tensor:
        states = first = images.mean(2).flatten(1)[:, :12]
        for layer in self.layers:
            states = states + layer(states.relu()) + first
        return states


@pytest.mark.parametrize(
    ("kind", "trained"),
    [
        (TwoDepths, ["body.layer3", "body.layer4", "head"]),
        (TwoDepths, ["body.layer4", "head"]),
        (TwoDepths, ["head"]),
        (Mix, ["tail"]),
        (Mix, ["body.encoder.layer.[23]", "tail"]),
        (partial(Image, "residual"), ["body.layers.[23]", "head"]),
    ],
)
def test_validation_never_meets_what_trained_blocks_gave_in_another_epoch(
    kind: Any, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CASES, "residual", Case(Residual, 12))
    without, cached, *_ = both(kind, schedule=[{"train": trained}], epochs=4)
    cached.same_as(without)
    assert cached.calls[1:] == [0, 0, 0]


# blocks that are computed again in the backward pass


class Checkpointed(Foreign):
    def __init__(self, name: str, reentrant: bool = False) -> None:
        super().__init__(name)
        if hasattr(self.body, "set_grad_checkpointing"):
            self.body.set_grad_checkpointing(True)
        else:
            self.body.gradient_checkpointing_enable({"use_reentrant": reentrant})


@pytest.mark.parametrize("name", [BERT, "gpt2", "vit", "timm vit", "timm swin", "timm efficientnet", RESNET])
def test_gradient_checkpoints_of_trained_blocks_learn_as_without_it(name: str) -> None:
    schedule = [{"train": ["head"], "epochs": 2}, {"train": upper_half(name)}]
    without, cached, *_ = both(lambda: Checkpointed(name), schedule=schedule, epochs=4)
    cached.same_as(without)
    assert cached.calls[1:] == [0, 0, 0]


def test_reentrant_checkpoints_have_their_gradients_too() -> None:
    without, cached, *_ = both(lambda: Checkpointed(BERT, reentrant=True), schedule=[{"train": upper_half(BERT)}])
    cached.same_as(without)
    assert cached.calls[1:] == [0, 0]


# a sample's neighbours in the batch


def left_padded(samples: Any) -> dict[str, Tensor]:
    batch = pad(samples)
    shifts = [int(tokens) for tokens in (batch["attention_mask"] == 0).sum(1)]
    for name in ("input_ids", "attention_mask"):
        batch[name] = torch.stack([row.roll(shift) for row, shift in zip(batch[name], shifts, strict=True)])
    return batch


def loaders_of(collate: Any) -> tuple[DataLoader, DataLoader]:
    return DataLoader(texts(), 4, shuffle=True, collate_fn=collate), DataLoader(texts()[:8], 4, collate_fn=collate)


class Last(Foreign):
    def states(self, batch: Any) -> Tensor:
        found = self.body(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return found.last_hidden_state[:, -1]


class Unmasked(Foreign):
    def states(self, batch: Any) -> Tensor:
        return self.body(input_ids=batch["input_ids"]).last_hidden_state[:, 0]


class Centred(Foreign):
    def states(self, batch: Any) -> Tensor:
        return super().states([batch[0] - batch[0].mean(0, keepdim=True)])


@pytest.mark.parametrize(
    ("make", "collate"),
    [(partial(Last, "gpt2"), left_padded), (partial(Unmasked, BERT), pad), (partial(Centred, RESNET), None)],
)
@pytest.mark.parametrize("part", ["head", "upper half"])
def test_what_depends_on_a_samples_neighbours_is_refused(make: Any, collate: Any, part: str) -> None:
    name = make.args[0]
    schedule = [{"train": ["head"] if part == "head" else upper_half(name)}]
    with pytest.raises(ValueError, match="depends on a sample's neighbours in the batch or on their padding"):
        fit(make(), FrozenPrefixCache(), schedule=schedule, loaders=loaders_of(collate) if collate else None)


def test_left_padding_that_changes_nothing_is_right() -> None:
    without, cached, *_ = both(partial(Last, "llama"), loaders=lambda: loaders_of(left_padded))
    cached.same_as(without)
    assert cached.calls[1:] == [0, 0]


# what somebody changes below the line


class Changes(Callback):
    """Does something to the module at the start of an epoch."""

    def __init__(self, do: Callable[[Foreign], Any], epoch: int = 1) -> None:
        self.do = do
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == self.epoch:
            self.do(pl_module)


def replace(module: Foreign) -> None:
    module.body.act1 = nn.Tanh()


def hook(module: Foreign) -> None:
    module.body.layer1.register_forward_hook(lambda _, __, output: output * 1.5)


def write(module: Foreign) -> None:
    next(module.body.parameters()).data.mul_(1.5)


@pytest.mark.parametrize(
    ("do", "said"), [(replace, "has replaced a module"), (hook, "has a hook"), (write, "has changed weights")]
)
def test_a_change_below_the_line_is_noticed_before_anything_wrong_is_used(do: Any, said: str) -> None:
    with pytest.warns(UserWarning, match=said):
        without, cached, *_ = both(Image, callbacks=lambda: [Changes(do)])
    cached.same_as(without)


def test_weights_that_change_where_the_phase_does_are_noticed() -> None:
    schedule = [{"train": ["head"], "epochs": 2}, {"train": upper_half(BERT)}]

    def scale(module: Foreign) -> None:
        with torch.no_grad():
            for parameter in module.body.encoder.layer[0].parameters():
                parameter.mul_(3)

    with pytest.warns(UserWarning, match="somebody has changed weights"):
        without, cached, *_ = both(
            partial(Foreign, BERT), schedule=schedule, epochs=4, callbacks=lambda: [Changes(scale, epoch=2)]
        )
    cached.same_as(without)


def test_a_partial_function_is_a_hook_as_any_other() -> None:
    module = Image()
    module.body.layer1.register_forward_hook(partial(lambda _, *__: None, "tag"))
    with pytest.raises(ValueError, match=r"'body\.layer1' below head has a hook"):
        fit(module, FrozenPrefixCache())


# the trial, and what is said


def test_a_trial_leaves_no_hooks_and_the_first_loss_is_that_without_it() -> None:
    without, cached, module, other = both(Mix, schedule=[{"train": ["tail"]}], epochs=1)
    assert cached.losses == without.losses
    assert [len(part._forward_hooks) for part in other.modules()] == [
        len(part._forward_hooks) for part in module.modules()
    ]


def large_last() -> tuple[DataLoader]:
    data = images()
    pixels = torch.stack([image for image, _ in data])
    pixels[20] *= 3e6
    return (DataLoader(TensorDataset(pixels, torch.tensor([label for _, label in data])), 4),)


def test_a_number_too_large_for_fp16_is_not_kept_in_it() -> None:
    with pytest.warns(UserWarning, match="too large for torch.float16: keep them with dtype='bf16'"):
        without, cached, *_ = both(Image, loaders=large_last, cache=partial(FrozenPrefixCache, dtype="fp16"))
    cached.same_as(without)


class Siamese(Image):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002
        images, labels = batch
        one, other = (self.head(self.states([view])) for view in (images, images.flip(-1)))
        return F.cross_entropy(one + other, labels)


def test_frozen_modules_that_go_on_running_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    without, cached, *_ = both(Siamese)
    cached.same_as(without)
    told = [record.message for record in caplog.records if "go on running" in record.message]
    assert len(told) == 1
    assert "below head, 1 calls of frozen modules go on running in each training step" in told[0]


def t5(dropout: float) -> Callable[[], nn.Module]:
    sizes = {"vocab_size": 50, "d_model": WIDTH, "d_kv": 16, "d_ff": 64, "num_layers": 4, "num_heads": 2}
    return lambda: hf.T5EncoderModel(hf.T5Config(**sizes, dropout_rate=dropout))


@pytest.mark.parametrize("part", ["head", "upper half"])
def test_a_dropout_that_no_frozen_block_holds_is_refused_with_a_remedy_that_helps(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CASES, "t5", Case(t5(0.1), text=True))
    schedule = [{"train": ["head"] if part == "head" else upper_half("t5")}]
    with pytest.raises(ValueError, match="set the p of a dropout to 0 that is in no frozen block"):
        fit(Foreign("t5"), FrozenPrefixCache(), schedule=schedule)

    def quiet() -> Foreign:
        module = Foreign("t5")
        module.body.encoder.dropout.p = 0.0
        return module

    without, cached, *_ = both(quiet, schedule=schedule)
    cached.same_as(without)


# batches that are mappings of another kind


class Collated(Foreign):
    def states(self, batch: Any) -> Tensor:
        assert isinstance(batch, hf.BatchEncoding)
        return super().states(batch)

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.head(self.states(batch)), batch["labels"])


def tokenizer() -> hf.PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({f"{number}": number for number in range(50)}, unk_token="1"))
    return hf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", unk_token="1")


@pytest.mark.parametrize("reads_once", [False, True])
def test_batches_of_transformers_collators_are_kept(reads_once: bool) -> None:
    def loaders() -> tuple[DataLoader, DataLoader]:
        rows = [
            {"input_ids": text.tolist(), "attention_mask": [1] * len(text), "labels": label} for text, label in texts()
        ]
        collate = hf.DataCollatorWithPadding(tokenizer())
        return DataLoader(rows, 4, shuffle=True, collate_fn=collate), DataLoader(rows[:8], 4, collate_fn=collate)

    def make() -> Collated:
        module = Collated(BERT)
        if reads_once:
            module.prefix_inputs = ("input_ids",)
        return module

    without, cached, *_ = both(make, loaders=loaders, schedule=[{"train": upper_half(BERT)}])
    cached.same_as(without)
    assert cached.calls[1:] == [0, 0]


class LooksAtBatches(Callback):
    """Reads what the cache has not."""

    def __init__(self) -> None:
        self.sums: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        if batch_idx == 0:
            self.sums.append(batch["input_ids"].float().mean().item())


def test_callbacks_see_what_was_not_read_as_it_is() -> None:
    class Named(Foreign):
        prefix_inputs = ("input_ids",)

    found = []
    for kind in (Foreign, Named):
        looks = LooksAtBatches()
        fit(kind(BERT), looks, FrozenPrefixCache())
        found.append(looks.sums)
    assert found[0] == found[1]
