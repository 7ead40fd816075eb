"""Source hands out each tensor of a foreign file once, and names what has no place."""

from __future__ import annotations

import pytest
import torch

from flexiclip.errors import UserError
from flexiclip.formats.imported import Source


def source(*names: str) -> Source:
    return Source({name: torch.full((2,), float(number)).bfloat16() for number, name in enumerate(names)}, "x.bin")


def test_take_gives_each_tensor_once_in_float32() -> None:
    given = source("a", "b")
    taken = given.take("b")
    assert (taken.tolist(), taken.dtype) == ([1.0, 1.0], torch.float32)
    assert "b" not in given
    with pytest.raises(UserError, match=r"^x\.bin: the tensor 'b' is missing; it has a$"):
        given.take("b")
    with pytest.raises(UserError, match="the tensor 'c' is missing"):
        given.take("c")
    given.take("a")
    given.finish()


def test_take_head_takes_a_bias_where_there_is_one() -> None:
    given = source("fc.weight", "fc.bias", "proj.weight", "stray.bias")
    assert set(given.take_head("fc")) == {"weight", "bias"}
    assert set(given.take_head("proj", required=True)) == {"weight"}
    assert given.take_head("stray") == given.take_head("head") == {}
    with pytest.raises(UserError, match=r"the tensor 'head\.weight' is missing; it has stray\.bias"):
        given.take_head("head", required=True)


def test_finish_lists_what_is_left_over() -> None:
    given = source("head.weight", "extra")
    given.take("head.weight")
    with pytest.raises(UserError, match=r"^x\.bin: tensors without a place in the tower: extra; drop them, or is it another"):
        given.finish()
    given.take("extra")
    given.finish()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("reg_token", "it has register tokens"),
        ("fc_norm.weight", "its last norm follows the pool"),
        ("blocks.0.attn.q_norm.weight", "it normalises queries and keys"),
        ("attn_pool.latent", "its attention pool is not a MAP head"),
        ("txt/BertModel_0/embeddings", "its text tower is a BERT"),
    ],
)
def test_finish_says_which_part_our_towers_lack(name: str, reason: str) -> None:
    """docs/guides/import.md: what cannot be imported."""
    with pytest.raises(UserError, match=reason):
        source(name).finish()
