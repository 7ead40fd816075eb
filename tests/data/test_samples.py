"""Reading samples by number, the reasons a sample can be bad, and what a label may be."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.shards import good_sample, jpeg, write_samples
from PIL import Image

from flexiclip.data.check import check_shards
from flexiclip.data.remote import expand_shards
from flexiclip.data.samples import BadSample, Labels, Members, SampleStore, class_names, open_samples
from flexiclip.errors import UserError


def store_of(tmp_path: Path, *samples: dict[str, Any], captions: tuple[str, ...] = ("txt",)) -> SampleStore:
    return open_samples([str(write_samples(tmp_path / "x.tar", samples))], ("jpg", "png"), captions)


def test_a_store_is_a_flat_list(uneven: str) -> None:
    store = open_samples(expand_shards(uneven), ("jpg",), ("txt",))
    assert store.counts.tolist() == [1, 9, 2, 11]
    assert len(store) == 23
    for number in range(23):
        sample = store[number]
        assert store.number(*store.locate(number)) == number
        assert (sample.key, sample.captions) == (f"s{number:04d}", (f"caption number {number}",))
        assert np.array_equal(np.asarray(sample.image), np.asarray(Image.open(io.BytesIO(jpeg(number)))))
    assert store[10].name == "train-0002.tar/s0010"
    with pytest.raises(IndexError):
        store[23]


def test_captions_come_from_all_that_is_named(tmp_path: Path) -> None:
    meta = {"a": {"b": [" two ", "", "three", 5]}, "c": "four"}
    sample = {**good_sample(0), "txt": b"one\nmore\n", "json": json.dumps(meta).encode()}
    for spec, expected in [
        (("txt",), ("one\nmore",)),
        (("txt:lines",), ("one", "more")),
        (("json:a.b", "json:c", "txt", "alt"), ("two", "three", "four", "one\nmore")),
    ]:
        assert store_of(tmp_path, sample, captions=spec)[0].captions == expected
    store = store_of(tmp_path, sample)
    assert store[0].meta == meta
    assert store.captions(0, 0) == ("one\nmore",)


def test_the_first_of_the_image_keys_that_a_sample_has_is_read(tmp_path: Path) -> None:
    """Whatever stands first in the shard, and whatever format its content has."""
    both = {"__key__": "s", "jpg": jpeg(0), "png": jpeg(1, (10, 12)), "txt": b"x"}
    path = str(write_samples(tmp_path / "x.tar", [both]))
    for keys, size in ((("jpg", "png"), (24, 20)), (("png", "jpg"), (10, 12)), (("webp", "PNG"), (10, 12))):
        assert open_samples([path], keys, ("txt",))[0].image.size == size


def test_captions_are_cut_and_texts_too_long_are_refused(tmp_path: Path) -> None:
    for size in (8191, 8192, 8193):
        assert len(store_of(tmp_path, {**good_sample(0), "txt": b" " + b"x" * size})[0].captions[0]) == min(size, 8192)
    for size, fits in ((2**24, True), (2**24 + 1, False)):
        members = Members("a.tar", "k", {"txt": b"a" + b" " * (size - 1)})
        if fits:
            assert members.captions(("txt",)) == ("a",)
        else:
            with pytest.raises(BadSample, match="caption too long: txt has 16777217 bytes"):
                members.captions(("txt",))


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("spec", "member", "captions"),
    [
        ("txt", BOM + b"a cat\n", ("a cat",)),
        ("txt", BOM + BOM + b" a cat", ("a cat",)),
        ("txt:lines", BOM + b"a cat\r\n" + BOM + b"a dog\r\n", ("a cat", "a dog")),
        ("json:caption", BOM + b'{"caption": "a cat"}', ("a cat",)),
        ("json:caption", b'{"caption": ["\\ufeffa cat", "\\ufeff"]}', ("a cat",)),
        ("txt:lines", "a cat\u2028sits\na dog\x0bruns\x85x\rowl".encode(), ("a cat\u2028sits", "a dog\x0bruns\x85x", "owl")),
        ("json:caption", b'{"caption": ["good", "a \\ud83d b"]}', ("good",)),
    ],
)
def test_captions_without_byte_order_marks_and_line_by_line(
    tmp_path: Path, spec: str, member: bytes, captions: tuple[str, ...]
) -> None:
    sample = {**good_sample(0), spec.partition(":")[0]: member}
    assert store_of(tmp_path, sample, captions=(spec,))[0].captions == captions


@pytest.mark.parametrize("member", [b"", BOM + b'{"a": 1}', b"{", b"[1]", b"\xff\xfe"])
def test_a_json_member_that_nothing_reads_does_not_matter(tmp_path: Path, uneven: str, loader_of: Any, member: bytes) -> None:
    path = write_samples(tmp_path / "x.tar", [{**good_sample(n), "json": member} for n in range(3)])
    for sequential in (False, True):
        (batch,) = loader_of(str(path), steps=1, global_batch_size=3, sequential=sequential)
        assert (set(batch.captions) <= {f"caption number {n}" for n in range(3)}, batch.bad) == (True, [])
    assert check_shards([str(path)], ("jpg",), ("txt",)).bad == []
    sample = open_samples([str(path)], ("jpg",), ("txt",))[0]  # for whoever asks for it
    if b"a" in member:
        assert sample.meta == {"a": 1}
    elif member == b"[1]":
        assert sample.meta == {}
    else:
        with pytest.raises(BadSample, match="json"):
            _ = sample.meta


def test_other_members_on_demand(tmp_path: Path) -> None:
    store = store_of(tmp_path, {**good_sample(0), "cls": b"7"}, captions=())
    assert store.member(0, 0, "cls") == b"7"
    assert store.member(0, 0, "npy") is None
    assert store[0].captions == ()


@pytest.mark.parametrize(
    ("change", "captions", "reason"),
    [
        ({"jpg": None}, ("txt",), "no image: none of jpg, png"),
        ({"jpg": b"not an image"}, ("txt",), "image cannot be decoded: UnidentifiedImageError"),
        ({"jpg": jpeg(0)[:-200]}, ("txt",), "image cannot be decoded: OSError: .*runcated"),
        ({"jpg": b""}, ("txt",), "image cannot be decoded"),
        ({"txt": b" \n"}, ("txt",), "empty caption"),
        ({"txt": None}, ("txt",), "no caption: none of txt"),
        ({"txt": b"caf\xe9"}, ("txt",), "txt is not UTF-8"),
        ({"json": b'{"caption": '}, ("json:caption",), "json cannot be parsed"),
        ({"json": b'{"caption": 5}'}, ("json:caption",), "no caption: none of json:caption"),
        ({"json": b"[1]"}, ("json:caption",), "no caption"),
        ({"json": b'{"caption": "\\ud800"}'}, ("json:caption",), "caption is not Unicode"),
        ({"txt": BOM}, ("txt",), "empty caption"),
        ({"txt": "a cat".encode("utf-16")}, ("txt",), "txt is not UTF-8"),
    ],
)
def test_bad_samples_say_why(tmp_path: Path, change: dict[str, Any], captions: tuple[str, ...], reason: str) -> None:
    sample = {name: data for name, data in {**good_sample(0), **change}.items() if data is not None}
    store = store_of(tmp_path, sample, captions=captions)
    with pytest.raises(BadSample, match=reason) as caught:
        store[0]
    assert (caught.value.shard, caught.value.key) == (store.urls[0], "s0000")
    assert pickle.loads(pickle.dumps(caught.value)).as_dict() == caught.value.as_dict()


def test_a_shard_that_changes_underneath(tmp_path: Path) -> None:
    store = store_of(tmp_path, *(good_sample(n) for n in range(4)))
    path = Path(store.urls[0])
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(BadSample, match="short read"):
        store[3]
    gone = open_samples([str(write_samples(tmp_path / "y.tar", [good_sample(0)]))], ("jpg",), ("txt",))
    (tmp_path / "y.tar").unlink()
    with pytest.raises(BadSample, match="No such file"):
        gone[0]


NAMES = ("cat", "dog", "7", "bird")


@pytest.mark.parametrize(
    ("spec", "members", "found"),
    [
        ("cls", {"cls": b"1\n"}, (1,)),
        ("cls", {"cls": b"bird"}, (3,)),
        ("cls", {"cls": b"7"}, (2,)),  # a name before a number
        ("cls", {"cls": b"\xef\xbb\xbfbird\r\n"}, (3,)),
        ("cls", {"cls": b"\xef\xbb\xbf1"}, (1,)),
        ("json:kind", {"json": b'{"kind": "dog"}'}, (1,)),
        ("json:kind", {"json": b'\xef\xbb\xbf{"kind": "dog"}'}, (1,)),
        ("json:kind.of", {"json": b'{"kind": {"of": [3, "cat", 0]}}'}, (3, 0)),
    ],
)
def test_a_label_is_a_name_or_a_number(spec: str, members: dict[str, bytes], found: tuple[int, ...]) -> None:
    assert Labels(spec, NAMES).read(Members("a.tar", "k", members)) == found


@pytest.mark.parametrize(
    ("spec", "members", "reason"),
    [
        ("cls", {"txt": b"cat"}, "no label: it has no cls"),
        ("cls", {"cls": b"4"}, "label '4' is none of the 4 classes"),
        ("cls", {"cls": b"-1"}, "label '-1' is none of the 4 classes"),
        ("cls", {"cls": b"9" * 5000}, "is none of the 4 classes"),
        ("cls", {"cls": b"\xff"}, "cls is not UTF-8"),
        ("json:kind", {"json": b'{"kind": null}'}, "no label: json:kind is empty"),
        ("json:kind", {"json": b'{"kind": ["cat", "cow"]}'}, "label 'cow' is none of"),
        ("json:kind", {"json": b'{"kind": true}'}, "label 'True' is none of"),
    ],
)
def test_what_is_no_label_makes_a_bad_sample(spec: str, members: dict[str, bytes], reason: str) -> None:
    with pytest.raises(BadSample, match=r"a\.tar") as caught:
        Labels(spec, NAMES).read(Members("a.tar", "k", members))
    assert reason in caught.value.reason


def test_class_names(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a cat\n\n dog \n", encoding="utf-8")
    assert class_names(str(tmp_path / "names.txt")) == ("a cat", "dog")
    (tmp_path / "names.txt").write_bytes("\ufeffa cat\r\n\r\ndog\u2028s\r\n".encode())
    assert class_names(str(tmp_path / "names.txt")) == ("a cat", "dog\u2028s")
    assert class_names(3) == ("0", "1", "2")
    for wrong, said in ((("x", "y", "x"), "'x' twice"), (1, "1 classes; expected 2"), (str(tmp_path / "no"), "is not a file")):
        with pytest.raises(UserError, match=said):
            class_names(wrong)
