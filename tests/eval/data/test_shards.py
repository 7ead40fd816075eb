"""Samples of webdataset shards by number: images, captions, labels in members and in JSON, and the hash that finds them again."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flexiclip_eval import DatasetConfig, TaskConfig
from flexiclip_eval.data.shards import ShardSource, json_label, member_label, require_images, text_label
from kit.evaluation import toys, write_shards
from kit.roots import write_root
from kit.shards import good_sample, write_samples

from flexiclip.data.index import index_shard
from flexiclip.data.samples import BadSample
from flexiclip.errors import UserError

RETRIEVE, CLASSIFY = TaskConfig("retrieval"), TaskConfig("classification", label="cls")


@pytest.fixture
def config(tmp_path: Path) -> DatasetConfig:
    """Seven toys in two shards, of which sample 2 is broken."""
    shards = write_shards(tmp_path / "data", toys(7, (2,)), (4, 3))
    return DatasetConfig("toys", shards, (RETRIEVE, CLASSIFY), captions=("json:captions",), index_cache=str(tmp_path / "cache"))


def test_shard_source_has_the_samples_in_their_order(config: DatasetConfig) -> None:
    source = ShardSource(config)
    assert len(source) == 7
    for number, toy in enumerate(toys(7)):
        if number == 2:
            with pytest.raises(BadSample):
                source.item(number, ())
            continue
        item = source.item(number, ["cls", "json:category", "json:categories", "absent", "json:absent"])
        assert np.array_equal(np.asarray(item.image), np.asarray(toy.image))
        assert item.captions == toy.captions
        names = ("animals", "flags", "food", "objects", "people", "symbols")
        assert item.labels == {
            "cls": names.index(toy.category),
            "json:category": toy.category,
            "json:categories": (toy.category, names[number % 6]),
            "absent": None,
            "json:absent": None,
        }
    assert source.item(4, ()).labels == {}
    assert "0004" in source.item(4, ()).name


def test_shard_source_reads_no_captions_where_no_task_needs_them(config: DatasetConfig) -> None:
    source = ShardSource(replace(config, tasks=(CLASSIFY,), captions=("json:nowhere",)))
    assert source.item(0, ()).captions == ()


def test_shard_source_of_a_root_reads_the_shards_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    root = write_root(tmp_path / "wds_toys", "classification")
    source = ShardSource(DatasetConfig(root=str(root), tasks=(CLASSIFY,), index_cache=str(tmp_path / "cache")))
    assert [source.item(number, ["cls"]).labels["cls"] for number in range(13)] == [number % 3 for number in range(13)]


def test_shard_source_fingerprint_is_of_the_samples_and_not_of_their_folder(config: DatasetConfig, tmp_path: Path) -> None:
    known = ShardSource(config).fingerprint()
    assert ShardSource(replace(config, name="other", tasks=(RETRIEVE,))).fingerprint() == known
    data = tmp_path / "data"
    moved = replace(config, shards=str(tmp_path / "moved" / "part-*.tar"))
    data.rename(tmp_path / "moved")
    assert ShardSource(moved).fingerprint() == known
    file = tmp_path / "moved" / "part-1.tar"
    os.utime(file, ns=(0, 0))
    touched = ShardSource(moved).fingerprint()
    assert touched != known, "another time of change"
    file.rename(tmp_path / "moved" / "part-2.tar")
    assert ShardSource(moved).fingerprint() not in (known, touched), "another name"


def test_require_images_names_the_sample_without_one(tmp_path: Path) -> None:
    samples = [good_sample(0), {"__key__": "bare", "txt": b"no picture", "cls": b"1"}, good_sample(2)]
    index = index_shard(str(write_samples(tmp_path / "a.tar", samples)))
    with pytest.raises(UserError, match=r"a\.tar: the sample bare has no image, none of jpg, png: remove it or name image_keys$"):
        require_images(index, ("jpg", "png"))
    require_images(index, ("jpg", "txt"))
    require_images(index_shard(str(write_samples(tmp_path / "empty.tar", []))), ("jpg",))
    config = DatasetConfig("a", str(tmp_path / "a.tar"), (CLASSIFY,), index_cache=str(tmp_path / "cache"))
    with pytest.raises(UserError, match="the sample bare has no image"):
        ShardSource(config)


def test_text_label_is_a_number_of_at_most_18_digits() -> None:
    """Python refuses to read numbers of several thousand digits."""
    assert text_label("9" * 18) == 10**18 - 1
    assert text_label("9" * 19) == "9" * 19
    assert text_label("9" * 5000) == "9" * 5000
    assert [text_label(text) for text in (" 7 ", "007", " red fox ", " ", "-1", "²")] == [7, 7, "red fox", None, "-1", "²"]


def test_members_hold_numbers_and_names() -> None:
    found = [member_label("cls", raw) for raw in (b"3", b" 3\r\n", b"cat\n", b"", None, b"-1", b"1.0")]
    assert found == [3, 3, "cat", None, None, "-1", "1.0"]


def test_member_label_of_a_vector_and_json_label_of_a_list_are_several_classes() -> None:
    vector = io.BytesIO()
    np.save(vector, np.array([0, 1, 0, 1], dtype=np.int64))
    assert member_label("npy", vector.getvalue()) == (1, 3)
    assert member_label("npy", b"no array") is None
    pickled = io.BytesIO()
    np.save(pickled, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert member_label("npy", pickled.getvalue()) is None
    forged = io.BytesIO()
    np.lib.format.write_array_header_1_0(forged, {"descr": "<f8", "fortran_order": False, "shape": (2**40,)})
    assert member_label("npy", forged.getvalue() + bytes(64)) is None  # of 8 TB, which numpy.load would ask for
    assert json_label(["cat", 2]) == ("cat", 2)
    assert json_label(["cat", None]) is None
    assert json_label([]) == ()
