"""`data check` and `data index` on real shards, good and bad."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit.shards import good_sample, jpeg, write_samples

from flexiclip.__main__ import main
from flexiclip.config import TokenizerConfig
from flexiclip.data.check import LONGEST, check_shards, counting_tokenizer, spread, token_counts
from flexiclip.data.index import index_shards, require_whole
from flexiclip.data.remote import expand_shards
from flexiclip.data.tokenizers import build_tokenizer, train_sentencepiece
from flexiclip.errors import UserError


def test_check_shards_passes_good_shards(uneven: str) -> None:
    assert check_shards(expand_shards(uneven), ("jpg",), ("txt",)).bad == []


def test_every_bad_sample_and_shard_is_named_in_order(broken: str, tmp_path: Path) -> None:
    whole = write_samples(tmp_path / "cut.tar", [good_sample(n) for n in range(4)])
    whole.write_bytes(whole.read_bytes()[:2000])
    found = check_shards(expand_shards(str(tmp_path / "*.tar")), ("jpg",), ("txt",)).bad
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


def test_the_totals_of_a_check_are_those_of_its_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nine images of width 20 and one of 40; captions of 1 to 9 words; one sample without a caption."""
    samples = [
        {"__key__": str(n), "jpg": jpeg(n, (40 if n == 9 else 20, 30)), "txt": " ".join(["word"] * n).encode()} for n in range(10)
    ]
    shard = write_samples(tmp_path / "a.tar", samples)
    assert main(["data", "check", str(shard), "--tokenizer", "clip"]) == 1
    *named, head, columns, width, height, captions, words, tokens, last = capsys.readouterr().out.splitlines()
    assert named == [f"{shard}: 0: empty caption"]
    size = sum(len(sample["jpg"]) + len(sample["txt"]) for sample in samples)
    assert head == f"10 samples in 1 shard, {size / 1000:.1f} kB"
    assert [line.split() for line in (columns, width, height, captions, words, tokens)] == [
        ["min", "median", "99", "%", "max"],
        ["image", "width", "20", "20", "40", "40"],
        ["image", "height", "30", "30", "30", "30"],
        ["captions", "per", "sample", "1", "1", "1", "1"],
        ["words", "per", "caption", "1", "5", "9", "9"],
        ["tokens", "per", "caption", "3", "7", "11", "11"],  # and those for the start and the end of the text
    ]
    assert last == "1 bad sample"


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, (1, 1, 1, 1)), (2, (1, 1, 2, 2)), (100, (1, 50, 99, 100)), (101, (1, 51, 100, 101)), (1000, (1, 500, 990, 1000))],
)
def test_the_spread_of_whole_numbers_from_1(count: int, expected: tuple[int, ...]) -> None:
    assert spread(list(range(count, 0, -1))) == expected


def test_tokens_are_counted_up_to_the_padding(tmp_path: Path) -> None:
    """Three sentencepiece pieces and an end token; with sticky_eos, the padding is the end token."""
    path = train_sentencepiece(["a b c d"] * 20, tmp_path / "t.model", 12, lowercase=True)
    for sticky in (False, True):
        config = TokenizerConfig(kind="sentencepiece", path=str(path), context_length=LONGEST, sticky_eos=sticky)
        tokenizer = build_tokenizer(config)
        own = len(tokenizer._engine.encode("a b c"))  # type: ignore[attr-defined]
        assert token_counts(tokenizer, ["a b c", "a b c " * 2000]) == [own + 1, LONGEST]
    assert counting_tokenizer(str(path)).context_length == LONGEST
