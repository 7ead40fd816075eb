"""Too little shared memory ends a run at once, in one line. A limit on the size of files stands for a small /dev/shm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from shardkit import good_sample, write_samples

from flexiclip.errors import RunError

TRAINER = """
import resource, sys
from flexiclip.config import DataConfig
from flexiclip.data.batch import BatchSpec, RankSteps
from flexiclip.data.loader import train_loader
from flexiclip.errors import RunError
from shardkit import word_tokenizer

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
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300, check=True)
    assert done.stderr == ""
    alone, *lines = done.stdout.splitlines()
    assert alone == "3"
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("too little shared memory (/dev/shm: ")
        assert "give it more (docker run --shm-size=8g, or --ipc=host)" in line
        assert "a batch of 0.5 MB does not fit: " in line


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
        with pytest.raises(RunError, match=r"/dev/shm: 0\.1 of 1\.0 MB are free.*--shm-size=8g.*data\.workers=0"):
            list(batches)
