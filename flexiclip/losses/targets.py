"""Losses against targets: cross-entropies of a classifier, and the distance of a student from its teacher.

Each loss is averaged over the global batch. In a distributed run each rank passes its own rows, and every rank gets the
loss of the whole batch with the gradients of that loss with respect to its own rows, as in contrastive.py.

The distances are Kullback-Leibler divergences KL(teacher || student) at a temperature T, and a cosine distance. The
divergences are multiplied by T^2, so that the size of their gradients does not depend on T (big_vision's
distill/distance.py; Hinton et al., arXiv 1503.02531).

Shapes: b local rows, N global rows, C classes, D joint space.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from flexiclip.distributed import all_rows, mean_over_ranks, reduce_rows, sum_over_ranks
from flexiclip.losses.contrastive import CPU_TILE, GPU_TILE


def softmax_xent(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of -sum_c targets log softmax(logits), 0-D.

    `logits`, `targets`: [b, C]; the targets are the shares of the classes.
    """
    return mean_over_ranks(F.cross_entropy(logits, targets, reduction="none"))


def sigmoid_xent(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of the binary cross-entropies, summed over the classes, 0-D (big_vision's sigmoid_xent).

    Each class is a decision of its own. `logits`, `targets`: [b, C], as in softmax_xent.
    """
    return mean_over_ranks(F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1))


CROSS_ENTROPIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"softmax": softmax_xent, "sigmoid": sigmoid_xent}


def kl_rows(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)) of each row, [b], 0 or more apart from rounding.

    `student`, `teacher`: logits [b, C].
    """
    ours, theirs = ((logits / temperature).log_softmax(-1) for logits in (student, teacher))
    return temperature**2 * F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)


def classifier_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the mean of kl_rows over the global batch, 0-D. This is function matching of classifiers (arXiv 2106.05237)."""
    return mean_over_ranks(kl_rows(student, teacher, temperature))


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean of 1 - cosine over the global batch, 0-D. `student`, `teacher`: unit rows [b, D]."""
    return mean_over_ranks(1 - (student * teacher).sum(-1))


def similarity_kl(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    logit_scale: Tensor,
    teacher_scale: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """Return how far the student's comparisons of an image's captions, and a caption's images, are from the teacher's.

    Each row of the N x N similarities exp(logit_scale) zimg @ ztxt^T, and each column, is a distribution. The result is
    kl_rows averaged over all rows and columns, 0-D. It can be differentiated once, in the student's rows and scale. The
    similarities are computed for some rows at a time, and the gradients are computed in forward.

    `student`, `teacher`: (zimg, ztxt), each [b, D], the unit rows of this rank; the D of the two models may differ.
    `logit_scale`, `teacher_scale`: [1] or 0-D, logarithms.
    """
    return _SimilarityKL.apply(*student, logit_scale, *teacher, teacher_scale, temperature)


class _SimilarityKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        zimg: Tensor,
        ztxt: Tensor,
        logit_scale: Tensor,
        teacher_img: Tensor,
        teacher_txt: Tensor,
        teacher_scale: Tensor,
        temperature: float,
    ) -> Tensor:
        dtype = torch.promote_types(zimg.dtype, torch.float32)
        with torch.autocast(zimg.device.type, enabled=False):
            scales = [(s.detach().to(dtype).exp() / temperature).reshape(()) for s in (logit_scale, teacher_scale)]
            own, theirs = ([z.detach().to(dtype) for z in pair] for pair in ((zimg, ztxt), (teacher_img, teacher_txt)))
            everyones, teachers = [all_rows(z) for z in own], [all_rows(z) for z in theirs]
            gradients = [torch.zeros_like(z) for z in own]
            shares = [torch.zeros_like(z) for z in everyones]  # this rank's shares of the gradients of all ranks' rows
            loss = own[0].new_zeros(())
            for half, other in ((0, 1), (1, 0)):
                for rows in _slices(len(own[half]), len(everyones[other]), zimg.device):
                    ours = (scales[0] * own[half][rows] @ everyones[other].T).log_softmax(1)
                    wanted = (scales[1] * theirs[half][rows] @ teachers[other].T).log_softmax(1)
                    loss += F.kl_div(ours, wanted, reduction="sum", log_target=True)
                    by_logits = ours.exp_().sub_(wanted.exp_())
                    gradients[half][rows] = by_logits @ everyones[other]
                    shares[other].addmm_(by_logits.T, own[half][rows])
            # The gradient of a scale stored as a log is the sum of dlogits_ij logits_ij over both directions.
            dscale = scales[0] * sum((z * d).sum() for z, d in zip(own, gradients, strict=True))
            weight = temperature**2 / (2 * len(everyones[0]))
            scalars = weight * sum_over_ranks(torch.stack([loss, dscale]))
            for gradient, share in zip(gradients, shares, strict=True):
                gradient.add_(reduce_rows(share, len(gradient))).mul_(weight * scales[0])
        ctx.scale_shape = logit_scale.shape
        ctx.save_for_backward(*gradients, scalars)
        return scalars[0].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dzimg, dztxt, scalars = ctx.saved_tensors
        return grad * dzimg, grad * dztxt, (grad * scalars[1]).reshape(ctx.scale_shape), None, None, None, None


def _slices(local: int, total: int, device: torch.device) -> list[slice]:
    """Split the local rows so that the similarities of a slice take as much memory as a tile of the contrastive losses."""
    size = max(1, (CPU_TILE if device.type == "cpu" else GPU_TILE) // total)
    return [slice(start, min(start + size, local)) for start in range(0, local, size)]
