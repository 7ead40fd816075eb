"""Attention of all tokens and of one, and the plain products that bfloat16 takes on a CPU, against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from flexiclip.config import ImageTowerConfig, TextTowerConfig
from flexiclip.models.attention import PLAIN_UP_TO, Attention, attend, token_at
from flexiclip.models.flexivit import FlexiViT
from flexiclip.models.text import TextTransformer

IMAGE = ImageTowerConfig(width=32, depth=3, heads=2, mlp_dim=64, image_size=24, base_patch_size=8, base_grid=3, pool="tok")
TEXT = TextTowerConfig(width=32, depth=3, heads=2, mlp_dim=64, vocab_size=40, pad_id=0, eos_id=1, context_length=9)
MASKS = ("none", "mask", "causal")


def inputs(length: int) -> list[Tensor]:
    """q, k, v and what comes back, [2, 3, length, 16] float64, of values that bfloat16 holds."""
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(2, 3, length, 16, dtype=torch.float64, generator=generator).bfloat16().double() for _ in range(4)]


def with_gradients(function: object, tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """What attention gives and the gradients of q, k and v, in float64."""
    *qkv, back = (t.to(dtype) for t in tensors)
    qkv = [t.requires_grad_() for t in qkv]
    out = function(*qkv)  # type: ignore[operator]
    return [out.detach().double(), *(g.double() for g in torch.autograd.grad(out, qkv, back))]


def worked_out(tensors: list[Tensor], allowed: Tensor) -> list[Tensor]:
    """The formula, in float64."""

    def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.einsum("bhik,bhjk->bhij", q, k) / 4.0
        return torch.softmax(torch.where(allowed, scores, -torch.inf), -1) @ v

    return with_gradients(formula, tensors, torch.float64)


def errors(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]


@pytest.mark.parametrize("masking", MASKS)
@pytest.mark.parametrize("length", [7, 64, PLAIN_UP_TO, PLAIN_UP_TO + 1])
def test_bfloat16_is_as_near_to_float64_as_torchs_kernel_is(length: int, masking: str) -> None:
    tensors = inputs(length)
    allowed = torch.ones(2, 1, length, length, dtype=torch.bool)
    if masking == "mask":
        allowed = (torch.arange(length) < torch.tensor([length, length // 2 + 1])[:, None])[:, None, None].expand_as(allowed)
    if masking == "causal":
        allowed = allowed.tril()
    mask, causal = (allowed if masking == "mask" else None), masking == "causal"
    expected = worked_out(tensors, allowed)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, mask, causal, training=True)

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)

    assert max(errors(with_gradients(ours, tensors, torch.float32), expected)) < 1e-5
    half = errors(with_gradients(ours, tensors, torch.bfloat16), expected)
    theirs = errors(with_gradients(kernel, tensors, torch.bfloat16), expected)
    assert max(half) < 0.01
    assert all(a < 2.5 * b for a, b in zip(half, theirs, strict=True)), (half, theirs)


def test_evaluation_and_float32_take_torchs_kernel() -> None:
    q, k, v, _ = (t.float() for t in inputs(64))
    assert torch.equal(attend(q, k, v, training=True), F.scaled_dot_product_attention(q, k, v))
    q, k, v, _ = (t.bfloat16() for t in inputs(64))
    kernel = F.scaled_dot_product_attention(q, k, v)
    assert torch.equal(attend(q, k, v), kernel)
    assert not torch.equal(attend(q, k, v, training=True), kernel)
    for length in (PLAIN_UP_TO, PLAIN_UP_TO + 1):  # and so does the training of longer sequences
        q, k, v, _ = (t.bfloat16() for t in inputs(length))
        same = torch.equal(attend(q, k, v, training=True), F.scaled_dot_product_attention(q, k, v))
        assert same == (length > PLAIN_UP_TO)


@pytest.mark.parametrize("at", [0, -1, 3, "rows"])
def test_one_token_is_that_of_the_whole(at: int | str) -> None:
    torch.manual_seed(0)
    attention, x = Attention(24, 2), torch.randn(4, 6, 24)
    where = torch.tensor([5, 0, 2, 2]) if at == "rows" else at
    assert not isinstance(where, str)
    whole, one = attention(x), attention(x, at=where)
    assert one.shape == (4, 1, 24)
    torch.testing.assert_close(one, token_at(whole, where), rtol=0, atol=1e-6)
    rows = where.tolist() if isinstance(where, Tensor) else 4 * [where]
    assert torch.equal(token_at(x, where)[:, 0], torch.stack([x[i, row] for i, row in enumerate(rows)]))


def test_an_image_towers_class_token_and_its_gradients() -> None:
    torch.manual_seed(0)
    tower, images = FlexiViT(IMAGE), torch.randn(2, 3, 24, 24)
    found, whole = tower(images, 4), tower.forward_tokens(images, 4)[:, 0]
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)
    back = torch.randn(found.shape)
    mine, expected = (torch.autograd.grad(x, tuple(tower.parameters()), back) for x in (found, whole))
    for a, b in zip(mine, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * float(b.abs().max()))
    (every,) = tower(images, 4, every_exit=True)
    torch.testing.assert_close(every, found, rtol=0, atol=0)


def test_the_last_block_computes_the_class_token_alone_and_saves_three_quarters() -> None:
    """docs/guides/performance.md: a hook on the last block sees one token, forward_tokens gives all of them."""
    tower, images = FlexiViT(replace(IMAGE, width=128, mlp_dim=512)), torch.randn(2, 3, 24, 24)
    seen: list[torch.Size] = []
    for block in tower.blocks:
        block.register_forward_hook(lambda module, given, out: seen.append(out.shape))
    tower(images, 6)
    assert [shape[1] for shape in seen] == [37, 37, 1]
    seen.clear()
    assert tower.forward_tokens(images, 6).shape == (2, 37, 128)
    assert [shape[1] for shape in seen] == [37, 37, 37]

    def flops(at: int | None) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            tower.blocks[-1](torch.randn(2, 37, 128), at=at)
        return counter.get_total_flops()

    assert 1 - flops(0) / flops(None) == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(
    ("pool", "causal", "pad_mask"), [("eos", False, True), ("eos", True, False), ("eos", False, False), ("last", False, False)]
)
def test_a_text_towers_one_token(pool: str, causal: bool, pad_mask: bool) -> None:
    torch.manual_seed(0)
    tower = TextTransformer(replace(TEXT, pool=pool, causal=causal, pad_mask=pad_mask))  # type: ignore[arg-type]
    tokens = torch.tensor([[5, 6, 7, 1, 0, 0], [9, 8, 7, 6, 5, 1], [3, 1, 0, 0, 0, 0]])
    end = torch.tensor([3, 5, 1])
    valid = torch.arange(6) <= end[:, None]
    x = tower.token_embedding(tokens) + tower.posemb[:, :6]
    for block in tower.blocks:
        x = block(x, valid[:, None, None] if pad_mask else None, causal)
    x = tower.norm(x)
    expected = x[torch.arange(3), end] if pool == "eos" else x[:, -1]
    torch.testing.assert_close(tower(tokens), expected, rtol=0, atol=1e-5)
