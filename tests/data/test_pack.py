"""`pack`: which rows become samples, the same shards however often it is interrupted, and what it refuses."""

from __future__ import annotations

import csv
import fcntl
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from kit.shards import jpeg

from flexiclip.data.pack import pack, plan_of
from flexiclip.data.pack_images import ImageOptions
from flexiclip.data.pack_open import open_source
from flexiclip.data.pack_shards import Job, write_shard
from flexiclip.data.samples import open_samples
from flexiclip.errors import UserError

ROWS, EMPTY, CUT, GONE = 23, 5, 9, 10
BAD = {EMPTY: "empty caption", CUT: "image cannot be decoded", GONE: "image cannot be read: No such file or directory"}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of 23 rows, three of which are bad."""
    (tmp_path / "images").mkdir()
    with (tmp_path / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filepath", "title", "licence"])
        for row in range(ROWS):
            if row != GONE:
                (tmp_path / f"images/{row}.jpg").write_bytes(jpeg(row)[: 300 if row == CUT else None])
            writer.writerow([f"images/{row}.jpg", "" if row == EMPTY else f"caption {row}", "CC0"])
    return tmp_path / "table.csv"


def job(table: Path, output: Path, **options: object) -> Job:
    return replace(Job(open_source(str(table)), output, shard_size=4), **options)  # type: ignore[arg-type]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_good_row_becomes_one_sample_and_every_bad_one_is_named(table: Path, tmp_path: Path) -> None:
    tally, fresh = pack(job(table, tmp_path / "out"), 1, "table.csv")
    assert (tally.samples, tally.extensions, fresh) == (ROWS - 3, {"jpg": ROWS - 3}, True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "bad_rows.jsonl",
        "dataset.json",
        *(f"train-{shard:05d}.tar" for shard in range(6)),
    ]
    store = open_samples([str(path) for path in sorted((tmp_path / "out").glob("*.tar"))], ["jpg"], ["txt"])
    good = [row for row in range(ROWS) if row not in BAD]
    assert [store[n].key for n in range(len(store))] == [f"{row:09d}" for row in good]
    assert [store[n].captions for n in range(len(store))] == [(f"caption {row}",) for row in good]
    assert store.member(0, 3, "jpg") == jpeg(3)
    assert store[0].meta == {"filepath": "images/0.jpg", "licence": "CC0"}
    lines = [json.loads(line) for line in (tmp_path / "out/bad_rows.jsonl").read_text().splitlines()]
    assert [(line["row"], line["source"]) for line in lines] == [(row, f"images/{row}.jpg") for row in BAD]
    assert all(line["reason"].startswith(reason) for line, reason in zip(lines, BAD.values(), strict=True))
    assert tally.reasons() == "1 x empty caption; 1 x image cannot be decoded; 1 x image cannot be read"


def test_a_pack_that_breaks_off_goes_on_with_the_same_bytes(table: Path, tmp_path: Path) -> None:
    """It breaks off in the middle of a shard, after a shard's record and before its file, and before its last file."""
    pack(job(table, tmp_path / "whole"), 1, "")
    half = job(table, tmp_path / "half")
    state = tmp_path / "half/.pack"
    state.mkdir(parents=True)
    (state / "plan.json").write_text((tmp_path / "whole/dataset.json").read_text())
    for shard in (0, 2):
        for _ in write_shard(half, shard):
            pass
    half.path(2).unlink()  # its record is there
    half.path(1).with_name(f".{half.path(1).name}.0123abcd").write_bytes(b"half a shard")
    old = half.path(0).stat().st_ino
    tally, _ = pack(half, 1, "")
    assert content(tmp_path / "half") == content(tmp_path / "whole")
    assert half.path(0).stat().st_ino == old, "a complete shard is not written again"
    assert tally.samples == ROWS - 3


def test_a_complete_pack_is_left_as_it_is(table: Path, tmp_path: Path) -> None:
    first, _ = pack(job(table, tmp_path / "out"), 1, "")
    before = content(tmp_path / "out")
    (tmp_path / "out/.pack").mkdir()  # it was killed while it removed its records
    again, fresh = pack(job(table, tmp_path / "out"), 1, "")
    assert (again, fresh) == (first, False)
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize("changed", ["rows", "size", "images"])
def test_other_rows_or_options_do_not_go_into_the_same_folder(table: Path, tmp_path: Path, changed: str) -> None:
    pack(job(table, tmp_path / "out"), 1, "")
    if changed == "rows":
        table.write_text(table.read_text().replace("caption 3", "another caption"))
    other = {"rows": {}, "size": {"shard_size": 5}, "images": {"images": ImageOptions(10)}}[changed]
    before = content(tmp_path / "out")
    with pytest.raises(UserError, match="name another folder, or remove this one"):
        pack(job(table, tmp_path / "out", **other), 1, "")
    assert content(tmp_path / "out") == before


def test_shards_of_somebody_else_are_not_mixed_in(table: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/train-0000.tar").write_bytes(b"")
    with pytest.raises(UserError, match="shards that this command did not write"):
        pack(job(table, tmp_path / "out"), 1, "")


def test_two_packs_do_not_write_into_one_folder_at_once(table: Path, tmp_path: Path) -> None:
    state = tmp_path / "out/.pack"
    state.mkdir(parents=True)
    (state / "plan.json").write_text(json.dumps(plan_of(job(table, tmp_path / "out"))))
    with (state / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another `flexiclip data pack` is writing there"):
            pack(job(table, tmp_path / "out"), 1, "")


def test_a_shard_of_bad_rows_alone_has_no_file(table: Path, tmp_path: Path) -> None:
    tally, _ = pack(job(table, tmp_path / "out", shard_size=1), 1, "")
    missing = {f"train-{row:05d}.tar" for row in BAD}
    assert {f"train-{row:05d}.tar" for row in range(ROWS)} - set(content(tmp_path / "out")) == missing
    assert tally.samples == ROWS - 3


def test_no_sample_at_all_is_an_error(table: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(UserError, match="no row could become a sample: 22 x image cannot be read; 1 x empty caption"):
        pack(job(table, tmp_path / "out"), 1, "")


def test_a_full_disk_is_one_line(table: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"--output .*out: cannot write there"):
        pack(job(table, tmp_path / "out"), 1, "")
