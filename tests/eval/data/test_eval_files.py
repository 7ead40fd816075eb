"""A folder of classes against torchvision's ImageFolder on the same tree, and which files are left out besides.

Tables of paths and captions, as spreadsheets and other programs write them, are read whole, or refused with the line.
"""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from flexiclip_eval import DatasetConfig, TaskConfig
from flexiclip_eval.data.files import FolderSource, TableSource
from flexiclip_eval.data.images import open_source
from flexiclip_eval.suites.layout import class_folders, class_images
from flexiclip_eval.suites.load import complete
from PIL import Image
from torchvision.datasets import ImageFolder

from flexiclip.errors import UserError


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (200, 30, 30)).save(path, "PNG")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes with upper-case endings, folders inside folders and links, and files that are no images."""
    root = tmp_path / "pets"
    for name in ("owl/a.JPG", "owl/b.PnG", "owl/deep/er/c.webp", "red_fox/d.jpeg", "red_fox/e.ppm", "red_fox/f.pgm", "g.png"):
        picture(root / name)
    (root / "owl" / "notes.txt").write_text("no image")
    (root / "README.md").write_text("no class")
    picture(tmp_path / "elsewhere" / "h.tif")
    picture(tmp_path / "elsewhere" / "sub" / "i.bmp")
    (root / "owl" / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "red_fox" / "linked.png").symlink_to(tmp_path / "elsewhere" / "h.tif")
    (root / "newt").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    return root


def found(root: Path) -> list[tuple[str, str]]:
    return [(path, name) for name in class_folders(str(root)) for path in class_images(str(root), name)]


def test_class_images_are_those_of_image_folder(tree: Path) -> None:
    theirs = ImageFolder(str(tree))
    assert class_folders(str(tree)) == theirs.classes == ["newt", "owl", "red_fox"]
    assert sorted(found(tree)) == sorted((path, theirs.classes[number]) for path, number in theirs.samples)
    assert len(found(tree)) == 11
    source = FolderSource(complete(DatasetConfig(images=str(tree))), str(tree))
    assert len(source) == 11
    assert source.item(0, ["folder"]).labels == {"folder": "newt"}


def test_junk_is_no_class_and_no_image(tree: Path) -> None:
    before = found(tree)
    for name in (
        "__MACOSX/owl/._a.JPG",
        ".git/x.png",
        "owl/._a.JPG",
        "owl/.hidden.png",
        "owl/.ipynb_checkpoints/a-checkpoint.jpg",
    ):
        picture(tree / name)
    picture(tree / "owl" / "__MACOSX" / "a.png")
    assert found(tree) == before


def test_a_link_to_a_folder_above_ends_there(tree: Path) -> None:
    before = found(tree)
    (tree / "owl" / "round").symlink_to(tree / "owl")
    (tree / "owl" / "deep" / "up").symlink_to(tree / "owl")
    assert found(tree) == before
    (tree / "owl" / "gone").symlink_to(tree / "nowhere")  # neither a folder nor a picture
    assert found(tree) == before


def test_a_class_folder_without_an_image_is_refused(tree: Path) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(FileNotFoundError):
        ImageFolder(str(tree))
    with pytest.raises(UserError, match="the class 'empty' has no image; remove its folder or fill it"):
        FolderSource(complete(DatasetConfig(images=str(tree))), str(tree))
    picture(tree / "empty" / ".only-hidden.png")
    with pytest.raises(UserError, match="the class 'empty' has no image"):
        FolderSource(complete(DatasetConfig(images=str(tree))), str(tree))
    with pytest.raises(UserError, match="has no folders; put the images of each class into a folder"):
        class_folders(str(tree / "red_fox"))
    with pytest.raises(UserError, match="cannot be read: No such file"):
        class_folders(str(tree / "nothing"))


def test_names_that_are_not_utf8(tree: Path) -> None:
    """A file is read and named with escapes; a class is refused, for its name goes into prompts."""
    picture(Path(os.fsdecode(os.fsencode(tree / "owl") + b"/caf\xe9.png")))
    source = FolderSource(complete(DatasetConfig(images=str(tree))), str(tree))
    assert len(source) == 12
    assert "owl/caf\\udce9.png" in [source.item(i, []).name for i in range(12)]
    assert len(source.fingerprint()) == 64
    (tree / os.fsdecode(b"\xe9ne")).mkdir()
    with pytest.raises(UserError, match=r"the class folder \\udce9ne is not UTF-8; rename it"):
        class_folders(str(tree))


def test_images_are_decoded_whole(tmp_path: Path) -> None:
    """Training may decode a JPEG at an eighth of its size; evaluation never does, from shards, folders and tables alike."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    (tmp_path / "pets" / "owl").mkdir(parents=True)
    file = tmp_path / "pets" / "owl" / "a.jpg"
    Image.fromarray(np.kron(noise[::4, ::4], np.ones((16, 16, 1), np.uint8))).save(file, quality=90)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(file, "a.jpg")
    (tmp_path / "a.csv").write_text("filepath,title\npets/owl/a.jpg,an owl\n")
    expected = np.asarray(Image.open(file).convert("RGB"))
    assert expected.shape == (1200, 1600, 3)
    shards = DatasetConfig("s", str(tmp_path / "a.tar"), (TaskConfig("linear_probe", label="cls"),))
    others = [complete(DatasetConfig(images=str(tmp_path / "pets"))), complete(DatasetConfig(csv=str(tmp_path / "a.csv")))]
    for config in (shards, *others):
        assert np.array_equal(np.asarray(open_source(config).item(0, []).image), expected)


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
        (
            'filepath,title\nim/0.png,"a\nred\ncat"\nim/9.png,b\n',
            "line 5: a caption without an image: there is no file 'im/9.png'",
        ),
        ('filepath,title\n\n\nim/0.png,"a\n\ncat",x\n', "line 4: 3 cells"),
        ("filepath,title\r\nim/0.png,a\r\nim/1.png,a,b\r\n", "line 3: 3 cells"),
        ("filepath,title\rim/0.png,a\rim/1.png,a,b\r", "line 3: 3 cells"),
        ('filepath,title\nim/0.png, "a red cat, big"\n', "line 2: 3 cells"),
        ("filepath,title,title\nim/0.png,a,b\n", "its heading has two columns 'title'"),
        ("filepath,title,kind,kind\nim/0.png,a,b,c\n", "its heading has two columns 'kind'"),
        ("filepath,title\nim/0.png\n", "line 2: 'title' is empty"),
        ("filepath,title\nim/0.png,\n", "line 2: 'title' is empty"),
        ("filepath,title\n,a cat\n", "line 2: a caption without an image: 'filepath' is empty"),
        ("filepath,title\nim,a cat\n", "line 2: a caption without an image: there is no file 'im'"),
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
