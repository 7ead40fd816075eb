"""Blocks and the attention pooling head against timm, torch and open_clip, which compute the same with the same weights."""

from __future__ import annotations

import math
from functools import partial

import open_clip
import pytest
import torch
import torch.nn.functional as F
from kit.weights import perturbed
from timm.models.vision_transformer import Block as TimmBlock
from torch import nn

from flexiclip.models.attention import Attention, token_at
from flexiclip.models.transformer import ACTIVATIONS, MLP, Block, MAPHead, QuickGELU, init_weights
from flexiclip.models.variants import Shape

SHAPE = Shape(24, 1, 3, 48)
EPS = 1e-3  # large, so that a norm with another one is noticed


def tokens(length: int = 5) -> torch.Tensor:
    return torch.randn(4, length, SHAPE.width, generator=torch.Generator().manual_seed(1))


def test_quick_gelu_is_open_clips() -> None:
    x = torch.linspace(-6, 6, 101)
    torch.testing.assert_close(QuickGELU()(x), open_clip.transformer.QuickGELU()(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("gelu", lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))),
        ("gelu_tanh", lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
        ("quick_gelu", lambda x: x / (1 + torch.exp(-1.702 * x))),
    ],
)
@torch.no_grad()
def test_mlp_is_two_layers_with_the_activation_between_them(name: str, function) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    mlp, x = perturbed(MLP(24, 40, name)), tokens()
    hidden = function(x.double() @ mlp.fc1.weight.double().T + mlp.fc1.bias.double())
    expected = hidden @ mlp.fc2.weight.double().T + mlp.fc2.bias.double()
    torch.testing.assert_close(mlp(x).double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@torch.no_grad()
def test_block_is_timms_with_the_same_names(activation: str) -> None:
    torch.manual_seed(0)
    block = perturbed(Block(SHAPE, activation, EPS), 0.3)
    norm = partial(nn.LayerNorm, eps=EPS)
    theirs = TimmBlock(24, 3, mlp_ratio=2, qkv_bias=True, norm_layer=norm, act_layer=ACTIVATIONS[activation]).eval()
    theirs.load_state_dict(block.state_dict())
    torch.testing.assert_close(block(tokens()), theirs(tokens()), rtol=0, atol=1e-5)


@torch.no_grad()
def test_block_with_a_mask_or_causal_ignores_the_tokens_that_are_not_allowed() -> None:
    """A row of two tokens and padding has the values of the two alone, and a causal one those of each beginning."""
    torch.manual_seed(0)
    block, x = perturbed(Block(SHAPE, "gelu", EPS), 0.3), tokens()
    allowed = (torch.arange(5) < 2)[None, None, None]
    torch.testing.assert_close(block(x, allowed)[:, :2], block(x[:, :2]), rtol=0, atol=1e-5)
    assert not torch.allclose(block(x)[:, :2], block(x[:, :2]), atol=1e-2)
    for end in range(1, 6):
        torch.testing.assert_close(block(x, causal=True)[:, :end][:, -1], block(x[:, :end])[:, -1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("at", [0, -1, torch.tensor([4, 0, 2, 2])], ids=["first", "last", "of each row"])
@torch.no_grad()
def test_block_at_a_token_is_that_of_all_tokens(at: torch.Tensor | int) -> None:
    torch.manual_seed(0)
    block, x = perturbed(Block(SHAPE, "gelu", EPS), 0.3), tokens()
    found = block(x, at=at)
    assert found.shape == (4, 1, 24)
    torch.testing.assert_close(found, token_at(block(x), at), rtol=0, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_map_head_is_torchs_attention_of_the_probe_with_an_mlp_on_top(masked: bool) -> None:
    """Over 5 tokens, or with a mask over the first 3, as nn.MultiheadAttention computes it with the same weights."""
    torch.manual_seed(0)
    head, x = MAPHead(SHAPE, "gelu_tanh", EPS), tokens()
    init_weights(head)
    perturbed(head, 0.3)
    theirs = nn.MultiheadAttention(24, 3, batch_first=True)
    theirs.in_proj_weight.copy_(torch.cat([head.q.weight, head.kv.weight]))
    theirs.in_proj_bias.copy_(torch.cat([head.q.bias, head.kv.bias]))
    theirs.out_proj.load_state_dict(head.proj.state_dict())
    kept = x[:, :3] if masked else x
    pooled = theirs(head.probe.expand(4, -1, -1), kept, kept, need_weights=False)[0][:, 0]
    normed = F.layer_norm(pooled, (24,), head.norm.weight, head.norm.bias, EPS)
    expected = pooled + head.mlp.fc2(F.gelu(head.mlp.fc1(normed), approximate="tanh"))
    mask = (torch.arange(5) < 3)[None, None, None] if masked else None
    torch.testing.assert_close(head(x, mask), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_init_weights_fills_what_is_below_a_module_and_leaves_norms_alone() -> None:
    """The bound of each square matrix is sqrt(6 / (D + D)); tests/models/test_initial_weights.py has whole models."""
    both = nn.ModuleDict({"block": Block(Shape(96, 1, 3, 384), "gelu", EPS), "head": MAPHead(Shape(96, 1, 3, 384), "gelu", EPS)})
    for p in both.parameters():
        p.fill_(7.0)
    init_weights(both)
    square = math.sqrt(6 / (96 + 96))
    layers = {name: module for name, module in both.named_modules() if isinstance(module, nn.Linear)}
    assert all(not layer.bias.any() for layer in layers.values())
    squares = [*both["block"].attn.qkv.weight.chunk(3), both["head"].q.weight, *both["head"].kv.weight.chunk(2)]
    for weight in (*squares, both["block"].attn.proj.weight, both["head"].proj.weight):
        assert 0.99 * square < float(weight.abs().max()) <= square * (1 + 1e-6)
    for name in ("block.mlp.fc1", "head.mlp.fc2"):
        assert 0.99 < float(layers[name].weight.abs().max()) / math.sqrt(6 / (96 + 384)) <= 1 + 1e-6
    assert 0.5 < float(both["head"].probe.abs().max()) / math.sqrt(6 / (1 + 96)) <= 1 + 1e-6
    assert isinstance(both["block"].attn, Attention)
    for norm in (both["block"].norm1, both["block"].norm2, both["head"].norm):
        assert (norm.weight == 7).all()
        assert (norm.bias == 7).all()
