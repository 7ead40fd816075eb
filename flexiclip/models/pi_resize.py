"""PI-resize: the pseudo-inverse resize of patch embedding kernels, FlexiViT section 3.4 (arXiv 2212.08013).

An image patch is resized by a linear map B. The resized kernel should give the resized patch the same embedding that the
original kernel gives the original patch. The least-squares answer is pinv(B^T) applied to the kernel. B is separable, B =
Bh (x) Bw, and so is its pseudo-inverse. Therefore two small matrices, one per axis, replace one matrix of size (p*q) x
(H*W), with equal results up to float precision.

Position grids are resized with B itself. Both resizes are `resize_axes` with different matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

AxisMatrix = Callable[[int, int], Tensor]
"""A function that returns the matrix of one axis: (old size, new size) -> [new, old] float32 on the CPU."""


@lru_cache(maxsize=512)
def _interpolation(old: int, new: int, mode: str, antialias: bool) -> Tensor:
    """Return the matrix of torch's image resize along one axis, [new, old] float32, found by resizing an identity matrix."""
    # The identity is square, because torch's antialiased resize is wrong on images that are one pixel wide.
    identity = torch.eye(old, device="cpu")[None, None]  # on the CPU even under another torch.device: the result is cached
    return F.interpolate(identity, size=(new, old), mode=mode, align_corners=False, antialias=antialias)[0, 0]


def interpolation_matrix(old: int, new: int, mode: str = "bilinear", antialias: bool = False) -> Tensor:
    """B, [new, old] float32: `B @ x` resizes a signal of `old` samples with half-pixel centres, as tf.image and jax.image do."""
    return torch.eye(old, device="cpu") if old == new else _interpolation(old, new, mode, antialias)


@lru_cache(maxsize=512)
def pi_matrix(old: int, new: int, mode: str = "bilinear", antialias: bool = False) -> Tensor:
    """Return pinv(B^T), [new, old] float32: the matrix that resizes one axis of a patch embedding kernel.

    B has full rank, so the normal equations give the pseudo-inverse: B (B^T B)^-1 or (B B^T)^-1 B. In float64 this is as
    exact as a singular value decomposition, and it takes a tenth of the time.
    """
    if old == new:
        return torch.eye(old, device="cpu")
    b = _interpolation(old, new, mode, antialias).double().numpy()
    pinv = np.linalg.solve(b @ b.T, b) if new < old else np.linalg.solve(b.T @ b, b.T).T
    return torch.from_numpy(np.ascontiguousarray(pinv, np.float32))


def resize_axes(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Apply one matrix to each of the last two axes: x [..., H, W], rows [P, H], columns [Q, W] -> [..., P, Q]."""
    return (rows @ x) @ columns.T  # in this order, the second product is a single large matrix product


def pi_resize(kernel: Tensor, size: int | tuple[int, int], mode: str = "bilinear", antialias: bool = False) -> Tensor:
    """Resize patch embedding kernels so that the embeddings of resized patches stay the same.

    `kernel` is a floating-point tensor [D, C, H, W], and `size` is the new side or (P, Q). `mode` and `antialias` name
    the image resize that is inverted. The defaults are big_vision's. A checkpoint is only correct with the values that it
    was trained with.

    Returns [D, C, P, Q] in the kernel's dtype. The arithmetic is float32 (float64 for a float64 kernel), under autocast
    too. Gradients flow through it. Raises ValueError for a kernel that is not 4-D.
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
    """Resizes the last two axes from one fixed size to any other size.

    The matrices of the expected sizes are buffers, and those of other sizes are built on demand. The buffers take a few
    KB. They are not saved, and they stay float32 when the model is cast to another dtype.
    """

    def __init__(self, matrix: AxisMatrix, old: tuple[int, int], rows: set[int], columns: set[int]) -> None:
        super().__init__()
        self.matrix, self.old = matrix, old
        for old_side, new_side in sorted({(old[0], n) for n in rows} | {(old[1], n) for n in columns}):
            self.register_buffer(f"from{old_side}to{new_side}", matrix(old_side, new_side), persistent=False)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize x [..., H, W] with (H, W) = old, in any float dtype, to [..., *size] in float32. Autocast is off inside."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            if size == self.old:
                return x
            return resize_axes(x, self._axis(self.old[0], size[0], x.device), self._axis(self.old[1], size[1], x.device))

    def _axis(self, old: int, new: int, device: torch.device) -> Tensor:
        """Return the matrix of one axis on `device`, from a buffer if there is one."""
        held = self._buffers.get(f"from{old}to{new}")
        return self.matrix(old, new).to(device) if held is None else held

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AxisResize:
        """Apply `fn` as nn.Module does, and then compute the buffers again in float32."""
        super()._apply(fn, recurse)
        for name, buffer in self._buffers.items():  # fn may have cast them, or to_empty may have left them unset
            if buffer is not None and buffer.device.type != "meta":
                old, new = name.removeprefix("from").split("to")
                self._buffers[name] = self.matrix(int(old), int(new)).to(buffer.device)
        return self
