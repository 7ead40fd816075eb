"""The shards of a pack, each written by one process. test_pack.py writes whole packs."""

from __future__ import annotations

from pathlib import Path

from kit.shards import jpeg

from flexiclip.data.pack_open import open_source
from flexiclip.data.pack_shards import Job, Tally, write_shard
from flexiclip.data.samples import open_samples


def test_tallies_add_up() -> None:
    total = Tally(1, 10, {"jpg": 1}, [{"reason": "a: b"}])
    total.add(Tally(2, 5, {"jpg": 1, "png": 1}, [{"reason": "a: c"}]))
    assert total == Tally(3, 15, {"jpg": 2, "png": 1}, [{"reason": "a: b"}, {"reason": "a: c"}])
    assert total.reasons() == "2 x a"


def test_write_shard_yields_its_progress_and_writes_its_rows_alone(tmp_path: Path) -> None:
    """Shard 1 of four rows each: rows 4 to 6."""
    (tmp_path / "in").mkdir()
    for number in range(7):
        (tmp_path / f"in/{number}.jpg").write_bytes(jpeg(number))
        (tmp_path / f"in/{number}.txt").write_text(f"caption {number}")
    out = tmp_path / "out"
    (out / ".pack").mkdir(parents=True)
    list(write_shard(Job(open_source(str(tmp_path / "in")), out, shard_size=4), 1))
    (shard,) = out.glob("*.tar")
    store = open_samples([str(shard)], ["jpg"], ["txt"], str(tmp_path / "index"))
    assert [store[n].captions for n in range(len(store))] == [(f"caption {number}",) for number in (4, 5, 6)]
    assert [store.member(*store.locate(n), "jpg") for n in range(3)] == [jpeg(number) for number in (4, 5, 6)]
