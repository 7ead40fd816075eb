"""Attention relevance over lengths: which part of an image its score depends on, and whether the lengths agree about it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from flexiclip_eval.analysis import figures
from flexiclip_eval.analysis.relevance import relevance
from flexiclip_eval.analysis.subject import Finding, Subject, Table
from flexiclip_eval.embeddings.embed import embed_texts
from flexiclip_eval.models.protocol import has_text
from torch import Tensor

COMMON = 60  # side of the grid, in cells, on which maps of different lengths are compared: a multiple of most lengths


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


def analyse(subject: Subject) -> Finding:
    """Compute the relevance maps of the first images of the sample at every length."""
    texts = subject.sample.texts[: subject.maps]
    encode = partial(embed_texts, subject.loaded, batch_size=subject.batch_size, device=subject.device)
    asked = [encode([text])[0] if text is not None and has_text(subject.loaded) else None for text in texts]
    images = subject.batches(1, subject.maps)
    heats = [[relevance(subject.model, x, length, z) for length in subject.lengths] for x, z in zip(images, asked, strict=True)]
    focus = [_mean([half_mass(heat[i]) for heat in heats]) for i in range(len(subject.lengths))]
    agree = [[_mean([agreement(h[i], h[j]) for h in heats]) for j in range(len(focus))] for i in range(len(focus))]
    shown = [text if z is not None else None for text, z in zip(texts, asked, strict=True)]
    shortest, longest = subject.lengths[0], subject.lengths[-1]
    return Finding(
        title="Attention relevance over lengths",
        method="Relevance of each token to the similarity of the image with its own text, by attention and its gradients (Chefer "
        "et al., arXiv 2103.15679; the rule of arXiv 2012.09838 without LRP). A map sums to 1.",
        sentence=f"Half of the relevance lies on {focus[0]:.0%} of the image at seqhw {shortest} and on {focus[-1]:.0%} at "
        f"{longest}; the maps of these two correlate by {agree[0][-1]:.2f}, over {len(heats)} images.",
        numbers={
            "lengths": list(subject.lengths),
            "half_of_the_relevance": focus,
            "correlation": agree,
            "images": [
                {"text": text, "maps": {str(n): _rounded(heat) for n, heat in zip(subject.lengths, each, strict=True)}}
                for text, each in zip(shown, heats, strict=True)
            ],
        },
        table=Table(
            ("seqhw", "half of the relevance on", *(f"correlation with {length}" for length in subject.lengths)),
            [
                (str(length), f"{focus[i]:.1%}", *(f"{value:.2f}" for value in agree[i]))
                for i, length in enumerate(subject.lengths)
            ],
        ),
        figures={"attention": figures.attention(subject.sample.images[: subject.maps], shown, heats, subject.lengths)},
        captions={"attention": "Brighter: the score rests on this token. Each map has its own scale."},
    )


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 6)


def _rounded(heat: Tensor) -> list[list[float]]:
    return [[round(value, 7) for value in row] for row in heat.tolist()]
