"""Token representations over lengths: does the token at a place represent the same thing at every length (FlexiViT, appendix)?

The analysis computes the cosine of the representation of a seed token, after the last norm, with every token at every length. The
pictures show the maps of one seed. The numbers take every token as the seed: its cosine with the token at its place at another
length, and with all other tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from flexiclip_eval.analysis import figures
from flexiclip_eval.analysis.subject import Finding, Subject, Table, plain
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


def analyze(subject: Subject) -> Finding:
    """Compare every pair of lengths over the sample, and compute the seed's maps of the first images."""
    lengths, images = subject.lengths, subject.sample.images
    total = torch.zeros(len(lengths), len(lengths), 2, dtype=torch.float64)  # the means of `alike` for each pair of lengths
    for batch in subject.batches(subject.options.batch_size):
        tokens = [unit_tokens(subject, batch, length) for length in lengths]
        total += len(batch) * torch.tensor([[alike(one, other) for other in tokens] for one in tokens], dtype=torch.float64)
    here, elsewhere = (total / len(images)).unbind(-1)
    apart = ~torch.eye(len(lengths), dtype=torch.bool)
    seed_at = lengths[len(lengths) // 2]
    maps = [_seed_maps(subject, image, seed_at) for image in subject.batches(1, subject.options.maps)]
    picture = figures.tokens(images[: len(maps)], maps, lengths, seed_at, SEED)
    caption = f"Cosine of the token in the middle at seqhw {seed_at} (cross) with every token at every length."
    return Finding(
        title="Tokens across lengths",
        method="Cosine of a token's representation after the last norm with tokens at other lengths: the one that holds its "
        f"centre, and all others. {len(images)} images.",
        sentence=f"Tokens at the same place at two lengths have a mean cosine of {here[apart].mean():.2f}, tokens elsewhere "
        f"{elsewhere[apart].mean():.2f}.",
        numbers={
            "lengths": list(lengths),
            "same_place": plain(here),
            "elsewhere": plain(elsewhere),
            "seed": {"length": seed_at, "place": list(SEED)},
            "seed_maps": [{str(n): plain(m) for n, m in zip(lengths, each, strict=True)} for each in maps],
        },
        table=Table(
            ("seqhw", *(f"same place at {length}" for length in lengths), "elsewhere, mean"),
            [
                (str(length), *(f"{v:.2f}" for v in here[i].tolist()), f"{elsewhere[i].mean():.2f}")
                for i, length in enumerate(lengths)
            ],
        ),
        figures={"tokens": (picture, caption)},
    )


def _seed_maps(subject: Subject, image: Tensor, seed_at: int) -> list[Tensor]:
    tokens = {length: unit_tokens(subject, image, length)[0] for length in subject.lengths}
    return [seed_map(tokens[seed_at], tokens[length], SEED).cpu() for length in subject.lengths]
