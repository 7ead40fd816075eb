"""What is said of files that cannot be read."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from flexiclip.files import short_reason, stands_there, text_there


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"\xef\xbb\xbf  <HTML lang=en>", "it is a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "it is a Git LFS pointer"),
        (gzip.compress(b"x", mtime=0), "it is a gzip archive"),
        (b"BZh91AY", "it is a bzip2 archive"),
        (b"\xfd7zXZ\0\0", "it is an xz archive"),
        (b"\x28\xb5\x2f\xfd\x00", "it is a zstd archive"),
        (b"\x89HDF\r\n", "it is an HDF5 file"),
    ],
)
def test_stands_there_names_it_with_what_to_do(content: bytes, said: str, tmp_path: Path) -> None:
    found = stands_there(content)
    assert found is not None
    assert found.startswith(said)
    assert "; " in found
    (tmp_path / "x").write_bytes(content)
    assert stands_there(tmp_path / "x") == text_there(content) == found


@pytest.mark.parametrize(
    "content", [b'{"a": 1}', b"[PAD]\n[UNK]\n", b"#version: 0.2\n", b"PK\3\4", b"\x80\2}q\0", b"\x93NUMPY\1\0"]
)
def test_stands_there_leaves_what_may_be_real_alone(content: bytes) -> None:
    assert stands_there(content) is None


def test_text_there_quotes_the_beginning_of_a_text_and_no_bytes() -> None:
    assert (
        text_there(b"Not Found\n" + b"x" * 500)
        == "it is a text that begins " + repr("Not Found\n" + "x" * 50) + "; download the file again"
    )
    for content in (b"\x80\2}q\0", b"PK\3\4\0\0", bytes(range(256)), b" \n "):
        assert text_there(content) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cannot identify image file <_io.BytesIO object at 0x7f3b5e841550>", "cannot identify image file _io.BytesIO"),
        ("\x1b[1mdo not\x1b[0m trust it", "do not trust it"),
        ("no such file: no such file", "no such file"),
        ("bad header; bad header.", "bad header"),
        ("one\n  two\n", "one two"),
        ("", "ValueError"),
        (
            "Weights only load failed.\nWeightsUnpickler error: Unsupported operand 149 \n\nCheck the documentation of x",
            "Unsupported operand 149",
        ),
        ("banana", "banana"),
    ],
)
def test_reason_is_a_part_of_a_line(text: str, said: str) -> None:
    assert short_reason(ValueError(text)) == said
