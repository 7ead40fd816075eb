"""Contrastive losses over the global batch: softmax (CLIP, arXiv 2103.00020) and sigmoid (SigLIP, arXiv 2303.15343).

In a distributed run each rank passes its own rows, and every rank gets the loss of the whole batch. The gradients are
those of that loss with respect to this rank's rows and to the scalars. A single process that holds all rows computes
the same, apart from rounding. (An engine that averages gradients over ranks must therefore multiply them by the number
of ranks; train/step.py does.)

Method: rank r holds its b image rows and all N gathered captions. It visits the b x N block of logits tile by tile. The
normalizers of its images and dzimg follow directly, those of the captions after an exchange of N partial sums, and
dztxt after one reduction. Every tile overwrites the one before, so the logits take the memory of one tile whatever the
batch size, and stay in the cache of a CPU. The second visit recomputes them (as in Inf-CL, arXiv 2410.17243, and
DisCo-CLIP, arXiv 2304.08480). Gradients are computed in forward, where the embeddings are available.
`scripts/bench/subjects/losses.py` measures time and memory.

Shapes: b local rows, N global rows, R x T a tile, D joint space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from flexiclip.distributed import all_rows, rank, reduce_rows, sum_over_ranks, world

CPU_TILE, GPU_TILE = 1 << 20, 1 << 24
"""The number of logits in a tile unless `tile` is given.

On a CPU a tile has 4 MB in float32, which fits the cache. A GPU is faster with fewer and larger products (64 MB).
"""


def softmax_loss(
    zimg: Tensor, ztxt: Tensor, logit_scale: Tensor, *, caption_ids: Tensor | None = None, tile: int | None = None
) -> Tensor:
    """InfoNCE in both directions, averaged: the loss of CLIP, LiT and big_vision's bidirectional_contrastive_loss.

    `zimg`, `ztxt`: [b, D], the unit rows of this rank; row i of one belongs to row i of the other, and every rank has
    the same b.

    `logit_scale`: [1] or 0-D, the logarithm of the scale.

    `caption_ids`: int64 [b]; rows with equal ids are not each other's negatives.

    `tile`: the number of rows and of columns that are visited at once.

    Returns the 0-D loss over the global batch, in float32 or wider. It can be differentiated once, in zimg, ztxt and
    logit_scale. Raises ValueError for other shapes.
    """
    return _GlobalLoss.apply(_softmax, zimg, ztxt, logit_scale, None, caption_ids, tile)


def sigmoid_loss(
    zimg: Tensor,
    ztxt: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    caption_ids: Tensor | None = None,
    tile: int | None = None,
) -> Tensor:
    """SigLIP's loss: every pair is a binary decision.

    The loss is summed over the captions of an image and averaged over the images.

    `logit_bias`: [1] or 0-D.

    `caption_ids`: int64 [b]; pairs off the diagonal with equal ids are left out.

    All else is as in `softmax_loss`, and the loss can be differentiated in logit_bias too.
    """
    return _GlobalLoss.apply(_sigmoid, zimg, ztxt, logit_scale, logit_bias, caption_ids, tile)


LOSSES: dict[str, Callable[..., Tensor]] = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}


@dataclass
class _Tile:
    """A tile of the logits and its place: rows are this rank's images, columns are all captions."""

    rows: slice
    columns: slice
    logits: Tensor  # [R, T], overwritten by the next tile; masked pairs are -inf
    positives: Tensor  # a view of the logits of the true pairs in the tile
    spare: Tensor  # [R, T], scratch memory

    def logsumexp(self, dim: int) -> Tensor:
        """Return the logsumexp over the rows (0) or the columns (1) of the tile; -inf where all entries are masked.

        torch's own logsumexp would allocate a second tile.
        """
        highest = self.logits.amax(dim, keepdim=True).clamp_(min=torch.finfo(self.logits.dtype).min)
        torch.sub(self.logits, highest, out=self.spare).exp_()
        return self.spare.sum(dim).log_().add_(highest.squeeze(dim))


@dataclass
class _Block:
    """This rank's images against all captions: logits = scale * zimg @ ztxt^T + bias, visited in tiles."""

    zimg: Tensor  # [b, D]
    ztxt: Tensor  # [N, D]
    scale: Tensor  # 0-D, not a log
    bias: Tensor | None
    ids: tuple[Tensor, Tensor] | None  # [b] and [N]
    first: int  # global index of the first local row
    tile: tuple[int, int]

    def tiles(self) -> Iterator[_Tile]:
        """Yield every tile once; the columns change fastest."""
        local, total = len(self.zimg), len(self.ztxt)
        buffers = self.zimg.new_empty(2, min(self.tile[0], local) * min(self.tile[1], total))
        for top in range(0, local, self.tile[0]):
            for left in range(0, total, self.tile[1]):
                rows, columns = slice(top, min(top + self.tile[0], local)), slice(left, min(left + self.tile[1], total))
                shape = rows.stop - top, columns.stop - left
                logits, spare = (buffer[: shape[0] * shape[1]].view(shape) for buffer in buffers)
                torch.mm(self.zimg[rows], self.ztxt[columns].T, out=logits).mul_(self.scale)
                if self.bias is not None:
                    logits += self.bias
                positives = self._positives(logits, rows, columns)
                if self.ids is not None:
                    kept = positives.clone()
                    logits.masked_fill_(self.ids[0][rows, None] == self.ids[1][None, columns], -torch.inf)
                    positives.copy_(kept)
                yield _Tile(rows, columns, logits, positives, spare)

    def _positives(self, logits: Tensor, rows: slice, columns: slice) -> Tensor:
        """Return the view of a tile's true pairs: local row i belongs to column first + i."""
        low, high = max(columns.start, self.first + rows.start), min(columns.stop, self.first + rows.stop)
        if low >= high:
            return logits[:0, :0].diagonal()
        top, left = low - self.first - rows.start, low - columns.start
        return logits[top : top + high - low, left : left + high - low].diagonal()

    def gradients(self, tiles: Iterator[_Tile]) -> tuple[Tensor, Tensor]:
        """Return dzimg [b, D] and this rank's share of dztxt [N, D], from tiles whose logits have become dloss/dlogits."""
        dzimg, dztxt = torch.zeros_like(self.zimg), torch.zeros_like(self.ztxt)
        for tile in tiles:
            dzimg[tile.rows].addmm_(tile.logits, self.ztxt[tile.columns])
            dztxt[tile.columns].addmm_(tile.logits.T, self.zimg[tile.rows])
        return dzimg.mul_(self.scale), dztxt.mul_(self.scale)


def _tile_shape(local: int, device: torch.device, tile: int | None) -> tuple[int, int]:
    """Return (rows, columns) of a tile: square, which needs the fewest reads, or wider if a rank has few rows."""
    if tile is not None:
        return tile, tile
    elements = CPU_TILE if device.type == "cpu" else GPU_TILE
    rows = min(max(1, local), math.isqrt(elements))
    return rows, elements // rows


Result = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
"""This rank's share of the loss, dzimg [b, D], its share of dztxt [N, D], and its share of dlogit_bias."""


def _softmax(block: _Block, needs_grad: bool) -> Result:
    local, total = len(block.zimg), len(block.ztxt)
    image_norm = block.zimg.new_full((local,), -torch.inf)
    text_norm = block.zimg.new_full((total,), -torch.inf)
    positives_sum = block.zimg.new_zeros(())
    for tile in block.tiles():
        for norm, part, dim in ((image_norm, tile.rows, 1), (text_norm, tile.columns, 0)):
            torch.logaddexp(norm[part], tile.logsumexp(dim), out=norm[part])
        positives_sum += tile.positives.sum()
    text_norm = _logsumexp_over_ranks(text_norm)
    own = text_norm[block.first : block.first + local]
    loss = (image_norm.sum() + own.sum() - 2 * positives_sum) / (2 * total)
    if not needs_grad:
        return loss, None, None, None

    def dlogits() -> Iterator[_Tile]:
        for tile in block.tiles():
            by_text = torch.sub(tile.logits, text_norm[tile.columns], out=tile.spare).exp_()
            tile.logits.sub_(image_norm[tile.rows, None]).exp_().add_(by_text)
            tile.positives.sub_(2)
            tile.logits.div_(2 * total)
            yield tile

    return loss, *block.gradients(dlogits()), None


def _sigmoid(block: _Block, needs_grad: bool) -> Result:
    total = len(block.ztxt)
    loss, dbias = block.zimg.new_zeros(()), block.zimg.new_zeros(())

    def dlogits() -> Iterator[_Tile]:
        for tile in block.tiles():
            # Add -log sigmoid(-x) = softplus(x) for every pair. On the diagonal it is softplus(-x) = softplus(x) - x instead.
            loss.add_(F.softplus(tile.logits).sum() - tile.positives.sum())
            tile.logits.sigmoid_()
            tile.positives.sub_(1)
            dbias.add_(tile.logits.sum())
            tile.logits.div_(total)
            yield tile

    if needs_grad:
        dzimg, dztxt = block.gradients(dlogits())
        return loss / total, dzimg, dztxt, dbias / total
    for _ in dlogits():
        pass
    return loss / total, None, None, None


class _GlobalLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernel: Callable[[_Block, bool], Result],
        zimg: Tensor,
        ztxt: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None,
        caption_ids: Tensor | None,
        tile: int | None,
    ) -> Tensor:
        if zimg.shape != ztxt.shape or zimg.ndim != 2:
            raise ValueError(f"zimg and ztxt must both be [b, D], not {list(zimg.shape)} and {list(ztxt.shape)}")
        if caption_ids is not None and caption_ids.shape != zimg.shape[:1]:  # would broadcast and mask every negative
            raise ValueError(f"caption_ids must be [{len(zimg)}], not {list(caption_ids.shape)}")
        dtype = torch.promote_types(zimg.dtype, torch.float32)
        with torch.autocast(zimg.device.type, enabled=False):
            local = len(zimg)
            block = _Block(
                zimg=zimg.detach().to(dtype),
                ztxt=all_rows(ztxt.detach().to(dtype)),
                scale=logit_scale.detach().to(dtype).exp().reshape(()),
                bias=None if logit_bias is None else logit_bias.detach().to(dtype).reshape(()),
                ids=None if caption_ids is None else (caption_ids, all_rows(caption_ids)),
                first=rank() * local,
                tile=_tile_shape(local, zimg.device, tile),
            )
            loss, dzimg, dztxt, dbias = kernel(block, any(ctx.needs_input_grad))
            if dzimg is None or dztxt is None:
                return sum_over_ranks(loss)
            # The gradient of a scale stored as a log is the sum over ij of dlogits_ij * scale * <zimg_i, ztxt_j>.
            dscale = (block.zimg * dzimg).sum()
            scalars = sum_over_ranks(torch.stack([loss, dscale, dscale.new_zeros(()) if dbias is None else dbias]))
            dztxt = reduce_rows(dztxt, local)
        ctx.has_bias = logit_bias is not None
        ctx.shapes = logit_scale.shape, None if logit_bias is None else logit_bias.shape
        ctx.dtypes = zimg.dtype, ztxt.dtype, logit_scale.dtype, None if logit_bias is None else logit_bias.dtype
        ctx.save_for_backward(dzimg, dztxt, scalars)
        return scalars[0].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dzimg, dztxt, (_, dscale, dbias) = ctx.saved_tensors
        image_dtype, text_dtype, scale_dtype, bias_dtype = ctx.dtypes
        return (
            None,
            (grad * dzimg).to(image_dtype),
            (grad * dztxt).to(text_dtype),
            (grad * dscale).reshape(ctx.shapes[0]).to(scale_dtype),
            (grad * dbias).reshape(ctx.shapes[1]).to(bias_dtype) if ctx.has_bias else None,
            None,
            None,
        )


def _logsumexp_over_ranks(x: Tensor) -> Tensor:
    """Return the elementwise logsumexp of x over the ranks.

    It takes two reductions of x's size. Gathering the x of all ranks would take W times that memory.
    """
    if world() == 1:
        return x
    highest = x.clone()
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    return sum_over_ranks((x - highest).exp_()).log_().add_(highest)


def nested_loss(
    loss: Callable[..., Tensor], widths: Sequence[int], zimg: Tensor, ztxt: Tensor, *scalars: Tensor, **options: Any
) -> Tensor:
    """The mean over `widths` of `loss(zimg[:, :w], ztxt[:, :w], *scalars, **options)`, 0-D.

    This trains Matryoshka embeddings (arXiv 2205.13147), whose first columns are embeddings too. Each prefix is
    normalized to unit length, and all widths have equal weight. Like the losses themselves, the result is a function of
    the rows of the global batch, so it needs no special treatment of tiles, ranks or gradient caching.

    `zimg`, `ztxt`: [b, D], the unit rows of this rank. `widths`: each from 1 to D. `scalars`: used for every width
    alike.
    """
    return torch.stack([loss(prefix(zimg, w), prefix(ztxt, w), *scalars, **options) for w in widths]).mean()


def prefix(z: Tensor, width: int) -> Tensor:
    """Return the first `width` columns of unit rows [N, D], normalized to unit rows [N, width]."""
    return z if width == z.shape[1] else F.normalize(z[:, :width], dim=1)
