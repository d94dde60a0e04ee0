"""PrefixWeights and PrefixModules: what changes below a line is noticed, and what is put back is not a change."""

from functools import partial

import torch
from torch import nn

from lightning_ft_callbacks import BlockMap
from lightning_ft_callbacks.caching.prefix_guard import PrefixModules, PrefixWeights


def network() -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(3)))


def blocks(root: nn.Module) -> BlockMap:
    return BlockMap.of(root, ["0", "1", "2"])


def test_weights_put_back_are_unchanged_and_others_are_noticed() -> None:
    root = network()
    weights = PrefixWeights(blocks(root))
    first, second = root[0][0].weight, root[1][0].weight
    changed = partial(weights.changed, 1, epoch=0)
    assert not changed()
    with torch.no_grad():
        first.mul_(2).div_(2)
        second.add_(1)
    assert not changed()
    with torch.no_grad():
        first.add_(1)
    assert changed()
    assert not changed()
    root[0][1].running_mean.add_(1)
    assert changed()


def test_a_write_that_torch_does_not_count_is_noticed_in_the_next_epoch() -> None:
    root = network()
    weights = PrefixWeights(blocks(root))
    assert not weights.changed(1, epoch=0)
    root[0][0].weight.data.mul_(1.5)
    assert weights.changed(1, epoch=1)


def test_a_change_before_the_line_moves_is_noticed_after_it_has() -> None:
    root = network()
    weights = PrefixWeights(blocks(root))
    assert not weights.changed(2, epoch=0)
    with torch.no_grad():
        root[0][0].weight.mul_(1.5)
    assert weights.changed(1, epoch=1)


def test_a_block_that_was_trained_meanwhile_is_no_surprise() -> None:
    root = network()
    weights = PrefixWeights(blocks(root))
    assert not weights.changed(2, epoch=0)
    assert not weights.changed(1, epoch=1)
    with torch.no_grad():
        root[1][0].weight.mul_(1.5)
    assert not weights.changed(2, epoch=2)


def test_replaced_modules_and_late_hooks_are_noticed() -> None:
    root = network()
    modules = PrefixModules([root])
    assert not modules.replaced()
    assert not modules.hooked()
    root[0][0].register_forward_hook(lambda *_: None)
    assert modules.hooked()
    root[0][1] = nn.Identity()
    assert modules.replaced()
