"""What ranks exchange: in one process nothing, and over 2 and 3 real processes the rows, objects, sums and gradients by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from flexiclip import distributed

SIZES = (0, 2, 3)
"""Rows of the three ranks: the first has none."""


def rows_of(rank: int, count: int) -> torch.Tensor:
    """Rows that say whose they are: 10 times the rank and the row's number, and half of both."""
    row = 10.0 * rank + torch.arange(count)
    return torch.stack([row, row / 2], dim=1)


def _exchanged(rank: int, world: int) -> dict[str, Any]:
    """Everything that this rank sees."""
    padded = distributed.all_rows(rows_of(rank, 2).T.contiguous().T)  # any strides will do
    own = torch.tensor([1.0, 2.0]) + rank
    own.requires_grad_()
    mean = distributed.mean_over_ranks(own**2)
    mean.backward()
    summed = torch.full((3,), 1.0 + rank)
    return {
        "place": (distributed.rank(), distributed.world()),
        "blocks": [list(distributed.block(total)) for total in range(8)],
        "largest": [distributed.largest_block(total) for total in range(8)],
        "objects": distributed.gather_objects({"rank": rank, "text": "é" * rank}),
        "ragged": distributed.gather_rows(rows_of(rank, SIZES[rank])),
        "padded": padded,
        "sum": distributed.sum_over_ranks(summed),
        "in place": summed,
        "reduced": distributed.reduce_rows((1.0 + rank) * torch.arange(4.0 * world).view(2 * world, 2), 2),
        "mean": mean.detach(),
        "gradient": own.grad,
    }


def _on_rank(rank: int, folder: Path) -> None:
    """Ranks 0 and 1 as a world of two, then all as a world of three; each leaves what it sees in a file."""
    torch.set_num_threads(1)
    for world in (2, 3):
        if rank < world:
            dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
            found = _exchanged(rank, world)
            dist.destroy_process_group()
            torch.save(found, folder / f"{world}-{rank}.pt")


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_on_rank, (folder,), nprocs=3)
    return folder


def seen(folder: Path, world: int) -> list[dict[str, Any]]:
    """What each rank of that world saw."""
    return [torch.load(folder / f"{world}-{rank}.pt") for rank in range(world)]


def test_one_process_exchanges_nothing_and_copies_nothing() -> None:
    rows = rows_of(0, 3)
    assert (distributed.rank(), distributed.world()) == (0, 1)
    assert list(distributed.block(5)) == [0, 1, 2, 3, 4]
    assert distributed.largest_block(5) == 5
    assert distributed.gather_objects(rows)[0] is rows
    assert distributed.gather_rows(rows) is distributed.all_rows(rows) is distributed.sum_over_ranks(rows) is rows
    assert distributed.reduce_rows(rows, 3) is rows
    own = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    mean = distributed.mean_over_ranks(own)
    mean.backward()
    assert float(mean.detach()) == 3.0
    assert own.grad is not None
    torch.testing.assert_close(own.grad, torch.full((3,), 1 / 3))


@pytest.mark.parametrize("world", [2, 3])
def test_blocks_of_the_ranks_are_all_items_in_order_and_of_nearly_equal_sizes(world: int, on_ranks: Path) -> None:
    ranks = seen(on_ranks, world)
    assert [rank["place"] for rank in ranks] == [(number, world) for number in range(world)]
    for total in range(8):
        blocks = [rank["blocks"][total] for rank in ranks]
        assert [item for block in blocks for item in block] == list(range(total))
        sizes = [len(block) for block in blocks]
        assert max(sizes) - min(sizes) <= 1
        assert {rank["largest"][total] for rank in ranks} == {max(sizes)}


@pytest.mark.parametrize("world", [2, 3])
def test_gather_objects_and_rows_are_those_of_all_ranks_in_their_order(world: int, on_ranks: Path) -> None:
    """gather_rows of ranks with different numbers of rows, and all_rows of ranks with the same number."""
    for rank in seen(on_ranks, world):
        assert rank["objects"] == [{"rank": number, "text": "é" * number} for number in range(world)]
        assert rank["ragged"].tolist() == [[10.0 * r + i, 5.0 * r + i / 2] for r in range(world) for i in range(SIZES[r])]
        assert rank["padded"].tolist() == [[10.0 * r + i, 5.0 * r + i / 2] for r in range(world) for i in range(2)]


@pytest.mark.parametrize("world", [2, 3])
def test_sum_over_ranks_is_in_place_and_reduce_rows_is_a_ranks_share_of_the_sum(world: int, on_ranks: Path) -> None:
    """The ranks hold 1, 2 and 3 times the same table, so the sum is 3 or 6 times it."""
    times = {2: 3.0, 3: 6.0}[world]
    for number, rank in enumerate(seen(on_ranks, world)):
        assert rank["sum"].tolist() == rank["in place"].tolist() == [times] * 3
        first = 4 * number  # the number in the first cell of this rank's two rows of two
        assert rank["reduced"].tolist() == [[times * (first + i) for i in row] for row in ((0, 1), (2, 3))]


@pytest.mark.parametrize(("world", "mean"), [(2, (1 + 4 + 4 + 9) / 4), (3, (1 + 4 + 4 + 9 + 9 + 16) / 6)])
def test_mean_over_ranks_and_its_gradient_in_each_ranks_rows(world: int, mean: float, on_ranks: Path) -> None:
    """Of the squares of 1 and 2, 2 and 3, 3 and 4: the slope in x is 2 x over the number of rows of all ranks."""
    for number, rank in enumerate(seen(on_ranks, world)):
        assert float(rank["mean"]) == pytest.approx(mean)
        expected = [2 * x / (2 * world) for x in (1 + number, 2 + number)]
        torch.testing.assert_close(rank["gradient"], torch.tensor(expected))
