"""Tables of paths and captions as spreadsheets and other programs write them: read whole, or refused with the line."""

from __future__ import annotations

from pathlib import Path

import pytest
from flexiclip_eval import DatasetConfig
from flexiclip_eval.data.files import TableSource
from flexiclip_eval.suites.complete import complete
from PIL import Image

from flexiclip.errors import UserError

TWO = [("im/0.png", ("a red cat",)), ("im/1.png", ("a dog",))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "im").mkdir()
    for name in ("0.png", "1.png", "a, b.png", "猫.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "im" / name)
    return tmp_path


def read(folder: Path, text: str | bytes, labels: tuple[str, ...] = ()) -> list[tuple[str, tuple[str, ...]]]:
    """(path, captions) of each image, then with `labels` what these columns hold."""
    table = folder / "captions.csv"
    table.write_bytes(text.encode() if isinstance(text, str) else text)
    source = TableSource(complete(DatasetConfig(csv=str(table))), str(table))
    items = [source.item(i, labels) for i in range(len(source))]
    return [(item.name, item.captions if not labels else tuple(str(item.labels[key]) for key in labels)) for item in items]


@pytest.mark.parametrize(
    "text",
    [
        "filepath,title\nim/0.png,a red cat\nim/1.png,a dog\n",
        "filepath\ttitle\nim/0.png\ta red cat\nim/1.png\ta dog",
        "\ufefffilepath,title\r\nim/0.png,a red cat\r\nim/1.png,a dog\r\n",
        "\ufefffilepath\ttitle\r\nim/0.png\ta red cat\r\nim/1.png\ta dog\r\n",
        '\ufeff"filepath","title"\nim/0.png,a red cat\nim/1.png,a dog\n',
        "filepath,title\rim/0.png,a red cat\rim/1.png,a dog\r",
        "\n\nfilepath,title\n\nim/0.png,a red cat\n\n\nim/1.png,a dog\n\n",
        ",filepath,title\n0,im/0.png,a red cat\n1,im/1.png,a dog\n",
        "filepath,title,,\nim/0.png,a red cat,,\nim/1.png,a dog,x\n",
        "filepath,title,lang\nim/0.png,a red cat\nim/1.png,a dog,en\n",
        "filepath,title,no\tte\nim/0.png,a red cat,x\nim/1.png,a dog,y\n",
        "title,filepath\na red cat,im/0.png\na dog,im/1.png\n",
    ],
)
def test_a_table_source_reads_what_programs_write(text: str, folder: Path) -> None:
    assert read(folder, text) == TWO


def test_a_table_source_keeps_cells_as_they_are(folder: Path) -> None:
    text = 'filepath,title\nim/0.png,"a red\ncat, ""big"""\n"im/a, b.png",12" ruler\nim/猫.png,a\tdog\n'
    expected = [("im/0.png", ('a red\ncat, "big"',)), ("im/a, b.png", ('12" ruler',)), ("im/猫.png", ("a\tdog",))]
    assert read(folder, text) == expected
    tabs = "filepath\ttitle\nim/0.png\tA cat, sitting, asleep\n"
    assert read(folder, tabs) == [("im/0.png", ("A cat, sitting, asleep",))]
    assert read(folder, "filepath,title,kind,n\nim/0.png,x,bird\nim/1.png,y,,3\n", ("kind", "n")) == [
        ("im/0.png", ("bird", "None")),
        ("im/1.png", ("None", "3")),
    ]


def test_an_image_is_one_however_its_path_is_written(folder: Path) -> None:
    text = f"filepath,title\nim/0.png,a\n./im/0.png,b\n{folder}/im/0.png,c\nim/../im/1.png,d\nim/0.png,a\n"
    assert read(folder, text) == [("im/0.png", ("a", "b", "c", "a")), ("im/../im/1.png", ("d",))]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("filepath,title\nim/1.png,a dog\nim/0.png,A cat, sitting, asleep\n", "line 3: 4 cells under a heading of 2"),
        ("filepath\ttitle\nim/0.png\tA cat\tsitting\n", "line 2: 3 cells under a heading of 2; a cell with a tab"),
        ("filepath,title\nim/0.png,a red cat,\n", "line 2: 3 cells under a heading of 2; a cell with a comma"),
        ('filepath,title\nim/0.png,"a\nred\ncat"\nim/1.png,a,b\n', "line 5: 3 cells"),
        ('filepath,title\nim/0.png,"a\nred\ncat"\nim/9.png,b\n', "line 5: a caption without an image: 'im/9.png' is no file"),
        ('filepath,title\n\n\nim/0.png,"a\n\ncat",x\n', "line 4: 3 cells"),
        ("filepath,title\r\nim/0.png,a\r\nim/1.png,a,b\r\n", "line 3: 3 cells"),
        ("filepath,title\rim/0.png,a\rim/1.png,a,b\r", "line 3: 3 cells"),
        ('filepath,title\nim/0.png, "a red cat, big"\n', "line 2: 3 cells"),
        ("filepath,title,title\nim/0.png,a,b\n", "its heading has two columns 'title'"),
        ("filepath,title,kind,kind\nim/0.png,a,b,c\n", "its heading has two columns 'kind'"),
        ("filepath,title\nim/0.png\n", "line 2: 'title' is empty"),
        ("filepath,title\nim/0.png,\n", "line 2: 'title' is empty"),
        ("filepath,title\n,a cat\n", "line 2: a caption without an image: 'filepath' is empty"),
        ("filepath,title\nim,a cat\n", "line 2: a caption without an image: 'im' is no file"),
        ('filepath\ttitle\nim/1.png\ta\nim/0.png\t"Hello" he said\n', "line 3: not CSV"),
        ('filepath\ttitle\nim/0.png\t"a cat\nim/1.png\ta dog\n', "line 2: not CSV"),
        ("filepath;title\nim/0.png;a red cat\n", "no column 'filepath'; it has filepath;title"),
        ("im/0.png,a red cat\nim/1.png,a dog\n", "no column 'filepath'; it has im/0.png, a red cat"),
        ("path\ttext\nim/0.png\ta red cat\n", "no column 'filepath'; it has path, text"),
        ("", "is empty"),
        ("filepath,title\nim/0.png,caf\xe9\n".encode("latin-1"), "not UTF-8"),
        ("filepath,title\nim/0.png,cat\n".encode("utf-16"), "not UTF-8"),
    ],
)
def test_a_table_source_refuses_with_the_line(text: str | bytes, said: str, folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(folder, text)
    assert said in str(caught.value)
    assert str(folder / "captions.csv") in str(caught.value)
