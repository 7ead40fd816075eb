"""What to say about a file that cannot be read: what stands there in its place, and a library's reason on one line.

The usual cause is a download that brought something else: a web page with an error, a Git LFS pointer, an archive, nothing.
"""

from __future__ import annotations

import re
from pathlib import Path

_HEAD = 1024  # bytes that are looked at
_SHOWN = 60  # characters of a text that are quoted
_LFS = b"version https://git-lfs.github.com/spec/"
_PAGE = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<error")
_AGAIN = "download the file again"
_BINARY = {
    b"\x1f\x8b": "it is a gzip archive; unpack it with gunzip",
    b"BZh": "it is a bzip2 archive; unpack it with bunzip2",
    b"\xfd7zXZ\0": "it is an xz archive; unpack it with unxz",
    b"\x28\xb5\x2f\xfd": "it is a zstd archive; unpack it with unzstd",
    b"\x89HDF": "it is an HDF5 file of Keras; take the weights for PyTorch",
}
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|\\x1b\[[0-9;]*[A-Za-z]")
_ADDRESS = re.compile(r"<?([\w.]+) object at 0x[0-9a-fA-F]+>?")
_UNPICKLER = re.compile(r"WeightsUnpickler error: *(.*?)(?: Check the documentation | *$)")


def stands_there(content: bytes | Path) -> str | None:
    """What stands in the place of a binary file or of JSON, as a clause with the fix; None when the content may be the real one.

    content: a path, or the first bytes. A text that is neither a page nor a pointer is left to `text_there`.
    """
    head = _head(content)
    if not head:
        return f"it is empty; {_AGAIN}"
    if head.startswith(_LFS):
        return "it is a Git LFS pointer; run `git lfs pull` in its repository, or download the file itself"
    if _text_of(head).lower().startswith(_PAGE):
        return f"it is a web page, as servers send with an error or for a login; {_AGAIN}"
    return next((said for magic, said in _BINARY.items() if head.startswith(magic)), None)


def text_there(content: bytes | Path) -> str | None:
    """`stands_there`, or the beginning of any other text, for formats that are never text."""
    head = _head(content)
    found = stands_there(head)
    if found is not None:
        return found
    text = _text_of(head)[:_SHOWN].decode("utf-8", errors="replace")
    if text.isascii() and all(c.isprintable() or c.isspace() for c in text) and text.strip():
        return f"it is a text that begins {text.strip()!r}; {_AGAIN}"
    return None


def short_reason(error: BaseException) -> str:
    """The text of a library's error as a part of our line: no escape codes, no addresses of objects, nothing said twice."""
    text = " ".join(_ESCAPES.sub("", str(error)).split())
    inner = _UNPICKLER.search(text)
    text = _ADDRESS.sub(r"\1", inner[1] if inner else text).strip().removesuffix(".")
    half = len(text) // 2
    for cut in range(max(half - 2, 1), half + 3):  # "X: X", "X; X"
        first, second = text[:cut].strip(" :;,."), text[cut:].strip(" :;,.")
        if first and first == second:
            text = first
    return text or type(error).__name__


def _head(content: bytes | Path) -> bytes:
    if isinstance(content, bytes):
        return content[:_HEAD]
    with content.open("rb") as file:
        return file.read(_HEAD)


def _text_of(head: bytes) -> bytes:
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()
