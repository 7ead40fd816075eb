"""Minibatch CKA between layers and lengths: do two layers see the same similarities between images?

This is the minibatch CKA of Nguyen et al. (arXiv 2010.15327): centered kernel alignment (Kornblith et al., arXiv 1905.00414) with
a linear kernel, from the unbiased HSIC of Song et al. (JMLR 13, 2012) summed over minibatches. Its expectation does not depend on
the size of the batch, and no Gram matrix of the whole sample is in memory. Layers of different widths and numbers of tokens can
be compared, because CKA compares B x B similarities between images.

Hooks read the outputs of the layers while the tower runs unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from flexiclip_eval.analysis.subject import Finding, Subject, Table, plain
from flexiclip_eval.report.drawing import curve, grid, legend
from numpy.typing import NDArray
from torch import Tensor, nn

from flexiclip.errors import UserError
from flexiclip.models.flexivit import FlexiViT
from flexiclip.models.locks import blocks_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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

    with ExitStack() as hooks:
        hooks.enter_context(blocks[0].register_forward_pre_hook(enter))
        for i, block in enumerate(blocks):
            hooks.enter_context(block.register_forward_hook(leave(i + 1)))
        tokens = tower.forward_tokens(images, seqhw)
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
    # the last minibatch may be too small, if the batch size does not divide the sample
    batches = [batch for batch in subject.batches(subject.options.batch_size) if len(batch) >= SMALLEST]
    return alignment(sum((hsic(_grams(subject, batch)) for batch in batches), torch.zeros((), dtype=torch.float64)))


def _grams(subject: Subject, batch: Tensor) -> Tensor:
    """Return the Gram matrix of every layer at every length: [P, B, B]. The outputs of the layers are not kept."""
    found: list[Tensor] = []
    for length in subject.lengths:
        with torch.no_grad():
            visit_layers(subject.tower, batch, length, lambda _, output: found.append(gram(output).cpu()))
    return torch.stack(found)


def analyze(subject: Subject) -> Finding:
    """Compute the CKA between all layers at all lengths. Raises UserError for fewer images than a minibatch needs."""
    lengths, images = subject.lengths, len(subject.sample.images)
    minibatch = min(images, subject.options.batch_size)
    if minibatch < SMALLEST:
        raise UserError(f"CKA needs minibatches of at least {SMALLEST} images, not {minibatch}")
    matrix = layer_cka(subject)
    names = layer_names(subject.tower)
    across = matrix.reshape(len(lengths), len(names), len(lengths), len(names)).diagonal(dim1=1, dim2=3)
    means = across[~torch.eye(len(lengths), dtype=torch.bool)].mean(0)  # over the pairs of lengths, one value per layer
    ends = across[0, -1]  # the shortest length with the longest, one value per layer
    known = [(value, name) for value, name in zip(means.tolist(), names, strict=True) if not math.isnan(value)]
    low, high = min(known, default=(math.nan, "none")), max(known, default=(math.nan, "none"))
    return Finding(
        title="Layers across lengths (CKA)",
        method="Minibatch CKA (arXiv 2010.15327) with a linear kernel between the outputs of all layers at all lengths, over "
        f"{images} images in minibatches of {minibatch}. 1: the same similarities between images.",
        sentence=f"The same layer at two lengths: mean CKA from {low[0]:.2f} ({low[1]}) to {high[0]:.2f} ({high[1]}); pooled "
        f"features of seqhw {lengths[0]} and {lengths[-1]}: {ends[-1]:.2f}.",
        numbers={
            "layers": names,
            "lengths": list(lengths),
            "images": images,
            "same_layer_mean": plain([means])[0],
            "matrix": plain(matrix),
            "order": [[length, name] for length, name in product(lengths, names)],
        },
        table=Table(
            ("layer", "mean over pairs of lengths", f"seqhw {lengths[0]} with {lengths[-1]}"),
            [(name, *map(_show, both)) for name, *both in zip(names, means.tolist(), ends.tolist(), strict=True)],
        ),
        figures={
            "cka": (
                _draw(matrix.numpy(), lengths, names),
                "Left: every layer at every length with every other; each square is a pair of lengths, its layers from the stem "
                "outwards. Right: each layer at a length with the same layer at the longest.",
            )
        },
    )


def _show(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _draw(matrix: NDArray[np.float64], lengths: Sequence[int], layers: Sequence[str]) -> Figure:
    """Draw the CKA. matrix: [P, P], P = lengths x layers, in -1..1; NaN is left white."""
    figure, ((left, right),) = grid(1, 2, (13.0, 5.2))
    count = len(layers)
    shown = left.imshow(matrix, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    middles = [(at + 0.5) * count - 0.5 for at in range(len(lengths))]
    left.set_xticks(middles, map(str, lengths))
    left.set_yticks(middles, map(str, lengths))
    for at in range(1, len(lengths)):
        left.axhline(at * count - 0.5, color="white", linewidth=0.8)
        left.axvline(at * count - 0.5, color="white", linewidth=0.8)
    left.set_xlabel("seqhw; inside each, layers from the stem outwards")
    left.set_ylabel("seqhw")
    left.set_title("CKA of all layers and lengths", loc="left", fontsize=10)
    figure.colorbar(shown, ax=left, shrink=0.85)
    with_longest = matrix[:, -count:].reshape(len(lengths), count, count).diagonal(axis1=1, axis2=2)
    for at, length in enumerate(lengths[:-1]):
        curve(right, enumerate(with_longest[at]), at, f"seqhw {length}", markersize=4.5)
    right.set_xticks(range(count), layers, rotation=60, ha="right", fontsize=8)
    right.set_ylim(top=1.03)
    right.set_title(f"the same layer at seqhw {lengths[-1]}", loc="left", fontsize=10)
    right.set_ylabel("CKA")
    right.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    legend(right)
    return figure
