"""Minibatch CKA between layers and lengths: do two layers see the same similarities between images?

This is the minibatch CKA of Nguyen et al. (arXiv 2010.15327): centered kernel alignment (Kornblith et al., arXiv 1905.00414) with
a linear kernel, from the unbiased HSIC of Song et al. (JMLR 13, 2012) summed over minibatches. Its expectation does not depend on
the size of the batch, and no Gram matrix of the whole sample is in memory. Layers of different widths and numbers of tokens can
be compared, because CKA compares B x B similarities between images.

Hooks read the outputs of the layers while the tower runs unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import torch
from flexiclip_eval.analysis import figures
from flexiclip_eval.analysis.subject import Finding, Subject, Table
from torch import Tensor, nn

from flexiclip.errors import UserError
from flexiclip.models.flexivit import FlexiViT
from flexiclip.models.locks import blocks_of

Visit = Callable[[int, Tensor], None]
"""(number of the layer, its output [B, L, D], pooled features [B, D])."""


def layer_names(tower: FlexiViT) -> list[str]:
    """Return the names of the layers: the patch embedding with its positions, each block, and the pooled features."""
    return ["stem", *(f"block {i + 1}" for i in range(len(blocks_of(tower)))), "pooled"]


def visit_layers(tower: FlexiViT, images: Tensor, seqhw: int, visit: Visit) -> None:
    """Call `visit` with the output of each layer for images [B, 3, H, W], in the order of layer_names.

    A class token is left out of the layers before the pooled features, because those are compared as maps of the image.
    """
    skip = int(tower.cls is not None)
    blocks = blocks_of(tower)

    def enter(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        visit(0, args[0][:, skip:])

    def leave(number: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda module, args, output: visit(number, output[:, skip:])

    handles = [blocks[0].register_forward_pre_hook(enter)]
    handles += [block.register_forward_hook(leave(i + 1)) for i, block in enumerate(blocks)]
    try:
        tokens = tower.forward_tokens(images, seqhw)
    finally:
        for handle in handles:
            handle.remove()
    visit(len(blocks) + 1, tower.pool_tokens(tokens))


SMALLEST = 4  # images of a minibatch: the unbiased estimate divides by n (n - 3)


def gram(features: Tensor) -> Tensor:
    """Return the linear-kernel Gram matrix of features [B, ...]: [B, B] float64.

    The mean over the batch is subtracted first. This does not change the HSIC. Without it, float32 would lose the differences
    between images.
    """
    rows = features.flatten(1).float()
    rows = rows - rows.mean(0)
    return (rows @ rows.T).double()


def hsic(grams: Tensor) -> Tensor:
    """Return the unbiased HSIC of every pair of Gram matrices: [P, B, B] -> [P, P] float64. B is at least SMALLEST."""
    n = grams.shape[-1]
    off = grams.double() * (1 - torch.eye(n, dtype=torch.float64, device=grams.device))
    flat, rows = off.flatten(1), off.sum(2)
    total = rows.sum(1)
    together = flat @ flat.T + total[:, None] * total / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows @ rows.T
    return together / (n * (n - 3))


def alignment(summed: Tensor) -> Tensor:
    """Return the CKA from HSICs that are summed over the minibatches: [P, P] -> [P, P], with 1 on the diagonal.

    The row and column of a layer that is equal for all images are NaN.
    """
    own = summed.diagonal()
    own = torch.where(own > 0, own, torch.nan)
    return summed / (own[:, None] * own).sqrt()


def layer_cka(subject: Subject) -> Tensor:
    """Return the CKA of every (length, layer) with every other: [P, P] float64.

    P = lengths x layers, with the layers of one length next to each other.
    """
    count = len(layer_names(subject.tower))
    size = len(subject.lengths) * count
    summed = torch.zeros(size, size, dtype=torch.float64)
    for batch in subject.batches(subject.batch_size):
        if len(batch) < SMALLEST:  # the last minibatch, if the batch size does not divide the sample
            continue
        summed += hsic(_grams(subject, batch))
    return alignment(summed)


def _grams(subject: Subject, batch: Tensor) -> Tensor:
    """Return the Gram matrix of every layer at every length: [P, B, B]. The outputs of the layers are not kept."""
    found: list[Tensor] = []
    for length in subject.lengths:
        with torch.no_grad():
            visit_layers(subject.tower, batch, length, lambda _, output: found.append(gram(output).cpu()))
    return torch.stack(found)


def analyse(subject: Subject) -> Finding:
    """Compute the CKA between all layers at all lengths. Raises UserError for fewer images than a minibatch needs."""
    images = len(subject.sample.images)
    if min(images, subject.batch_size) < SMALLEST:
        raise UserError(f"CKA needs minibatches of at least {SMALLEST} images, not {min(images, subject.batch_size)}")
    matrix = layer_cka(subject)
    names = layer_names(subject.tower)
    across = matrix.reshape(len(subject.lengths), len(names), len(subject.lengths), len(names)).diagonal(dim1=1, dim2=3)
    means = [_mean_off_diagonal(across[:, :, layer]) for layer in range(len(names))]
    ends = across[0, -1]  # the shortest length with the longest, one value per layer
    known = [(value, name) for value, name in zip(means, names, strict=True) if not math.isnan(value)]
    low, high = min(known, default=(math.nan, "none")), max(known, default=(math.nan, "none"))
    shortest, longest = subject.lengths[0], subject.lengths[-1]
    return Finding(
        title="Layers across lengths (CKA)",
        method="Minibatch CKA (arXiv 2010.15327) with a linear kernel between the outputs of all layers at all lengths, over "
        f"{images} images in minibatches of {min(images, subject.batch_size)}. 1: the same similarities between images.",
        sentence=f"The same layer at two lengths: mean CKA from {low[0]:.2f} ({low[1]}) to {high[0]:.2f} ({high[1]}); pooled "
        f"features of seqhw {shortest} and {longest}: {float(ends[-1]):.2f}.",
        numbers={
            "layers": names,
            "lengths": list(subject.lengths),
            "images": images,
            "same_layer_mean": [_plain(value) for value in means],
            "matrix": [[_plain(value) for value in row] for row in matrix.tolist()],
            "order": [[length, name] for length, name in product(subject.lengths, names)],
        },
        table=Table(
            ("layer", "mean over pairs of lengths", f"seqhw {shortest} with {longest}"),
            [(name, _show(mean), _show(float(end))) for name, mean, end in zip(names, means, ends, strict=True)],
        ),
        figures={"cka": figures.cka(matrix.numpy(), subject.lengths, names)},
        captions={
            "cka": "Left: every layer at every length with every other; each square is a pair of lengths, its layers from the "
            "stem outwards. Right: each layer at a length with the same layer at the longest."
        },
    )


def _mean_off_diagonal(square: Tensor) -> float:
    off = ~torch.eye(len(square), dtype=torch.bool)
    return float(square[off].mean())


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def _show(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
