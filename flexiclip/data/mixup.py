"""Mixup (arXiv 1710.09412): each image becomes a mixture with the one before it in the global batch, and its classes likewise.

How much of itself an image keeps is drawn once a step from Beta(p, p), and is the larger part, as in big_vision's get_mixup. It
follows from (seed, step), and the partner from the position: so the mixture does not depend on the number of ranks. Mixed pixels
are rounded to whole grey levels, as float32 they would take four times the bytes; a teacher sees what its student sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flexiclip.data.draws import Draw, stream


@dataclass(frozen=True)
class Mixup:
    """p: of Beta(p, p), above 0; small values leave most steps nearly as they were."""

    p: float
    seed: int

    def kept(self, step: int) -> float:
        """What an image keeps of itself in a step, 0.5 to 1."""
        drawn = stream(self.seed, Draw.MIXUP, step).beta(self.p)
        return max(drawn, 1 - drawn)


def mix(images: torch.Tensor, before: torch.Tensor, kept: float) -> None:
    """In place: kept * image + (1 - kept) * the one before it, rounded. uint8 [b, 3, H, W]; before [3, H, W]: the first's."""
    for i in reversed(range(len(images))):  # the last first: the one before is then still what it was
        images[i] = (kept * images[i].float()).add_((images[i - 1] if i else before).float(), alpha=1 - kept).round_()
