"""Losses at nested widths: against loops over pairs, in one process and over ranks, and over gradient caching in real runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from kit.loss_reference import IDS, Gradients, assert_equal, differentiate, rows, scalars_of, slow_loss
from torch import Tensor

from flexiclip.losses import LOSSES, nested_loss

WIDTHS = (2, 5, 8)


def slow_nested(zimg: Tensor, ztxt: Tensor, *scalars: Tensor, ids: Tensor | None = None) -> Tensor:
    """The mean of the loss over pairs, of columns that are cut and divided by their length; the whole rows are of length 1."""
    total = slow_loss(zimg, ztxt, *scalars, ids=ids)
    for width in (2, 5):
        cut = [z[:, :width] / z[:, :width].pow(2).sum(1, keepdim=True).sqrt() for z in (zimg, ztxt)]
        total = total + slow_loss(*cut, *scalars, ids=ids)
    return total / 3


def found(kind: str, zimg: Tensor, ztxt: Tensor, ids: Tensor | None, tile: int | None) -> Gradients:
    def loss(*inputs: Tensor) -> Tensor:
        return nested_loss(LOSSES[kind], WIDTHS, *inputs, caption_ids=ids, tile=tile)

    return differentiate(loss, zimg, ztxt, *scalars_of(kind))


@pytest.mark.parametrize("tile", [None, 5])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", LOSSES)
def test_equals_a_loop_over_pairs_and_widths(kind: str, masked: bool, tile: int | None) -> None:
    zimg, ztxt = rows(12)
    expected = differentiate(slow_nested, zimg, ztxt, *scalars_of(kind), ids=IDS if masked else None)
    assert_equal(found(kind, zimg, ztxt, IDS if masked else None, tile), expected, 1e-10)


@pytest.mark.parametrize("kind", LOSSES)
def test_the_whole_width_alone_is_the_loss(kind: str) -> None:
    zimg, ztxt = rows(12)
    plain = differentiate(LOSSES[kind], zimg, ztxt, *scalars_of(kind))
    nested = differentiate(lambda *x: nested_loss(LOSSES[kind], (8,), *x), zimg, ztxt, *scalars_of(kind))
    assert all(torch.equal(nested[name], value) for name, value in plain.items()), "bit for bit"


def _on_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    own = slice(6 * rank, 6 * rank + 6)
    zimg, ztxt = (z[own] for z in rows(12))
    results = {kind: found(kind, zimg, ztxt, IDS[own], 5) for kind in LOSSES}
    dist.destroy_process_group()
    torch.save(results, folder / f"{rank}.pt")


def test_ranks_equal_one_process(tmp_path: Path) -> None:
    mp.spawn(_on_rank, (tmp_path,), nprocs=2)
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt")
        own = slice(6 * rank, 6 * rank + 6)
        for kind in LOSSES:
            expected = differentiate(slow_nested, *rows(12), *scalars_of(kind), ids=IDS)
            share = {name: value[own] if name in ("dzimg", "dztxt") else value for name, value in expected.items()}
            assert_equal(results[kind], share, 1e-10)
