"""Attention relevance over lengths: which part of an image its score depends on, and whether the lengths agree about it.

The rule is that of Chefer et al. for self-attention (arXiv 2103.15679, eq. 5 and 6): R = I, and for each block R <- R + A' R with
A' = mean over heads of max(0, dscore/dA * A). It is the rule of their earlier arXiv 2012.09838 (eq. 13 and 14) with the attention
itself in the place of its layer-wise relevance. The score is the similarity of the image with its own text.

torch's fused attention does not return its weights. Hooks recompute the weights from q and k, and replace the output of the
module by the result of these weights, so that the score depends on them. The forward methods of the tower are not changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from flexiclip_eval.analysis import figures
from flexiclip_eval.analysis.subject import Finding, Subject, Table, plain
from flexiclip_eval.models.protocol import has_text
from torch import Tensor, nn

from flexiclip.models.attention import Attention
from flexiclip.models.clip import FlexiCLIP
from flexiclip.models.flexivit import FlexiViT
from flexiclip.models.transformer import MAPHead

COMMON = 60  # side of the grid, in cells, on which maps of different lengths are compared: a multiple of most lengths


def analyze(subject: Subject) -> Finding:
    """Compute the relevance maps of the first images of the sample at every length."""
    lengths, maps, sample = subject.lengths, subject.options.maps, subject.sample
    texts = [text if has_text(subject.loaded) else None for text in sample.texts[:maps]]
    asked = [None if text is None else subject.encoding.texts([text])[0] for text in texts]
    images = subject.batches(1, maps)
    heats = [[relevance(subject.model, x, length, z) for length in lengths] for x, z in zip(images, asked, strict=True)]
    focus = [_mean([half_mass(heat[i]) for heat in heats]) for i in range(len(lengths))]
    agree = [[_mean([agreement(h[i], h[j]) for h in heats]) for j in range(len(lengths))] for i in range(len(lengths))]
    picture = figures.attention(sample.images[:maps], texts, heats, lengths)
    return Finding(
        title="Attention relevance over lengths",
        method="Relevance of each token to the similarity of the image with its own text, by attention and its gradients (Chefer "
        "et al., arXiv 2103.15679; the rule of arXiv 2012.09838 without LRP). A map sums to 1.",
        sentence=f"Half of the relevance lies on {focus[0]:.0%} of the image at seqhw {lengths[0]} and on {focus[-1]:.0%} at "
        f"{lengths[-1]}; the maps of these two correlate by {agree[0][-1]:.2f}, over {len(heats)} images.",
        numbers={
            "lengths": list(lengths),
            "half_of_the_relevance": focus,
            "correlation": agree,
            "images": [
                {"text": text, "maps": {str(n): plain(heat, 7) for n, heat in zip(lengths, each, strict=True)}}
                for text, each in zip(texts, heats, strict=True)
            ],
        },
        table=Table(
            ("seqhw", "half of the relevance on", *(f"correlation with {length}" for length in lengths)),
            [(str(length), f"{focus[i]:.1%}", *(f"{value:.2f}" for value in agree[i])) for i, length in enumerate(lengths)],
        ),
        figures={"attention": (picture, "Brighter: the score rests on this token. Each map has its own scale.")},
    )


def half_mass(heat: Tensor) -> float:
    """Return the share of the image that holds half of the relevance, in whole tokens.

    It is 0.5 for an even map and small for a focused one.
    """
    ranked = heat.flatten().sort(descending=True).values.double()
    return (int((ranked.cumsum(0) < ranked.sum() / 2 - 1e-9).sum()) + 1) / ranked.numel()


def agreement(one: Tensor, other: Tensor) -> float:
    """Return the Pearson correlation of two maps over the area of the image, in -1..1. It is 0 if one of them is even."""
    a, b = (F.interpolate(heat[None, None], size=(COMMON, COMMON), mode="area").flatten().double() for heat in (one, other))
    a, b = a - a.mean(), b - b.mean()
    scale = a.norm() * b.norm()
    return float(a @ b / scale) if scale > 1e-12 else 0.0


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 6)


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

    with ExitStack() as hooks:
        for module in tower.modules():
            if isinstance(module, (Attention, MAPHead)):
                hooks.enter_context(module.register_forward_hook(self_attention if isinstance(module, Attention) else pooling))
        yield weights


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
