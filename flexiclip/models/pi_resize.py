"""PI-resize: the pseudo-inverse resize of patch embedding kernels, FlexiViT section 3.4 (arXiv 2212.08013).

Resizing an image patch by a linear map B and embedding it with the resized kernel shall give the embedding that the original
patch had with the original kernel. The least-squares answer is pinv(B^T) applied to the kernel. B is separable, B = Bh (x) Bw,
and so is its pseudo-inverse: two small matrices, one an axis, take the place of one of size (p*q) x (H*W), to float precision.

Position grids are resized with B itself. Both are `resize_axes` with other matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

AxisMatrix = Callable[[int, int], Tensor]
"""(old size, new size) -> [new, old] float32 on the CPU."""


@lru_cache(maxsize=512)
def _interpolation(old: int, new: int, mode: str, antialias: bool) -> Tensor:
    # From a square identity, in float32: torch's antialiased resize is wrong on images one pixel wide.
    identity = torch.eye(old, device="cpu")[None, None]  # whatever torch.device is in force: the result is cached
    return F.interpolate(identity, size=(new, old), mode=mode, align_corners=False, antialias=antialias)[0, 0]


def interpolation_matrix(old: int, new: int, mode: str = "bilinear", antialias: bool = False) -> Tensor:
    """B, [new, old] float32: `B @ x` resizes a signal of `old` samples (half-pixel centres, as tf.image and jax.image)."""
    return torch.eye(old, device="cpu") if old == new else _interpolation(old, new, mode, antialias)


@lru_cache(maxsize=512)
def pi_matrix(old: int, new: int, mode: str = "bilinear", antialias: bool = False) -> Tensor:
    """pinv(B^T), [new, old] float32: the matrix that resizes one axis of a patch embedding kernel.

    B has full rank, so the normal equations give it, B (B^T B)^-1 or (B B^T)^-1 B, in float64 as exactly as a singular value
    decomposition and in a tenth of its time.
    """
    if old == new:
        return torch.eye(old, device="cpu")
    b = _interpolation(old, new, mode, antialias).double().numpy()
    pinv = np.linalg.solve(b @ b.T, b) if new < old else np.linalg.solve(b.T @ b, b.T).T
    return torch.from_numpy(np.ascontiguousarray(pinv, np.float32))


def resize_axes(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Apply one matrix to each of the last two axes: x [..., H, W], rows [P, H], columns [Q, W] -> [..., P, Q]."""
    return (rows @ x) @ columns.T  # in this order: the second product is one large matrix product


def pi_resize(kernel: Tensor, size: int | tuple[int, int], mode: str = "bilinear", antialias: bool = False) -> Tensor:
    """Resize patch embedding kernels so that the embeddings of resized patches are preserved.

    kernel: [D, C, H, W], floating point. size: the new side, or (P, Q). mode, antialias: the image resize that is inverted,
    big_vision's by default; they are part of a checkpoint's contract. Returns [D, C, P, Q] in the kernel's dtype; the
    arithmetic is float32 (float64 for a float64 kernel) also under autocast. Differentiable. Raises ValueError for a kernel
    that is not 4-D.
    """
    if kernel.ndim != 4:
        raise ValueError(f"pi_resize: the kernel must be [D, C, H, W], not {list(kernel.shape)}")
    p, q = (size, size) if isinstance(size, int) else size
    height, width = kernel.shape[-2:]
    compute = torch.promote_types(kernel.dtype, torch.float32)
    rows = pi_matrix(height, p, mode, antialias).to(kernel.device, compute)
    columns = pi_matrix(width, q, mode, antialias).to(kernel.device, compute)
    with torch.autocast(kernel.device.type, enabled=False):
        return resize_axes(kernel.to(compute), rows, columns).to(kernel.dtype)


class AxisResize(nn.Module):
    """Resizes the last two axes from one fixed size to any other, with the matrices of the expected sizes held as buffers.

    The buffers are a few KB, not saved, and float32 whatever dtype the model is cast to; other sizes are built when asked for.
    """

    def __init__(self, matrix: AxisMatrix, old: tuple[int, int], rows: set[int], columns: set[int]) -> None:
        super().__init__()
        self.matrix, self.old = matrix, old
        for old_side, new_side in sorted({(old[0], n) for n in rows} | {(old[1], n) for n in columns}):
            self.register_buffer(f"from{old_side}to{new_side}", matrix(old_side, new_side), persistent=False)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """x [..., H, W] with (H, W) = old, any float dtype -> [..., *size] float32, autocast off."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            if size == self.old:
                return x
            return resize_axes(x, self._axis(self.old[0], size[0], x.device), self._axis(self.old[1], size[1], x.device))

    def _axis(self, old: int, new: int, device: torch.device) -> Tensor:
        held = self._buffers.get(f"from{old}to{new}")
        return self.matrix(old, new).to(device) if held is None else held

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AxisResize:
        super()._apply(fn, recurse)
        for name, buffer in self._buffers.items():  # undo a cast to half precision, and fill what to_empty left blank
            if buffer is not None and buffer.device.type != "meta":
                old, new = name.removeprefix("from").split("to")
                self._buffers[name] = self.matrix(int(old), int(new)).to(buffer.device)
        return self
