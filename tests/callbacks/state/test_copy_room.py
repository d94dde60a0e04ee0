"""Where copies of what training changes are kept."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from lightning_ft_callbacks.state import copy_room
from lightning_ft_callbacks.state.copy_room import CopyRoom, needed_by_training
from lightning_ft_callbacks.state.plain_state import PlainState

CPU = torch.device("cpu")


class Device:
    """A device whose memory is filled by copies."""

    def __init__(self, size: int) -> None:
        self.left = size
        self.moved: list[int] = []


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device of 100 bytes, in place of the CPU."""
    device = Device(100)
    monkeypatch.setattr(copy_room, "free_bytes", lambda _: device.left)
    clone = torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda t: (setattr(device, "left", device.left - t.nbytes), clone(t))[1])
    monkeypatch.setattr(torch.Tensor, "to", lambda t, *_, **__: (device.moved.append(t.nbytes), clone(t))[1])
    return device


def test_copies_fill_a_device_up_to_what_is_reserved_and_then_go_to_the_cpu(device: Device) -> None:
    room = CopyRoom({CPU: 30})
    tensors = [torch.full((10,), float(n)) for n in range(3)]  # of 40 bytes
    copies = [room.copy(tensor) for tensor in tensors]
    assert device.moved == [40, 40]
    assert device.left == 60
    assert all(torch.equal(*pair) for pair in zip(tensors, copies, strict=True))


def test_what_is_kept_on_a_device_that_is_short_is_put_back(device: Device) -> None:
    module = nn.Linear(10, 10)
    before = module.weight.tolist()
    state = PlainState(module, copy=CopyRoom({CPU: 30}).copy)
    nn.init.zeros_(module.weight)
    state.restore()
    assert module.weight.tolist() == before
    assert device.moved == [400]


def test_room_is_left_for_gradients_and_for_the_optimizer_state_that_the_first_step_makes() -> None:
    module = nn.Linear(10, 10)
    module.bias.requires_grad_(False)
    optimizer = AdamW(module.parameters())
    assert needed_by_training(module, [optimizer]) == {CPU: 3 * 400}
    module.weight.grad = torch.ones_like(module.weight)
    optimizer.step()
    assert needed_by_training(module, [optimizer]) == {CPU: 400}
    assert needed_by_training(module, [SGD(module.parameters(), lr=0.1)]) == {CPU: 3 * 400}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="asks for a GPU's memory")
def test_a_gpu_without_room_has_its_copies_on_the_cpu() -> None:
    tensor = torch.ones(1000, device="cuda")
    assert CopyRoom({tensor.device: 0}).copy(tensor).is_cuda
    assert not CopyRoom({tensor.device: 2**50}).copy(tensor).is_cuda
