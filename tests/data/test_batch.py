"""Batches: labels and mixtures against formulas written out here, the ids of captions, and too little shared memory.

A limit on the size of files stands for a small /dev/shm.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kit.shards import good_sample, write_samples

from flexiclip.config import DataConfig
from flexiclip.data.batch import Batch, BatchSpec, Mixup, RankSteps, caption_id
from flexiclip.data.loader import train_loader
from flexiclip.data.samples import Labels
from flexiclip.errors import RunError

NAMES = ("cat", "dog", "7", "bird")
BATCH, SAMPLES = 6, 18


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sample n is of class n % 4, and every fourth of another one too."""

    def labelled(number: int) -> dict[str, Any]:
        kinds = [NAMES[number % 4]] + (["dog"] if number % 4 == 0 else [])
        return {**good_sample(number), "json": json.dumps({"kind": kinds}).encode()}

    return str(write_samples(tmp_path_factory.mktemp("labelled") / "a.tar", [labelled(n) for n in range(SAMPLES)]))


def batches(shard: str, rank: int = 0, world: int = 1, **data: Any) -> list[Batch]:
    config = DataConfig(train=shard, captions=(), **{"workers": 0, **data})
    spec = BatchSpec((16, 16), "bicubic", labels=Labels("json:kind", NAMES))
    steps = RankSteps(seed=3, global_batch_size=BATCH, start_step=0, steps=4, rank=rank, world=world)
    return list(train_loader(config, spec, steps))


def dense(batch: Batch) -> np.ndarray:
    """[b, C]: how much of each class an image is of."""
    table = np.zeros((len(batch.samples), len(NAMES)))
    for row, (labels, shares) in enumerate(zip(batch.labels.tolist(), batch.shares.tolist(), strict=True)):
        for label, share in zip(labels, shares, strict=True):
            table[row, label] += share
    return table


def test_labels_reach_the_batch(shard: str) -> None:
    for batch in batches(shard):
        assert batch.tokens.shape == (BATCH, 0)
        for name, row in zip(batch.samples, dense(batch), strict=True):
            number = int(name[-4:])
            assert row.tolist() == [1.0 * (c == number % 4 or (c == 1 and number % 4 == 0)) for c in range(4)]


@pytest.mark.parametrize("workers", [0, 2])
def test_mixtures_are_those_of_the_formula(shard: str, workers: int) -> None:
    """a x_i + (1 - a) x_(i-1) round the global batch, images and classes, with one a a step (big_vision's get_mixup)."""
    plain, mixed = batches(shard), batches(shard, mixup=0.5, workers=workers)
    kept = [Mixup(0.5, seed=3).kept(step) for step in range(4)]
    assert len(set(kept)) == 4
    assert all(0.5 <= a <= 1 for a in kept)
    for a, one, other in zip(kept, plain, mixed, strict=True):
        images = one.images.numpy().astype(np.float64)
        expected = a * images + (1 - a) * np.roll(images, 1, axis=0)
        assert np.abs(other.images.numpy() - expected).max() <= 0.5 + 1e-3
        np.testing.assert_allclose(dense(other), a * dense(one) + (1 - a) * np.roll(dense(one), 1, axis=0), atol=1e-6)
        assert other.samples == one.samples


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_mix_as_one_does(shard: str, world: int) -> None:
    alone = batches(shard, mixup=0.5)
    ranks = [batches(shard, rank, world, mixup=0.5) for rank in range(world)]
    for step, whole in enumerate(alone):
        assert torch.equal(torch.cat([batches_[step].images for batches_ in ranks]), whole.images)
        np.testing.assert_array_equal(np.concatenate([dense(batches_[step]) for batches_ in ranks]), dense(whole))


def test_mixup_draws_from_a_beta_distribution() -> None:
    """Of the larger of x and 1 - x for x from Beta(0.2, 0.2): its mean is 0.5 + E|x - 0.5|, from scipy's density."""
    from scipy import integrate, stats

    mean = integrate.quad(lambda x: 2 * x * stats.beta(0.2, 0.2).pdf(x), 0.5, 1)[0]
    drawn = [Mixup(0.2, seed=0).kept(step) for step in range(2000)]
    assert np.mean(drawn) == pytest.approx(mean, abs=4 * np.std(drawn) / 2000**0.5)


def test_caption_ids_are_stable_and_positive() -> None:
    """Written down: ids must agree between ranks, machines and versions."""
    assert caption_id("a dog") == 9151722581430185315
    assert 0 <= caption_id("ein Hund") < 2**63


TRAINER = """
import resource, sys
from flexiclip.config import DataConfig
from flexiclip.data.batch import BatchSpec, RankSteps
from flexiclip.data.loader import train_loader
from flexiclip.errors import RunError
from kit.shards import word_tokenizer

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # bytes; a batch has 491,520 of pixels
for workers, sequential in ((0, False), (1, False), (1, True)):
    config = DataConfig(train=sys.argv[1], workers=workers, sequential=sequential)
    batches = train_loader(
        config, BatchSpec((64, 64), "bilinear", word_tokenizer), RankSteps(seed=0, global_batch_size=40, start_step=0, steps=3)
    )
    try:
        print(len(list(batches)))
    except RunError as error:
        print(error)
"""


def test_a_batch_that_does_not_fit_into_shared_memory_ends_the_run_in_one_line(tmp_path: Path) -> None:
    """Nothing of torch's is printed besides, and without workers none is needed."""
    shard = write_samples(tmp_path / "x.tar", [good_sample(n) for n in range(4)])
    command = [sys.executable, "-c", TRAINER, str(shard)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300, check=True)
    assert done.stderr == ""
    alone, *lines = done.stdout.splitlines()
    assert alone == "3"
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("too little shared memory (/dev/shm: ")
        assert "give it more (docker run --shm-size=8g, or --ipc=host)" in line
        assert re.search(r"a batch of \d{3}\.\d kB does not fit: ", line)


@pytest.mark.parametrize(("free", "total", "starts"), [(100, 1000, False), (2000, 2000, True), (0, 0, True)])
def test_without_room_for_queues_no_worker_starts(
    uneven: str, loader_of: Any, monkeypatch: pytest.MonkeyPatch, free: int, total: int, starts: bool
) -> None:
    """KB; a file system without a limit says that it has none at all."""
    batches, alone = loader_of(uneven, workers=1, steps=1), loader_of(uneven, workers=0, steps=1)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free, f_blocks=total, f_frsize=1024))
    assert len(list(alone)) == 1
    if starts:
        assert len(list(batches)) == 1
    else:
        with pytest.raises(RunError, match=r"/dev/shm: 102\.4 kB of 1\.0 MB are free.*--shm-size=8g.*data\.workers=0"):
            list(batches)
