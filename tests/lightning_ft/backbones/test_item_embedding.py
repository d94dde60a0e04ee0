"""ItemEmbedding: a vector an item, by its number."""

import pytest
import torch

from lightning_ft import ItemEmbedding
from lightning_ft_callbacks import BlockMap


def test_an_items_vector_is_its_one_token() -> None:
    backbone = ItemEmbedding(5, num_features=3)
    features = backbone({"items": torch.tensor([4, 0, 4])})
    assert features.states.shape == (3, 1, 3)
    assert torch.equal(features.states[:, 0], backbone.model.weight[[4, 0, 4]])
    assert features.mask.tolist() == [[1.0]] * 3
    assert (backbone.features.num_features, backbone.features.kind) == (3, "tokens")


def test_it_is_one_block() -> None:
    assert BlockMap.of(ItemEmbedding(5)).names == ("items",)


@pytest.mark.parametrize("number", [None, 0])
def test_it_needs_the_number_of_items(number: int | None) -> None:
    with pytest.raises(ValueError, match=f"num_items to be a positive integer, but got {number}"):
        ItemEmbedding(number)
