"""Embeddings that are kept, over two real processes: written once, whole, read by both, and the same as those of one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from flexiclip_eval import EvalOptions, evaluate_suites
from kit.evaluation import toy_model, toys, write_shards, write_suite
from safetensors import safe_open

from flexiclip.data.samples import Sample, SampleStore
from flexiclip.model_folder import load_model, save_model

ITEMS, BROKEN = 23, (2, 20)  # one in each rank's block


def _rows(folder: Path, suite: str) -> dict[str, Any]:
    """What an evaluation gives, and how many samples this process read for it."""
    read, count = SampleStore.read, 0

    def counted(store: SampleStore, shard: int, sample: int, min_side: int | None = None) -> Sample:
        nonlocal count
        count += 1
        return read(store, shard, sample, min_side)

    SampleStore.read = counted  # type: ignore[method-assign]
    try:
        options = EvalOptions(batch_size=3, embeddings=folder / "kept")
        rows = evaluate_suites([("toy", load_model(folder / "model"))], [suite], options=options)
    finally:
        SampleStore.read = read  # type: ignore[method-assign]
    return {"rows": [[row.metrics, row.n, row.seqhw, row.images_per_s] for row in rows], "read": count}


def _work(rank: int, folder: Path, suite: str) -> None:
    """Twice; then again, one length's file being damaged; each rank leaves its numbers in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    passes = [_rows(folder, suite) for _ in range(2)]
    dist.barrier()
    if rank == 0:
        first = sorted((folder / "kept").glob("images-*"))[0]
        os.truncate(first, first.stat().st_size // 2)
    dist.barrier()
    passes.append(_rows(folder, suite))
    dist.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(passes))


@pytest.mark.slow
def test_two_ranks_keep_and_read_what_one_would(tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "toys.yaml", write_shards(tmp_path / "data", toys(ITEMS, BROKEN), (10, 2, 11)))
    save_model(tmp_path / "model", toy_model(tmp_path))
    mp.spawn(_work, (tmp_path, suite), nprocs=2)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    alone = evaluate_suites([("toy", load_model(tmp_path / "model"))], [suite], options=EvalOptions(batch_size=3))
    for first, second, third in ranks:
        assert [row[:3] for row in first["rows"]] == [[row.metrics, row.n, row.seqhw] for row in alone]
        assert second["rows"] == first["rows"]  # images/s too
        assert [row[:3] for row in third["rows"]] == [row[:3] for row in first["rows"]]
    assert [[each["read"] for each in rank] for rank in ranks] == [[11, 0, 11], [12, 0, 12]]
    kept = sorted((tmp_path / "kept").iterdir())
    assert [path.name.partition("-")[0] for path in kept] == ["images"] * 3 + ["texts"] * 2
    for path in kept[:3]:
        with safe_open(path, framework="pt") as file:
            assert file.get_tensor("rows").shape == (ITEMS - len(BROKEN), 12)
            about = json.loads(file.get_tensor("about").numpy().tobytes())
            assert [entry["key"] for entry in about["bad"]] == ["0002", "0020"]  # of both ranks
    one = _rows(tmp_path, suite)  # a single process reads what two have kept
    assert one["read"] == 0
    assert [row[:3] for row in one["rows"]] == [row[:3] for row in ranks[0][0]["rows"]]
