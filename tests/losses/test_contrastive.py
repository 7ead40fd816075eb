"""Losses in one process against big_vision's golden arrays, open_clip and loops over pairs; precision, shapes and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kit.loss_reference import IDS, assert_equal, differentiate, rows, scalars_of, slow_loss
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from flexiclip.losses import LOSSES, sigmoid_loss, softmax_loss
from flexiclip.losses.contrastive import _tile_shape

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "losses.npz")
CASES = ("init_softmax", "siglip_init", "lit_coco", "late")
SOFTMAX = ("softmax_1dev", "bidirectional", "softmax_2dev", "softmax_4dev")
SIGMOID = ("siglip_trainer", "sigmoid_2dev", "sigmoid_4dev", "chunked_sigmoid_4dev")


@pytest.mark.parametrize("tile", [None, 1, 3, 8, 100])
@pytest.mark.parametrize("variant", SOFTMAX + SIGMOID)
@pytest.mark.parametrize("case", CASES)
def test_losses_equal_big_vision(case: str, variant: str, tile: int | None) -> None:
    """The arrays of 2 and 4 devices are those of the global batch: big_vision averages over devices what it computes on each."""
    zimg, ztxt, log_scale, bias = (
        torch.from_numpy(np.asarray(GOLDEN[name])) for name in ("zimg", "ztxt", f"{case}_t_param", f"{case}_b")
    )
    golden = {name: torch.from_numpy(np.asarray(GOLDEN[f"{case}_{variant}_{name}"])) for name in ("loss", "dzimg", "dztxt")}
    golden["dscale"] = torch.from_numpy(np.asarray(GOLDEN[f"{case}_{variant}_dt_param"]))
    if variant in SOFTMAX:
        found = differentiate(softmax_loss, zimg, ztxt, log_scale, tile=tile)
    else:
        found = differentiate(sigmoid_loss, zimg, ztxt, log_scale, bias, tile=tile)
        golden["dbias"] = torch.from_numpy(np.asarray(GOLDEN[f"{case}_{variant}_db"]))
    assert_equal(found, golden, 1e-5)


@pytest.mark.parametrize("tile", [None, 5])
def test_losses_equal_open_clip(tile: int | None) -> None:
    zimg, ztxt = rows(16, dtype=torch.float64)
    log_scale, bias = torch.tensor([2.5], dtype=torch.float64), torch.tensor([-3.0], dtype=torch.float64)
    clip, siglip = ClipLoss(), SigLipLoss()
    expected = differentiate(lambda zi, zt, t: clip(zi, zt, t.exp()), zimg, ztxt, log_scale)
    assert_equal(differentiate(softmax_loss, zimg, ztxt, log_scale, tile=tile), expected, 1e-10)
    expected = differentiate(lambda zi, zt, t, b: siglip(zi, zt, t.exp(), b).reshape(()), zimg, ztxt, log_scale, bias)
    assert_equal(differentiate(sigmoid_loss, zimg, ztxt, log_scale, bias, tile=tile), expected, 1e-10)


@pytest.mark.parametrize("tile", [None, 1, 5])
@pytest.mark.parametrize("ids", [None, IDS, torch.zeros(12, dtype=torch.int64)], ids=["plain", "twins", "all one"])
@pytest.mark.parametrize("kind", LOSSES)
def test_losses_equal_a_loop_over_pairs(kind: str, ids: Tensor | None, tile: int | None) -> None:
    zimg, ztxt = rows(12)
    scalars = scalars_of(kind)
    expected = differentiate(slow_loss, zimg, ztxt, *scalars, ids=ids)
    assert_equal(differentiate(LOSSES[kind], zimg, ztxt, *scalars, caption_ids=ids, tile=tile), expected, 1e-10)


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_pass_gradcheck(kind: str) -> None:
    inputs = [x.requires_grad_() for x in (*rows(5, dim=4), *scalars_of(kind, 1.0))]
    ids = torch.tensor([0, 1, 0, 2, 3])
    assert torch.autograd.gradcheck(lambda *x: 3 * LOSSES[kind](*x, caption_ids=ids, tile=2), inputs)


@pytest.mark.parametrize("kind", LOSSES)
def test_extreme_logits_stay_finite(kind: str) -> None:
    zimg = torch.eye(4)
    scalars = [s.float() for s in scalars_of(kind, scale=7.0)]  # logits up to e^7 = 1097
    for ztxt in (zimg, zimg.roll(1, 0)):
        found = differentiate(LOSSES[kind], zimg, ztxt, *scalars, tile=3)
        assert all(value.isfinite().all() for value in found.values())
    expected = float(torch.tensor(7.0).exp())  # each positive at 0, one negative at e^7 (less the bias on both sides)
    assert float(found["loss"]) == pytest.approx(expected if kind == "softmax" else sigmoid_worst(expected), rel=1e-6)


def sigmoid_worst(top: float) -> float:
    """An image whose own caption has logit 0, one other `top` and two others 0, all less 1.5."""
    return float(np.log1p(np.exp(1.5)) + (top - 1.5) + 2 * np.log1p(np.exp(-1.5)))


@pytest.mark.parametrize("kind", LOSSES)
def test_bfloat16_is_computed_in_float32_whatever_autocast_says(kind: str) -> None:
    zimg, ztxt = (z.bfloat16() for z in rows(16))
    scalars = [s.float() for s in scalars_of(kind)]
    exact = differentiate(LOSSES[kind], zimg.float(), ztxt.float(), *scalars)
    with torch.autocast("cpu", torch.bfloat16):
        found = differentiate(LOSSES[kind], zimg, ztxt, *scalars)
    assert found["loss"].dtype == torch.float32
    assert found["dzimg"].dtype == found["dztxt"].dtype == torch.bfloat16
    rounded = {name: x.bfloat16() if name in ("dzimg", "dztxt") else x for name, x in exact.items()}
    assert_equal(found, rounded, 1e-9)


@pytest.mark.parametrize("kind", LOSSES)
def test_scalars_may_have_shape_1_or_none(kind: str) -> None:
    zimg, ztxt = rows(6)
    one = differentiate(LOSSES[kind], zimg, ztxt, *scalars_of(kind))
    none = differentiate(LOSSES[kind], zimg, ztxt, *(s.reshape(()) for s in scalars_of(kind)))
    assert one["loss"].shape == none["loss"].shape == none["dscale"].shape == ()
    assert one["dscale"].shape == (1,)
    assert one["dscale"].item() == none["dscale"].item()
    with torch.no_grad():
        assert LOSSES[kind](zimg, ztxt, *scalars_of(kind)) == one["loss"]


@pytest.mark.parametrize("kind", LOSSES)
def test_wrong_shapes_are_refused(kind: str) -> None:
    zimg, ztxt = rows(6)
    for left, right in ((zimg, ztxt[:5]), (zimg[:, :4], ztxt), (zimg[0], ztxt[0])):
        with pytest.raises(ValueError, match=r"must both be \[b, D\]"):
            LOSSES[kind](left, right, *scalars_of(kind))
    for ids in (IDS, torch.zeros(1, dtype=torch.int64), IDS[:6, None]):  # broadcasting would mask every negative
        with pytest.raises(ValueError, match=r"caption_ids must be \[6\]"):
            LOSSES[kind](zimg, ztxt, *scalars_of(kind), caption_ids=ids)


class _Meter(TorchDispatchMode):
    """The largest tensor that any operation returns, in elements."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.numel())
        return result


@contextmanager
def metered() -> Iterator[dict[str, int]]:
    """Afterwards: `largest`, the elements of the largest tensor, and `saved`, all those kept for backward."""
    found = {"largest": 0, "saved": 0}

    def pack(x: Tensor) -> Tensor:
        found["saved"] += x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), _Meter() as meter:
        yield found
    found["largest"] = meter.largest


@pytest.mark.parametrize("kind", LOSSES)
def test_no_tensor_outgrows_a_tile_and_no_tile_is_kept(kind: str) -> None:
    count, dim, tile = 256, 4, 32
    inputs = [x.float().requires_grad_() for x in (*rows(count, dim), *scalars_of(kind))]
    with metered() as ours:
        LOSSES[kind](*inputs, caption_ids=torch.arange(count) // 2, tile=tile).backward()
    assert ours["largest"] == 2 * tile * tile  # the logits and the spare, allocated once
    assert ours["saved"] == 2 * count * dim + 3
    with metered() as plain:  # the meters see what they should
        F.cross_entropy(inputs[0] @ inputs[1].T, torch.arange(count)).backward()
    assert plain["largest"] == count * count
    assert plain["saved"] >= count * count


def products(run: Callable[[], Tensor], count: int, dim: int) -> float:
    """Matrix products of count x count x dim in a loss and its backward pass, by torch's counter."""

    def in_place(_: Any, left: tuple[int, int], right: tuple[int, int], **__: Any) -> int:
        return 2 * left[0] * left[1] * right[1]

    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place}) as counter:
        run().backward()
    return counter.get_total_flops() / (2 * count * count * dim)


@pytest.mark.parametrize(("kind", "ours", "plain"), [("softmax", 4, 6), ("sigmoid", 3, 3)])
def test_products_are_fewer_than_open_clips(kind: str, ours: int, plain: int) -> None:
    """The table of docs/guides/performance.md."""
    count, dim = 64, 8
    zimg, ztxt, *scalars = (x.float().requires_grad_() for x in (*rows(count, dim), *scalars_of(kind)))
    theirs = ClipLoss() if kind == "softmax" else SigLipLoss()
    assert products(lambda: LOSSES[kind](zimg, ztxt, *scalars, tile=16), count, dim) == ours
    assert products(lambda: theirs(zimg, ztxt, scalars[0].exp(), *scalars[1:]), count, dim) == plain


def test_tiles_are_square_or_wider_where_a_rank_has_few_rows() -> None:
    """4 MB on a CPU, which its cache holds; 64 MB on a GPU."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert _tile_shape(32_768, cpu, None) == (1024, 1024)
    assert _tile_shape(16, cpu, None) == (16, 65_536)
    assert _tile_shape(32_768, gpu, None) == (4096, 4096)
    assert _tile_shape(32_768, gpu, 100) == (100, 100)
