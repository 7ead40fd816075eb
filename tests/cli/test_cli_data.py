"""The commands of `flexiclip data`: what each option reaches, and the exit code of a check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flexiclip.__main__ import main


def test_data_commands_hand_every_option_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from flexiclip.data import tokenizers
    from flexiclip.datasets import cue_conflict, vendors
    from flexiclip.datasets import vendors as openmoji
    from flexiclip.datasets.emoji_set import EmojiBuild

    built: list[tuple[Any, ...]] = []
    build = EmojiBuild(1, 8, 1, None, 1, 1, 1, 1, {}, "MIT", {})

    def note(*arguments: Any, **named: Any) -> Any:
        built.append((*arguments, *named.items()))
        return build, True

    monkeypatch.setattr(openmoji, "build_openmoji", note)
    monkeypatch.setattr(vendors, "build_vendor", note)
    monkeypatch.setattr(cue_conflict, "build_cue_conflict", note)
    monkeypatch.setattr(tokenizers, "train_sentencepiece", note)
    for command in (
        "data openmoji --output o",
        "data openmoji --output o --pixels 9",
        "data noto --output o --package p --pixels 9",
        "data fluent --output o",
        "data fluent --output o --style flat",
        "data cue-conflict --output o --pixels 9",
        "data cue-conflict --output o",
        "data tokenizer x.tar --output t.model --vocab-size 99 --keep-case",
        "data tokenizer x.tar --output t.model",
    ):
        assert main(command.split()) == 0
    o = Path("o")
    assert built[:7] == [
        (o, ("pixels", 96)),
        (o, ("pixels", 9)),
        (o, vendors.NOTO, Path("p"), ("pixels", 9)),
        (o, vendors.FLUENT["3d"], None, ("pixels", 96)),
        (o, vendors.FLUENT["flat"], None, ("pixels", 96)),
        (o, 9),
        (o, 224),
    ]
    assert [call[1:] for call in built[7:]] == [
        (Path("t.model"), 99, ("lowercase", False)),
        (Path("t.model"), 4096, ("lowercase", True)),
    ]


def test_data_check_says_by_its_code_whether_all_is_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import tarfile

    import webdataset
    from kit.shards import good_sample

    with webdataset.TarWriter(str(tmp_path / "good.tar"), encoder=False) as writer:
        writer.write(good_sample(0))
    assert main(["data", "check", str(tmp_path / "good.tar")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "every sample is good"
    tarfile.open(tmp_path / "bad.tar", "w").close()
    with webdataset.TarWriter(str(tmp_path / "bad.tar"), encoder=False) as writer:
        writer.write({"__key__": "s", "jpg": b"no picture", "txt": b"words"})
    assert main(["data", "check", str(tmp_path / "bad.tar")]) == 1
    assert capsys.readouterr().out.endswith("\n1 bad sample\n")
    assert main(["data", "check", str(tmp_path / "good.tar"), "--captions", "json:a"]) == 1
    assert main(["data", "check", str(tmp_path / "good.tar"), "--images", "png"]) == 1


def test_data_pack_hands_every_option_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from flexiclip.data import pack, pack_open
    from flexiclip.data.pack_images import ImageOptions
    from flexiclip.data.pack_shards import Job, Tally
    from flexiclip.data.pack_tables import TableOptions

    class Rows(list[None]):
        notes, captions, labels, classes = ["a note"], "json:captions", "", ()

    calls: list[tuple[Any, ...]] = []
    source = Rows([None] * 300)
    monkeypatch.setattr(pack_open, "open_source", lambda *given: calls.append(given) or source)
    tally = Tally(297, 10**6, {"jpg": 290, "gif": 7}, [{"row": 1, "source": "x", "reason": "empty caption"}] * 3)
    monkeypatch.setattr(pack, "pack", lambda *given: calls.append(given) or (tally, True))
    options = "--image-size 64 --format webp --quality 80 --image-column i --caption-column c --root r --split s --shard-size 100"
    assert main(["data", "pack", "t.csv", "--output", "o", *options.split(), "--template", "a {c}", "--processes", "3"]) == 0
    assert calls == [
        ("t.csv", TableOptions("i", "c", "r", "s"), ["a {c}"]),
        (Job(source, Path("o"), ImageOptions(64, "webp", 80), 100), 3, "t.csv"),  # type: ignore[arg-type]
    ]
    assert capsys.readouterr().out.splitlines() == [
        "t.csv: a note",
        "o holds 297 samples (gif, jpg) in 3 shards, 1.0 MB",
        "3 bad rows, in o/bad_rows.jsonl: 3 x empty caption",
        "check them   flexiclip data check 'o/train-*.tar' --captions json:captions --images jpg,png,webp,gif",
        "in a recipe  data.train=o/train-*.tar data.captions=json:captions data.image_keys=[jpg,png,webp,gif]",
    ]
    assert main(["data", "pack", "t.csv", "--output", "o", "--no-captions"]) == 0
    assert calls[2] == ("t.csv", TableOptions(caption=""), [])
    assert calls[3][:1] == (Job(source, Path("o"), ImageOptions(), 2000),)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--quality 101", "'101' is not a whole number from 1 to 100"),
        ("--no-captions --caption-column c", "--no-captions and --caption-column exclude each other"),
        ("--format gif", "invalid choice: 'gif'"),
        ("", "t.csv: no such file or folder; give a .csv, .tsv, .parquet, .arrow or .tar file"),
    ],
)
def test_a_wrong_call_of_data_pack_is_one_line(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "pack", "t.csv", "--output", "o", *options.split()]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
