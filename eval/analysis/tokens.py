"""Token representations over lengths: does the token at a place represent the same thing at every length (FlexiViT, appendix)?

The analysis computes the cosine of the representation of a seed token, after the last norm, with every token at every length. The
pictures show the maps of one seed. The numbers take every token as the seed: its cosine with the token at its place at another
length, and with all other tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from flexiclip_eval.analysis import figures
from flexiclip_eval.analysis.subject import Finding, Subject, Table
from torch import Tensor

SEED = (0.5, 0.5)  # (down, right), as shares of the image's sides


def unit_tokens(subject: Subject, images: Tensor, length: int) -> Tensor:
    """Return unit rows of the tokens after the last norm, without a class token: [B, length, length, D] float32.

    images: normalised, [B, 3, H, W].
    """
    with torch.no_grad():
        tokens = subject.tower.forward_tokens(images, length)[:, int(subject.tower.cls is not None) :]
    return F.normalize(tokens.float(), dim=-1).unflatten(1, (length, length))


def cell(place: tuple[float, float], length: int) -> tuple[int, int]:
    """Return (row, column) of the token whose patch holds a place, given as (down, right) in 0..1 of the sides."""
    down, right = (min(int(part * length + 1e-9), length - 1) for part in place)
    return down, right


def seed_map(tokens: Tensor, other: Tensor, place: tuple[float, float]) -> Tensor:
    """Return the cosine of the token at a place with every token of another length: [g, g, D], [h, h, D] unit rows -> [h, h]."""
    return other @ tokens[cell(place, len(tokens))]


def alike(tokens: Tensor, other: Tensor) -> tuple[float, float]:
    """Return two mean cosines of the tokens: with the token of `other` that holds their centre, and with all others of `other`.

    tokens [B, g, g, D], other [B, h, h, D]: unit rows of the same images. If both have the same length, the first mean is 1. If h
    is 1 there are no others, and the second mean is 0.
    """
    batch, g = tokens.shape[:2]
    h = other.shape[1]
    at = torch.tensor([cell(((i + 0.5) / g, 0.5), h)[0] for i in range(g)], device=tokens.device)
    same = (tokens * other[:, at][:, :, at]).sum(-1).double().sum()
    everything = (tokens.sum((1, 2)).double() * other.sum((1, 2)).double()).sum()
    pairs = batch * g * g
    rest = pairs * (h * h - 1)
    return float(same / pairs), float((everything - same) / rest) if rest else 0.0


def analyse(subject: Subject) -> Finding:
    """Compare every pair of lengths over the sample, and compute the seed's maps of the first images."""
    count = len(subject.lengths)
    here, elsewhere = torch.zeros(count, count).double(), torch.zeros(count, count).double()
    for batch in subject.batches(subject.batch_size):
        tokens = [unit_tokens(subject, batch, length) for length in subject.lengths]
        for i in range(count):
            for j in range(count):
                same, other = alike(tokens[i], tokens[j])
                here[i, j] += same * len(batch)
                elsewhere[i, j] += other * len(batch)
    here, elsewhere = here / len(subject.sample.images), elsewhere / len(subject.sample.images)
    seed_at = subject.lengths[count // 2]
    maps = [_seed_maps(subject, image, seed_at) for image in subject.batches(1, subject.maps)]
    apart = [(i, j) for i in range(count) for j in range(count) if i != j]
    mean_here, mean_elsewhere = (sum(float(m[i, j]) for i, j in apart) / len(apart) for m in (here, elsewhere))
    return Finding(
        title="Tokens across lengths",
        method="Cosine of a token's representation after the last norm with tokens at other lengths: the one that holds its "
        f"centre, and all others. {len(subject.sample.images)} images.",
        sentence=f"Tokens at the same place at two lengths have a mean cosine of {mean_here:.2f}, tokens elsewhere "
        f"{mean_elsewhere:.2f}.",
        numbers={
            "lengths": list(subject.lengths),
            "same_place": _rounded(here),
            "elsewhere": _rounded(elsewhere),
            "seed": {"length": seed_at, "place": list(SEED)},
            "seed_maps": [{str(n): _rounded(m) for n, m in zip(subject.lengths, each, strict=True)} for each in maps],
        },
        table=Table(
            ("seqhw", *(f"same place at {length}" for length in subject.lengths), "elsewhere, mean"),
            [
                (str(length), *(f"{float(v):.2f}" for v in here[i]), f"{float(elsewhere[i].mean()):.2f}")
                for i, length in enumerate(subject.lengths)
            ],
        ),
        figures={"tokens": figures.tokens(subject.sample.images[: subject.maps], maps, subject.lengths, seed_at, SEED)},
        captions={"tokens": f"Cosine of the token in the middle at seqhw {seed_at} (cross) with every token at every length."},
    )


def _seed_maps(subject: Subject, image: Tensor, seed_at: int) -> list[Tensor]:
    tokens = {length: unit_tokens(subject, image, length)[0] for length in subject.lengths}
    return [seed_map(tokens[seed_at], tokens[length], SEED).cpu() for length in subject.lengths]


def _rounded(rows: Tensor | Sequence[Tensor]) -> list[list[float]]:
    return [[round(float(value), 6) for value in row] for row in rows]
