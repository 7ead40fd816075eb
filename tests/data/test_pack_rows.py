"""Folders of images and shards as sources of a pack."""

from __future__ import annotations

import json
from pathlib import Path

from kit.shards import jpeg, write_samples

from flexiclip.data.pack_open import open_source
from flexiclip.data.pack_rows import BadRow, FolderSource, Row, ShardSource, json_bytes


def images(folder: Path, *paths: str) -> str:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(jpeg(1))
    return str(folder)


def rows(source: FolderSource | ShardSource) -> list[Row]:
    found = list(source.rows(0, len(source)))
    assert all(isinstance(row, Row) for row in found)
    return found  # type: ignore[return-value]


def fields(row: Row) -> object:
    return json.loads(row.members["json"])


def test_the_first_folder_of_a_path_is_the_class(tmp_path: Path) -> None:
    folder = images(
        tmp_path / "pets", "dog/b.jpg", "dog/deep/a.PNG", "cat/c.jpeg", ".hidden/x.jpg", "cat/._c.jpeg", "dog/notes.md"
    )
    source = open_source(folder)
    assert isinstance(source, FolderSource)
    assert (source.classes, source.labels, source.captions) == (("cat", "dog"), "json:class", "")
    assert [(row.where, fields(row), row.members.keys()) for row in rows(source)] == [
        (path, {"class": name, "path": path}, {"json"})
        for path, name in (("cat/c.jpeg", "cat"), ("dog/b.jpg", "dog"), ("dog/deep/a.PNG", "dog"))
    ]


def test_templates_make_captions_of_the_names(tmp_path: Path) -> None:
    folder = images(tmp_path / "pets", "red_panda/a.jpg", "cat/a.jpg")
    one = open_source(folder, templates=["a photo of a {c}, a {c}"])
    assert (one.captions, [row.members["txt"] for row in rows(one)]) == (  # type: ignore[arg-type]
        "txt",
        [b"a photo of a cat, a cat", b"a photo of a red panda, a red panda"],
    )
    two = open_source(folder, templates=["{c}", "a {c}"])
    last = rows(two)[-1]  # type: ignore[arg-type]
    assert two.captions == "json:captions"
    assert last.members["txt"] == b"red panda"
    assert fields(last) == {"path": "red_panda/a.jpg", "class": "red_panda", "captions": ["red panda", "a red panda"]}


def test_captions_and_fields_beside_the_images(tmp_path: Path) -> None:
    """As trainers of image generators, and img2dataset with --output_format files, lay them down."""
    folder = images(tmp_path / "set", "00000/1.jpg", "00000/2.jpg")
    (tmp_path / "set/00000/1.txt").write_text("\ufeffa first caption\n", encoding="utf-8")
    (tmp_path / "set/00000/1.json").write_text('{"url": "u", "key": "1"}')
    source = open_source(folder)
    assert (source.captions, source.classes) == ("txt", ())
    first, second = source.rows(0, 2)
    assert isinstance(first, Row)
    assert first.members["txt"] == b"a first caption"
    assert fields(first) == {"url": "u", "key": "1", "path": "00000/1.jpg"}
    assert second == BadRow("00000/2.jpg", "empty caption")


def img2dataset(folder: Path) -> str:
    """Two shards as img2dataset writes them, with the statistics beside them."""
    folder.mkdir()
    for shard, count in enumerate((3, 2)):
        samples = [
            {
                "__key__": f"{shard:05d}{n:04d}",
                "jpg": jpeg(n),
                "txt": f"caption {n}".encode(),
                "json": b'{"url": "u"}',
                "cls": b"4",
            }
            for n in range(count)
        ]
        write_samples(folder / f"{shard:05d}.tar", samples)
        status = {"success": count, "HTTP Error 404": 2, "timeout": 1}
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps({"count": count + 3, "status_dict": status}))
        (folder / f"{shard:05d}.parquet").write_bytes(b"PAR1")
    return str(folder)


def test_the_members_of_shards_are_copied(tmp_path: Path) -> None:
    source = open_source(img2dataset(tmp_path / "laion"))
    assert isinstance(source, ShardSource)
    found = rows(source)
    assert [row.image for row in found] == [jpeg(n) for n in (0, 1, 2, 0, 1)]
    assert found[3].members == {"txt": b"caption 0", "json": b'{"url": "u"}', "cls": b"4"}
    assert list(source.rows(2, 4)) == found[2:4]
    assert source.notes == ["6 of 11 rows were not downloaded by img2dataset: 4 x HTTP Error 404; 2 x timeout"]
    assert not list((tmp_path / "laion").glob("*.index")), "the source is left as it is"


def test_samples_that_lack_something_and_damage_are_named(tmp_path: Path) -> None:
    samples = [{"__key__": "a", "txt": b"words"}, {"__key__": "b", "jpg": jpeg(1), "txt": b" "}, {"__key__": "c", "jpg": jpeg(1)}]
    whole = write_samples(tmp_path / "0.tar", samples)
    source = ShardSource([str(whole)])
    assert [row.reason if isinstance(row, BadRow) else "" for row in source.rows(0, 3)] == ["no image", "empty caption", ""]
    cut = write_samples(tmp_path / "1.tar", [{"__key__": str(n), "jpg": jpeg(n), "txt": b"words"} for n in range(4)])
    cut.write_bytes(cut.read_bytes()[:-15000])
    damaged = ShardSource([str(cut)])
    assert 0 < len(damaged) < 4
    assert damaged.damage[0].where == str(cut)
    assert "truncated" in damaged.damage[0].reason


def test_fields_that_json_cannot_hold_become_text() -> None:
    import datetime

    found = json_bytes({"day": datetime.date(2020, 2, 1), "name": "\udcff", "words": "ü"})
    assert json.loads(found) == {"day": "2020-02-01", "name": "\udcff", "words": "ü"}
