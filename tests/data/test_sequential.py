"""webdataset's pipeline for sources that only stream: endless, even, and nothing passed over in silence."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.shards import good_sample, write_samples

from flexiclip.config import DataConfig, SourceConfig
from flexiclip.data.dataset import open_sources
from flexiclip.data.loader import iter_captions
from flexiclip.errors import UserError


def batches(loader_of: Any, train: Any, **given: Any) -> list[Any]:
    return list(loader_of(train, sequential=True, **given))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_rank_gets_every_step(uneven: str, loader_of: Any, workers: int) -> None:
    for rank in range(2):
        found = batches(loader_of, uneven, workers=workers, rank=rank, world=2, start_step=5, steps=7)
        assert [batch.step for batch in found] == list(range(5, 12))
        assert all(batch.images.shape == (3, 3, 16, 16) and batch.images.dtype == torch.uint8 for batch in found)
        assert all(f"number {int(n.split('/s')[1])}" in c for b in found for n, c in zip(b.samples, b.captions, strict=True))


def test_all_is_seen_and_ranks_differ(uneven: str, loader_of: Any) -> None:
    first, again, second = (batches(loader_of, uneven, rank=rank, world=2, steps=60) for rank in (0, 0, 1))
    assert [b.samples for b in first] == [b.samples for b in again]
    assert [b.samples for b in first] != [b.samples for b in second]
    assert len({name for batch in first for name in batch.samples}) == 23


def test_a_start_draws_from_its_seed_and_its_first_step(uneven: str, loader_of: Any) -> None:
    """So a run that starts again does not see what it began with once more, and the same start sees the same."""

    def order(**given: Any) -> list[str]:
        return [name for batch in batches(loader_of, uneven, **{"steps": 8, **given}) for name in batch.samples]

    starts = [order(), order(seed=4), order(start_step=8), order(start_step=4), order(workers=1), order(rank=1, world=2)]
    assert order(start_step=8) == starts[2]
    assert starts[4] == starts[0], "the first worker's draws are those of no worker"
    others = [starts[0], *starts[1:4], starts[5]]
    assert len({tuple(each[:20]) for each in others}) == 5
    both = batches(loader_of, uneven, workers=2, steps=8)
    assert both[0].samples != both[1].samples, "each worker draws its own"


def test_rank_0_logs_that_the_run_does_not_resume_exactly(uneven: str, loader_of: Any, caplog: pytest.LogCaptureFixture) -> None:
    for rank, lines in ((0, 1), (1, 0)):
        caplog.clear()
        with caplog.at_level("INFO", logger="flexiclip"):
            loader_of(uneven, sequential=True, rank=rank, world=2)
        assert [record.message.count("does not repeat the uninterrupted one exactly") for record in caplog.records] == [1] * lines


def test_broken_samples_are_named(broken: str, loader_of: Any) -> None:
    found = batches(loader_of, broken, steps=20)
    assert {(error["shard"], error["key"]) for batch in found for error in batch.bad} == {(broken, f"s000{n}") for n in (2, 5, 7)}
    assert not {n.split("/")[1] for b in found for n in b.samples} & {"s0002", "s0005", "s0007"}


@pytest.mark.parametrize("damage", ["cut", "header", "gone"])
def test_a_damaged_shard_is_named_and_the_rest_goes_on(tmp_path: Path, loader_of: Any, damage: str) -> None:
    for name in ("good", "poor"):
        write_samples(tmp_path / f"{name}.tar", [{**good_sample(n), "bin": b"x" * 30_000} for n in range(9)])
    poor = tmp_path / "poor.tar"
    content = bytearray(poor.read_bytes())
    loader = loader_of(str(tmp_path / "*.tar"), sequential=True, steps=40)
    if damage == "cut":
        poor.write_bytes(content[:100_000])
    elif damage == "header":
        start = content.index(b"s0004.bin")
        content[start : start + 512] = b"\xff" * 512
        poor.write_bytes(content)
    else:
        poor.unlink()
    found = list(loader)
    named = [error for batch in found for error in batch.bad]
    assert {error["shard"] for error in named} == {str(poor)}
    # The sample that the cut went through comes out without its caption, and is named besides the shard.
    assert {error["key"] for error in named} == ({"", "s0002"} if damage == "cut" else {""})
    assert {n for b in found for n in b.samples} >= {f"good.tar/s{n:04d}" for n in range(9)}


def test_compressed_shards_and_pipes(tmp_path: Path, loader_of: Any) -> None:
    plain = write_samples(tmp_path / "x.tar", [good_sample(n) for n in range(4)])
    zipped = tmp_path / "x.tar.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    found = batches(loader_of, str(zipped))
    assert {n.split("/")[1] for b in found for n in b.samples} == {f"s000{n}" for n in range(4)}
    assert not [error for batch in found for error in batch.bad]
    command = f"pipe:cat {plain}"
    assert len(batches(loader_of, command, allow_shell=True)) == 4
    with pytest.raises(UserError, match="allow_shell"):
        batches(loader_of, command)


def test_a_mixture_follows_its_weights(tmp_path: Path, loader_of: Any) -> None:
    for name in "ab":
        write_samples(tmp_path / f"{name}.tar", [good_sample(n) for n in range(5)])
    mixture = (SourceConfig(str(tmp_path / "a.tar"), 3.0), SourceConfig(str(tmp_path / "b.tar"), 1.0))
    seen = Counter(n.split("/")[0] for b in batches(loader_of, mixture, steps=100, image_size=(2, 2)) for n in b.samples)
    assert seen["a.tar"] / 600 == pytest.approx(0.75, abs=0.06)


@pytest.mark.parametrize("weight", [1e308, 1e-300])
def test_a_mixture_of_weights_of_any_size(tmp_path: Path, loader_of: Any, weight: float) -> None:
    """Python's `choices` takes no weights whose sum is infinite."""
    for name in "ab":
        write_samples(tmp_path / f"{name}.tar", [good_sample(n) for n in range(5)])
    mixture = tuple(SourceConfig(str(tmp_path / f"{name}.tar"), weight) for name in "ab")
    seen = Counter(n.split("/")[0] for b in batches(loader_of, mixture, steps=20, image_size=(2, 2)) for n in b.samples)
    assert 35 < seen["a.tar"] < 85


@pytest.mark.parametrize("workers", [0, 1])
def test_data_without_captions_ends(uneven: str, loader_of: Any, workers: int) -> None:
    with pytest.raises(UserError, match="in a row cannot be used"):
        batches(loader_of, uneven, captions=("json:caption",), workers=workers)


def test_a_sequential_source_gives_captions_and_has_no_epoch(uneven: str) -> None:
    config = DataConfig(train=uneven, sequential=True)
    assert list(iter_captions(config)) == [f"caption number {n}" for n in range(23)]
    with pytest.raises(UserError, match="no epoch"):
        open_sources(config, seed=0)
