"""Which list of modules holds a tower's blocks: of towers as they are nested here and in other libraries."""

from __future__ import annotations

import pytest
from torch import nn

from flexiclip.config import ImageTowerConfig, TextTowerConfig
from flexiclip.models.flexivit import FlexiViT
from flexiclip.models.locks import blocks_of
from flexiclip.models.text import TextTransformer


class Nested(nn.Module):
    """T5's way: two blocks, each a list of five layers; and beside them a list of one."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(1, 1)])
        self.block = nn.ModuleList(nn.ModuleDict({"layer": nn.ModuleList(nn.Linear(1, 1) for _ in range(5))}) for _ in range(2))


def test_blocks_of_is_the_longest_list_that_lies_in_no_other() -> None:
    nested = Nested()
    assert blocks_of(nested) == list(nested.block)
    assert blocks_of(nn.Sequential(nn.Linear(1, 1), nested)) == list(nested.block)
    assert blocks_of(nn.Linear(1, 1)) == []


@pytest.mark.parametrize("pool", ["gap", "map"])
def test_blocks_of_our_towers_are_their_blocks(pool: str) -> None:
    image = FlexiViT(
        ImageTowerConfig(width=8, depth=3, heads=1, base_patch_size=8, exits=(1, 2), exit_heads="separate", pool=pool)  # type: ignore[arg-type]
    )
    text = TextTransformer(TextTowerConfig(width=8, depth=2, heads=1, vocab_size=9, pad_id=0, eos_id=1, context_length=4))
    assert blocks_of(image) == list(image.blocks)
    assert blocks_of(text) == list(text.blocks)
