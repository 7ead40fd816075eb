"""The losses over 2 and 3 real processes: the loss of the whole batch on every rank, and its gradients in the rank's own rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from kit.loss_reference import IDS, assert_equal, differentiate, rows, scalars_of, slow_loss

from flexiclip.losses import LOSSES

RANK_CASES = [(kind, masked, tile) for kind in LOSSES for masked in (False, True) for tile in (None, 1, 5)]


def _on_rank(rank: int, folder: Path) -> None:
    """Ranks 0 and 1 as a world of two, then all as a world of three; each leaves its results in a file."""
    torch.set_num_threads(1)
    for world in (2, 3):
        if rank >= world:
            continue
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
        own = slice(rank * 12 // world, (rank + 1) * 12 // world)
        zimg, ztxt = (z[own].T.contiguous().T for z in rows(12))  # any strides will do
        results = {}
        for kind, masked, tile in RANK_CASES:
            options = {"caption_ids": IDS[own] if masked else None, "tile": tile}
            found = differentiate(LOSSES[kind], zimg, ztxt, *scalars_of(kind), **options)
            with torch.no_grad():
                found["without grad"] = LOSSES[kind](zimg, ztxt, *scalars_of(kind), **options)
            results[kind, masked, tile] = found
        dist.destroy_process_group()
        torch.save(results, folder / f"{world}-{rank}.pt")


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_on_rank, (folder,), nprocs=3)
    return folder


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(("kind", "masked", "tile"), RANK_CASES)
def test_ranks_equal_one_process(kind: str, masked: bool, tile: int | None, world: int, on_ranks: Path) -> None:
    zimg, ztxt = rows(12)
    expected = differentiate(slow_loss, zimg, ztxt, *scalars_of(kind), ids=IDS if masked else None)
    for rank in range(world):
        found = torch.load(on_ranks / f"{world}-{rank}.pt")[kind, masked, tile]
        own = slice(rank * 12 // world, (rank + 1) * 12 // world)
        share = {name: value[own] if name in ("dzimg", "dztxt") else value for name, value in expected.items()}
        assert found.pop("without grad") == found["loss"]
        assert_equal(found, share, 1e-10)
