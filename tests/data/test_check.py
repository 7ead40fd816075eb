"""`data check` and `data index` on real shards, good and bad."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit.shards import good_sample, write_samples

from flexiclip.__main__ import main
from flexiclip.data.index import index_shards, require_whole
from flexiclip.data.remote import expand_shards
from flexiclip.data.samples import check_shards
from flexiclip.errors import UserError


def test_check_shards_passes_good_shards(uneven: str) -> None:
    assert check_shards(expand_shards(uneven), ("jpg",), ("txt",)) == []


def test_every_bad_sample_and_shard_is_named_in_order(broken: str, tmp_path: Path) -> None:
    whole = write_samples(tmp_path / "cut.tar", [good_sample(n) for n in range(4)])
    whole.write_bytes(whole.read_bytes()[:2000])
    found = check_shards(expand_shards(str(tmp_path / "*.tar")), ("jpg",), ("txt",))
    assert [(Path(bad.shard).name, bad.key) for bad in found] == [
        ("broken.tar", "s0002"),
        ("broken.tar", "s0005"),
        ("broken.tar", "s0007"),
        ("cut.tar", ""),
    ]
    assert "truncated" in found[-1].reason


def test_index_refuses_a_damaged_shard(tmp_path: Path) -> None:
    whole = write_samples(tmp_path / "cut.tar", [good_sample(n) for n in range(4)])
    whole.write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"cut\.tar: damaged"):
        require_whole(index_shards([str(whole)]))


def test_data_index_counts_samples_and_bytes(uneven: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "index", uneven]) == 0
    *rows, total = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [int(row[0]) for row in rows] == [1, 9, 2, 11]
    sample = good_sample(0)
    size = len(sample["jpg"]) + len(sample["txt"])
    assert rows[0] == ["1", "samples", str(size), "bytes", str(tmp_path / "train-0000.tar")]
    assert total == ["23", "samples", str(sum(int(row[2]) for row in rows)), "bytes", "in", "4", "shards"]


def test_data_check_of_shards_without_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As an image tower alone is trained on: with classes in the place of captions."""
    samples = [{**{name: data for name, data in good_sample(n).items() if name != "txt"}, "cls": b"1"} for n in range(3)]
    shard = str(write_samples(tmp_path / "classes.tar", samples))
    assert main(["data", "check", shard]) == 1
    assert main(["data", "check", shard, "--captions", ""]) == 0
    assert "every sample is good" in capsys.readouterr().out
