"""The pre-norm transformer blocks that both towers use, and the attention pooling head (MAP).

Shapes: B batch, L tokens, D width, H heads, K = D / H. Parameter names are timm's (norm1, attn.qkv, attn.proj, norm2,
mlp.fc1, mlp.fc2), so published weights map onto them one to one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flexiclip.models.attention import Attention, attend, token_at
from flexiclip.models.variants import Shape


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of OpenAI's CLIP weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to every element of x, a tensor of any shape."""
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "gelu": nn.GELU,
    "quick_gelu": QuickGELU,
}


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = ACTIVATIONS[activation]()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., D] to [..., D]."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, shape: Shape, activation: str, norm_eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, eps=norm_eps)
        self.attn = Attention(shape.width, shape.heads)
        self.norm2 = nn.LayerNorm(shape.width, eps=norm_eps)
        self.mlp = MLP(shape.width, shape.mlp_dim, activation)

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False, at: Tensor | int | None = None) -> Tensor:
        """Map x [B, L, D] to [B, L, D], or to [B, 1, D] for the tokens `at`. mask, causal and at are those of `Attention`."""
        x = (x if at is None else token_at(x, at)) + self.attn(self.norm1(x), mask, causal, at)
        return x + self.mlp(self.norm2(x))


class MAPHead(nn.Module):
    """Attention pooling, as in big_vision's models/vit.py: a learned probe attends to all tokens.

    Only the MLP after the attention has a norm.
    """

    def __init__(self, shape: Shape, activation: str, norm_eps: float) -> None:
        super().__init__()
        self.heads = shape.heads
        self.probe = nn.Parameter(torch.empty(1, 1, shape.width))
        self.q = nn.Linear(shape.width, shape.width)
        self.kv = nn.Linear(shape.width, 2 * shape.width)
        self.proj = nn.Linear(shape.width, shape.width)
        self.norm = nn.LayerNorm(shape.width, eps=norm_eps)
        self.mlp = MLP(shape.width, shape.mlp_dim, activation)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool the tokens x [B, L, D] to [B, D]. `mask` is broadcastable to [B, H, 1, L] and True where attention is allowed."""
        batch, length, width = x.shape
        q = self.q(self.probe).view(1, 1, self.heads, -1).transpose(1, 2).expand(batch, -1, -1, -1)
        k, v = self.kv(x).view(batch, length, 2, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        pooled = attend(q, k, v, mask, training=self.training).reshape(batch, width)
        pooled = self.proj(pooled)
        return pooled + self.mlp(self.norm(pooled))


def init_weights(module: nn.Module) -> None:
    """Initialise the layers below `module` in place, as big_vision does: Xavier-uniform weights and probes, zero biases.

    There is one difference: big_vision draws the biases of its MLPs with a standard deviation of 1e-6.
    tests/models/test_initial_weights.py has the table.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, MAPHead):
            nn.init.xavier_uniform_(child.probe[0])  # for [1, 1, D], flax takes fan_in = 1 and fan_out = D
    for child in module.modules():
        if isinstance(child, Attention):  # one tensor holds the three square layers q, k and v
            for square in child.qkv.weight.chunk(3):
                nn.init.xavier_uniform_(square)
        elif isinstance(child, MAPHead):  # k and v share one too: rescale the bound of [2D, D] to that of [D, D]
            with torch.no_grad():
                child.kv.weight.mul_(1.5**0.5)
