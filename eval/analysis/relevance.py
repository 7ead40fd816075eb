"""Relevance maps: which tokens the score of an image depends on, by attention and its gradients.

The rule is that of Chefer et al. for self-attention (arXiv 2103.15679, eq. 5 and 6): R = I, and for each block R <- R + A' R with
A' = mean over heads of max(0, dscore/dA * A). It is the rule of their earlier arXiv 2012.09838 (eq. 13 and 14) with the attention
itself in the place of its layer-wise relevance. The score is the similarity of the image with its own text.

torch's fused attention does not return its weights. Hooks recompute the weights from q and k, and replace the output of the
module by the result of these weights, so that the score depends on them. The forward methods of the tower are not changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flexiclip.models.attention import Attention
from flexiclip.models.clip import FlexiCLIP
from flexiclip.models.flexivit import FlexiViT
from flexiclip.models.transformer import MAPHead


@contextmanager
def recorded_attention(tower: FlexiViT) -> Iterator[list[Tensor]]:
    """Inside `with`, the list gets the attention weights of each block [B, H, L, L] and of a MAP head [B, H, 1, L], in order."""
    weights: list[Tensor] = []

    def self_attention(module: nn.Module, args: tuple[Tensor, ...], _: Tensor) -> Tensor:
        assert isinstance(module, Attention), "hooked below"
        x = args[0]
        batch, length, width = x.shape
        q, k, v = module.qkv(x).view(batch, length, 3, module.heads, width // module.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights.append(_softmax(q, k))
        return module.proj((weights[-1] @ v).transpose(1, 2).reshape(batch, length, width))

    def pooling(module: nn.Module, args: tuple[Tensor, ...], _: Tensor) -> Tensor:
        assert isinstance(module, MAPHead), "hooked below"
        x = args[0]
        batch, length, width = x.shape
        q = module.q(module.probe).view(1, 1, module.heads, -1).transpose(1, 2).expand(batch, -1, -1, -1)
        k, v = module.kv(x).view(batch, length, 2, module.heads, width // module.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights.append(_softmax(q, k))
        pooled = module.proj((weights[-1] @ v).reshape(batch, width))
        return pooled + module.mlp(module.norm(pooled))

    handles = [m.register_forward_hook(self_attention) for m in tower.modules() if isinstance(m, Attention)]
    handles += [m.register_forward_hook(pooling) for m in tower.modules() if isinstance(m, MAPHead)]
    try:
        yield weights
    finally:
        for handle in handles:
            handle.remove()


def _softmax(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


def relevance(model: FlexiCLIP, image: Tensor, seqhw: int, text_z: Tensor | None) -> Tensor:
    """Return the relevance of each token of one image [1, 3, H, W] at a length: [seqhw, seqhw] float32 on the CPU.

    The values are at least 0 and sum to 1. text_z: unit embedding [D] of the image's text; None: score the image's features with
    themselves, for a tower without texts.
    """
    tower = model.image_tower
    with torch.enable_grad(), recorded_attention(tower) as weights:
        image = image.detach().requires_grad_()  # a locked tower has gradients only through its input
        features = tower.pool_tokens(tower.forward_tokens(image, seqhw))  # all tokens, also those that the pool does not read
        if text_z is None:
            score = (features * features.detach()).sum()
        else:
            score = model.project_image(features) @ text_z.to(features.device)
        gradients = torch.autograd.grad(score.sum(), weights)
    maps = rolled_out([w.detach()[0] for w in weights], [g[0] for g in gradients], tower.config.pool)
    total = maps.sum()
    flat = maps / total if total > 0 else torch.full_like(maps, 1 / maps.numel())  # no token raises the score: an even map
    return flat.reshape(seqhw, seqhw).float().cpu()


def rolled_out(weights: Sequence[Tensor], gradients: Sequence[Tensor], pool: str) -> Tensor:
    """Return the relevance of each token of one image for the pooled features: [N].

    weights, gradients: [H, L, L] of each block. pool: tok reads the first token, gap the mean of all tokens; with map the last
    weights are those of the head, [H, 1, L]. The part that a token has from the residual connections alone is left out.
    """
    relevant = [(w * g).clamp(min=0).mean(0) for w, g in zip(weights, gradients, strict=True)]
    head = relevant.pop() if pool == "map" else None
    identity = torch.eye(weights[0].shape[-1], device=weights[0].device)
    rolled = identity
    for block in relevant:
        rolled = rolled + block @ rolled
    if head is not None:
        return (head @ rolled)[0]
    return rolled[0, 1:] if pool == "tok" else (rolled - identity).mean(0)
