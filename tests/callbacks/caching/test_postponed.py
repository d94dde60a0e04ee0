"""Postponed: whatever is done with a tensor that is not there yet gives what it would have given at once."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_ft_callbacks.caching.postponed import Postponed, Promise, alive, known
from lightning_ft_callbacks.caching.sample_shapes import CannotCacheError

TRUE = torch.linspace(-2, 3, 48).view(2, 4, 6)


def later(times: list[int] | None = None, notes: Any = None) -> Postponed:
    """Return the true tensor, postponed, and count how often it is computed."""

    def compute() -> list[Tensor]:
        if times is not None:
            times.append(1)
        return [TRUE.clone()]

    return Postponed(TRUE.to("meta"), TRUE.device, Promise(compute, "it"), notes=notes)


def write_into(part: Tensor) -> Tensor:
    buffer = torch.zeros(3, *part.shape)
    buffer[1] = part
    return buffer.add_(part)


def write(part: Tensor) -> Tensor:
    doubled = part * 2
    part.relu_().add_(1)
    return part + doubled


def write_through_a_view(part: Tensor) -> Tensor:
    whole = part * 1
    whole.view(-1).mul_(3)
    whole[:, 0].zero_()
    return whole


def branch(part: Tensor) -> Tensor:
    return part + 1 if part.max() > 2.5 else part


def choose(part: Tensor) -> Tensor:
    return part[part > 0]


def dropped(part: Tensor) -> Tensor:
    torch.manual_seed(3)
    return nn.functional.dropout(part, 0.5)


def add_into_another(part: Tensor) -> Tensor:
    found = torch.empty_like(part)
    torch.add(part, 1, out=found)
    return found + part


def multiply_together(part: Tensor) -> Tensor:
    torch._foreach_mul_([part], 2)
    return part


USES = [
    lambda part: part * 2 + 1, lambda part: part.flatten(1)[:, ::2].softmax(1), lambda part: torch.cat([part, -part]),
    lambda part: part.unbind(1)[2], lambda part: part.double().mean((1, 2)), lambda part: torch.tensor(part.tolist()),
    lambda part: torch.from_numpy(part.numpy() * 2), lambda part: torch.tensor(part.sum().item()), write, write_into,
    write_through_a_view, branch, choose, dropped, copy.deepcopy,
    lambda part: nn.functional.scaled_dot_product_attention(part, part, part),
    lambda part: part.to(torch.bfloat16).transpose(1, 2).contiguous(), lambda part: torch.tensor(len(f"{part.mean()}")),
    add_into_another, multiply_together, lambda part: torch.from_dlpack(part * 1),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(USES)))
def test_every_use_gives_what_it_gives_at_once(number: int) -> None:
    use: Callable[[Tensor], Tensor] = USES[number]
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(known(use(later(notes=[]))), use(TRUE.clone()))


def test_what_nobody_reads_is_never_computed_and_the_rest_once() -> None:
    times: list[int] = []
    start = later(times)
    first, second = (start * 2).flatten(1).relu(), start + 1
    del start
    assert not times
    known((first, second))
    assert len(times) == 1


def test_weights_that_read_it_learn_as_ever() -> None:
    gradients = []
    for given in (TRUE, later()):
        weight = nn.Parameter(torch.ones(6))
        (given.relu() * weight).mean().backward()
        gradients.append(weight.grad)
    torch.testing.assert_close(*gradients)
    assert type(gradients[1]) is Tensor


def test_a_gradient_for_it_is_what_it_would_be() -> None:
    given = later().requires_grad_()
    (given**2).sum().backward()
    torch.testing.assert_close(known(given.grad), 2 * TRUE)


def test_who_is_still_held_is_known() -> None:
    notes: list[Any] = []
    kept = [later(notes=notes) * 2]
    assert [id(one) for one in alive(notes)] == [id(kept[0])]


def test_what_was_made_of_a_tensor_that_changed_since_is_refused() -> None:
    mask = torch.ones(6)
    product = later() * mask
    mask.zero_()
    with pytest.raises(CannotCacheError, match="changed in place"):
        known(product)


@pytest.mark.parametrize("change", [lambda part: part.unsqueeze_(0), lambda part: part.resize_(3, 4), Tensor.t_])
def test_a_shape_that_is_changed_in_place_is_refused(change: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(CannotCacheError, match="changes the shape of a tensor in place"):
        change(later()[0])
