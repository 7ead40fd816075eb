"""1, 2 and 3 real processes on sizes that divide badly: the same numbers on every rank."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from flexiclip_eval import EvalOptions, evaluate_suites, make_evaluators
from flexiclip_eval.tasks import search
from kit.evaluation import toy_model, toys, write_shards, write_suite, write_wider_suite

ITEMS, BROKEN = 23, (2, 16, 17, 18, 19, 20, 21, 22)
"""Broken to the end: with 3 ranks and batches of 3 the last rank meets batches without any image."""


CHUNK = 15 * 4
"""Scores held at once: searches of 15 images and their captions take several blocks, more than there are ranks."""


def _work(rank: int, folder: Path, suite: str, wider: str, suite_of_one: str) -> None:
    """Ranks 0 and 1 as a world of two, then all as a world of three; each leaves its numbers in a file."""
    torch.set_num_threads(1)
    search.CHUNK = CHUNK
    loaded = toy_model(folder / f"rank{rank}")
    for world in (2, 3):
        if rank >= world:
            continue
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
        result = {
            "loop": make_evaluators([suite], batch_size=3)(loaded),
            "rows": [
                (r.metrics, r.n)
                for r in evaluate_suites(
                    [("toy", loaded)], [suite, wider], output=folder / f"out-{world}", options=EvalOptions(batch_size=3)
                )
            ],
            "one": [r.n for r in evaluate_suites([("toy", loaded)], [suite_of_one])],
        }
        dist.destroy_process_group()
        (folder / f"{world}-{rank}.json").write_text(json.dumps(result))


def test_every_number_of_ranks_gives_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "CHUNK", CHUNK)
    suite = write_suite(tmp_path / "toys.yaml", write_shards(tmp_path / "data", toys(ITEMS, BROKEN), (10, 2, 11)))
    training = write_shards(tmp_path / "training", toys(31, (7,)), (12, 19))
    wider = write_wider_suite(tmp_path / "wider.yaml", str(tmp_path / "data" / "part-*.tar"), training)
    lonely = write_suite(tmp_path / "one.yaml", write_shards(tmp_path / "one", toys(1), (1,)))
    for rank in range(3):
        (tmp_path / f"rank{rank}").mkdir()
    mp.spawn(_work, (tmp_path, suite, wider, lonely), nprocs=3)
    loaded = toy_model(tmp_path)
    alone = [
        [row.metrics, row.n] for row in evaluate_suites([("toy", loaded)], [suite, wider], options=EvalOptions(batch_size=3))
    ]
    loop = make_evaluators([suite], batch_size=64)(loaded)
    assert [n for _, n in alone] == [ITEMS - len(BROKEN)] * 15
    for world in (2, 3):
        for rank in range(world):
            got = json.loads((tmp_path / f"{world}-{rank}.json").read_text())
            assert got["rows"] == alone
            assert got["loop"] == loop
            assert got["one"] == [1] * 6
        assert len(json.loads((tmp_path / f"out-{world}" / "report.json").read_text())["bad_samples"]) == 2 * len(BROKEN) + 1
