"""Tables as sources of a pack: CSV, TSV, Parquet, and what Hugging Face `datasets` saves, written by `datasets` itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit.shards import jpeg

from flexiclip.data.pack_open import open_source
from flexiclip.data.pack_rows import BadRow, Row, Source
from flexiclip.data.pack_tables import TableOptions
from flexiclip.errors import UserError

COUNT = 10


def unpacked(source: Source, start: int = 0, stop: int | None = None) -> list[tuple[object, str, dict[str, Any]]]:
    """(image, caption, fields) of the rows, all of which must be good."""
    found = []
    for row in source.rows(start, len(source) if stop is None else stop):
        assert isinstance(row, Row), row
        found.append((row.image, row.members.get("txt", b"").decode(), json.loads(row.members["json"])))
    return found


def write(path: Path, text: str, encoding: str = "utf-8") -> str:
    path.write_bytes(text.encode(encoding))
    return str(path)


@pytest.mark.parametrize(("name", "mark"), [("t.csv", ","), ("t.csv", ";"), ("t.csv", "\t"), ("t.tsv", "\t")])
def test_columns_are_guessed_and_rows_are_read_from_anywhere(tmp_path: Path, name: str, mark: str) -> None:
    lines = [mark.join(("id", "Image", "TEXT")), *(mark.join((str(n), f"a/{n}.jpg", f"Größe {n}")) for n in range(COUNT))]
    source = open_source(write(tmp_path / name, "\r\n".join(lines) + "\r\n\r\n"))
    every = unpacked(source)
    assert every == [(str(tmp_path / f"a/{n}.jpg"), f"Größe {n}", {"id": str(n), "Image": f"a/{n}.jpg"}) for n in range(COUNT)]
    assert [unpacked(source, n, n + 3) for n in (0, 4, 7)] == [every[n : n + 3] for n in (0, 4, 7)]
    assert source.notes == ["images from column 'Image', captions from column 'TEXT'"]


def test_quoted_cells_may_hold_everything(tmp_path: Path) -> None:
    text = '\ufefffilepath,title\na.jpg,"two\nlines, ""quoted"""\n\n"b,c.jpg",plain'
    source = open_source(write(tmp_path / "t.csv", text))
    assert [(row[0], row[1]) for row in unpacked(source)] == [
        (str(tmp_path / "a.jpg"), 'two\nlines, "quoted"'),
        (str(tmp_path / "b,c.jpg"), "plain"),
    ]
    assert unpacked(source, 1, 2)[0][1] == "plain"


def test_bad_rows_of_a_csv_are_named(tmp_path: Path) -> None:
    head = b"filepath,title,more\n"
    rows = [b"a.jpg,x\n", b",x,y\n", b"b.jpg,  ,y\n", b"c.jpg,\xff\xfe,y\n", b"d.jpg,good,\xff\n"]
    (tmp_path / "t.csv").write_bytes(head + b"".join(rows))
    *bad, good = open_source(str(tmp_path / "t.csv")).rows(0, 5)
    assert bad == [
        BadRow("row 0", "2 cells for 3 columns"),
        BadRow("row 1", "no image: filepath is empty"),
        BadRow("b.jpg", "empty caption"),
        BadRow("c.jpg", "caption is not UTF-8"),
    ]
    assert isinstance(good, Row)
    assert json.loads(good.members["json"])["more"] == "\udcff"


def test_paths_are_relative_to_the_table_then_to_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("work", "table", "root"):
        (tmp_path / folder).mkdir()
    table = write(tmp_path / "table/t.csv", "filepath,title\na.jpg,x\n")
    monkeypatch.chdir(tmp_path / "work")
    assert unpacked(open_source(table))[0][0] == str(tmp_path / "table/a.jpg")
    (tmp_path / "work/a.jpg").write_bytes(b"x")
    source = open_source(table)
    assert unpacked(source)[0][0] == "a.jpg"
    assert f"the working folder {tmp_path / 'work'}" in source.notes[1]
    (tmp_path / "table/a.jpg").write_bytes(b"x")
    assert unpacked(open_source(table))[0][0] == str(tmp_path / "table/a.jpg")
    rooted = open_source(table, TableOptions(root=str(tmp_path / "root")))
    assert unpacked(rooted)[0][0] == str(tmp_path / "root/a.jpg")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("url,words\nx,y\n", {}, "no column is known to hold images; it has url, words: name one by --image-column"),
        ("url,words\nx,y\n", {"image": "url"}, "hold captions; .* by --caption-column, or give --no-captions"),
        ("url,text\nx,y\n", {"image": "link"}, "no column 'link'; it has url, text: correct --image-column"),
        ("url,text\nhttps://x/y.jpg,y\n", {"image": "url"}, "fetch them with img2dataset"),
        ("filepath,title,title\na,b,c\n", {}, "the heading 'title' is given twice"),
        ("filepath,title\n", {}, "no rows below a heading"),
        ("", {}, "no rows below a heading"),
    ],
)
def test_tables_that_cannot_be_packed_are_refused(tmp_path: Path, text: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_source(write(tmp_path / "t.csv", text), TableOptions(**options))


def test_a_table_without_captions(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "t.csv", "filepath,label\na.jpg,cat\n"), TableOptions(caption=""))
    assert (source.captions, unpacked(source)[0][1:]) == ("", ("", {"filepath": "a.jpg", "label": "cat"}))


def parquet(folder: Path, files: dict[str, range], **columns: Any) -> str:
    folder.mkdir(exist_ok=True)
    for name, rows in files.items():
        made = {column: [value(n) for n in rows] for column, value in columns.items()}
        pq.write_table(pa.table(made), folder / name, row_group_size=3)
    return str(folder)


@pytest.mark.parametrize("image", [jpeg, lambda n: {"bytes": jpeg(n), "path": f"{n}.jpg"}])
def test_rows_of_parquet_files_come_from_any_row_group(tmp_path: Path, image: Any) -> None:
    files = {"a.parquet": range(7), "b.parquet": range(7, COUNT)}
    folder = parquet(tmp_path / "p", files, picture=image, caption=lambda n: f"caption {n}", mask=lambda n: b"x", size=float)
    source = open_source(folder)
    every = unpacked(source)
    assert every == [(jpeg(n), f"caption {n}", {"size": float(n)}) for n in range(COUNT)]
    for start, stop in ((0, 1), (2, 4), (5, 9), (9, 10), (3, 6)):
        assert unpacked(source, start, stop) == every[start:stop]
    assert source.notes == ["images from column 'picture', captions from column 'caption'", "columns of bytes are left out: mask"]


def test_lists_of_captions_and_empty_cells(tmp_path: Path) -> None:
    captions = [["one", " "], [], None, ["three", "four"]]
    folder = parquet(tmp_path / "p", {"a.parquet": range(4)}, jpg=lambda n: jpeg(n) if n else None, captions=captions.__getitem__)
    source = open_source(folder)
    assert source.captions == "json:captions"
    first, *empty, last = source.rows(0, 4)
    assert first == BadRow("a.parquet: row 0", "no image: jpg is empty")
    assert empty == [BadRow("a.parquet: row 1", "empty caption"), BadRow("a.parquet: row 2", "empty caption")]
    assert isinstance(last, Row)
    assert (last.members["txt"], json.loads(last.members["json"])) == (b"three", {"captions": ["three", "four"]})


def test_one_split_of_several_is_chosen(tmp_path: Path) -> None:
    files = {f"{split}-0000{part}-of-00002.parquet": range(part, part + 1) for split in ("train", "test") for part in (0, 1)}
    folder = parquet(tmp_path / "p", files, image=jpeg, text=lambda n: f"caption {n}")
    with pytest.raises(UserError, match="several splits: choose one by --split; it has test, train"):
        open_source(folder)
    with pytest.raises(UserError, match="no split 'val'"):
        open_source(folder, TableOptions(split="val"))
    assert [row[1] for row in unpacked(open_source(folder, TableOptions(split="train")))] == ["caption 0", "caption 1"]


def test_files_of_other_columns_are_refused(tmp_path: Path) -> None:
    parquet(tmp_path / "p", {"a.parquet": range(1)}, image=jpeg, text=str)
    folder = parquet(tmp_path / "p", {"b.parquet": range(1)}, image=jpeg, words=str)
    with pytest.raises(UserError, match=r"b\.parquet: its columns differ"):
        open_source(folder)
    (tmp_path / "p/b.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(UserError, match=r"b\.parquet: cannot be read"):
        open_source(folder)


@pytest.fixture
def saved(tmp_path: Path) -> datasets.Dataset:
    for n in range(COUNT):
        (tmp_path / f"{n}.jpg").write_bytes(jpeg(n))
    features = datasets.Features(
        {"photo": datasets.Image(), "text": datasets.Value("string"), "kind": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = {"photo": [str(tmp_path / f"{n}.jpg") for n in range(COUNT)], "text": [f"caption {n}" for n in range(COUNT)]}
    return datasets.Dataset.from_dict({**rows, "kind": [n % 2 for n in range(COUNT)]}, features=features)


def test_what_datasets_saves_is_read_with_the_names_of_its_classes(saved: datasets.Dataset, tmp_path: Path) -> None:
    saved.save_to_disk(tmp_path / "one", num_shards=2)
    source = open_source(str(tmp_path / "one"))
    expected = [(jpeg(n), f"caption {n}", {"kind": ("cat", "dog")[n % 2]}) for n in range(COUNT)]
    assert unpacked(source) == expected
    assert unpacked(source, 3, 7) == expected[3:7]
    assert (source.labels, source.classes) == ("json:kind", ("cat", "dog"))


def test_a_saved_dictionary_of_splits_and_its_parquet(saved: datasets.Dataset, tmp_path: Path) -> None:
    both = saved.train_test_split(test_size=4, shuffle=False)
    both.save_to_disk(tmp_path / "both")
    with pytest.raises(UserError, match="several splits: choose one by --split; it has test, train"):
        open_source(str(tmp_path / "both"))
    taken = unpacked(open_source(str(tmp_path / "both"), TableOptions(split="test")))
    assert [row[:2] for row in taken] == [(jpeg(n), f"caption {n}") for n in range(6, COUNT)]
    both["train"].to_parquet(tmp_path / "train.parquet")
    image, *rest = unpacked(open_source(str(tmp_path / "train.parquet")))[5]
    assert (Path(image).read_bytes() if isinstance(image, str) else image) == jpeg(5), (
        "some versions of `datasets` store the path"
    )
    assert rest == ["caption 5", {"kind": "dog"}]


def test_rows_that_datasets_selected_are_saved_as_they_are_read(saved: datasets.Dataset, tmp_path: Path) -> None:
    saved.select([7, 2]).save_to_disk(tmp_path / "some")
    assert [row[1] for row in unpacked(open_source(str(tmp_path / "some")))] == ["caption 7", "caption 2"]
