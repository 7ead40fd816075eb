"""A folder of classes against torchvision's ImageFolder on the same tree, and what is left out besides."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from flexiclip_eval import DatasetConfig, TaskConfig
from flexiclip_eval.data.files import FolderSource
from flexiclip_eval.data.images import open_source
from flexiclip_eval.suites.complete import complete
from flexiclip_eval.suites.layout import class_folders, class_images
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
    with pytest.raises(UserError, match="holds no folder; each class needs one"):
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
