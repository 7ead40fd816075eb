"""`flexiclip data pack` as it is typed: what it prints, and the mistakes that it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit.shards import jpeg

from flexiclip.__main__ import main


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images with captions beside them, the last without one."""
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    for number in range(2):
        (tmp_path / f"{number}.txt").write_text(f"caption {number}")
    return tmp_path


def test_data_pack_ends_with_totals_and_the_way_to_use_the_shards(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = images.parent / "packed"
    assert main(["data", "pack", str(images), "--output", str(out), "--processes", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(f"{out} holds 2 samples (jpg) in 1 shard, ") for line in lines)
    assert any(line.startswith(f"1 bad row, in {out}/bad_rows.jsonl: ") for line in lines)
    assert lines[-2] == f"check them   flexiclip data check '{out}/train-*.tar'"
    assert lines[-1] == f"in a recipe  data.train={out}/train-*.tar"
    assert main(["data", "check", f"{out}/train-*.tar"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--no-captions --caption-column a", "--no-captions and --caption-column exclude each other"),
        ("--quality 101", "--quality"),
    ],
)
def test_data_pack_refuses_options_in_one_line(
    options: str, message: str, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = images.parent / "refused"
    assert main(["data", "pack", str(images), "--output", str(out), *options.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("flexiclip: ")
    assert message in line
    assert not out.exists()
