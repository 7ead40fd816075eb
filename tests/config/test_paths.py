"""One rule for relative paths in recipes, suites and tables: from the folder of the file, else, as a line says, from here."""

from __future__ import annotations

from pathlib import Path

import pytest
from flexiclip_eval.data.files import TableSource
from flexiclip_eval.suites.dataset import DatasetConfig
from flexiclip_eval.suites.load import load_suite
from PIL import Image

from flexiclip.config import SourceConfig, load
from flexiclip.config.paths import beside, beside_if_there
from flexiclip.errors import UserError


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """(a folder of a project, the working folder), which have a file of the same name, and one each that the other lacks."""
    project, here = tmp_path / "project", tmp_path / "here"
    for folder, own in ((project, "near"), (here, "far")):
        for name in ("both", own):
            path = folder / "data" / f"{name}-0.tar"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    monkeypatch.chdir(here)
    return project, here


def test_the_folder_of_the_file_goes_before_the_working_folder(
    apart: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    project, here = apart
    file = project / "a.yaml"
    for path in ("data/both-0.tar", "data/near-*.tar", "data/near-{0..3}.tar", "data"):
        assert beside(path, file) == str(project / path)
    assert beside("data/nowhere.tar", file) == str(project / "data" / "nowhere.tar"), "an error names the place of the rule"
    assert beside_if_there("data/nowhere.tar", file) is None
    for path in (str(here / "data"), "~/a", "s3://bucket/a", "pipe:cat a", "package:m/f", "open_clip:ViT-B-32", ""):
        assert beside(path, file) == path
    assert capsys.readouterr().err == ""
    for path in ("data/far-*.tar", "data/far-0.tar"):
        assert beside(path, file) == path
    wanted = f"data/far-*.tar is not beside {file}, and is taken from the working folder {here}\n"
    assert capsys.readouterr().err == wanted, "once a file"
    assert beside("data/far-0.tar", "a.yaml") == "data/far-0.tar"
    assert capsys.readouterr().err == "", "both folders are the same"


def test_only_rank_0_says_so(
    apart: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert beside("data/far-0.tar", apart[0] / "b.yaml") == "data/far-0.tar"
    assert capsys.readouterr().err == ""


def test_what_a_recipe_reads_follows_the_rule(apart: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    project, _ = apart
    (project / "low.yaml").write_text("seed: 6\ndata: {train: data/near-*.tar}\n")
    (project / "deep").mkdir()
    high = project / "deep" / "high.yaml"
    high.write_text(
        "base: ../low.yaml\nrun_dir: data\neval: {suites: [../suite.yaml, openmoji]}\n"
        "model: {image: {init: nowhere}}\ntokenizer: {path: ../words.model}\n"
    )
    for name in ("suite.yaml", "words.model"):
        (project / name).touch()
    config = load(high)
    assert (config.seed, config.data.train) == (6, str(project / "deep" / "../data/near-*.tar"))
    assert config.eval.suites == (str(project / "deep" / "../suite.yaml"), "openmoji")
    assert config.tokenizer.path == str(project / "deep" / "../words.model")
    assert (config.run_dir, config.model.image.init) == ("data", "nowhere"), "a place to write, and a name that is not a path"
    assert load(high, ["data.train=data/both-0.tar"]).data.train == "data/both-0.tar", "of the command line, from here"
    (project / "many.yaml").write_text("data: {train: [data/near-0.tar, {shards: [data/both-0.tar], weight: 2}]}\n")
    near, both = (str(project / "data" / f"{name}-0.tar") for name in ("near", "both"))
    assert load(project / "many.yaml").data.train == (near, SourceConfig((both,), 2.0))
    assert load("debug").data.train == "data/openmoji/train-*.tar", "an installed recipe is for every working folder"
    assert capsys.readouterr().err == ""
    (project / "wrong.yaml").write_text("base: lower\n")
    with pytest.raises(UserError, match="no recipe 'lower"):
        load(project / "wrong.yaml")


def test_a_suite_and_a_table_follow_the_rule(apart: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    project, here = apart
    for folder, name in ((project, "a"), (here, "b")):
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
        (folder / "images" / name).mkdir(parents=True)
    (project / "words.txt").write_text("cat\n")
    (project / "table.csv").write_text("filepath,title\na.png,an a\nb.png,a b\n")
    (project / "suite.yaml").write_text(
        "datasets:\n"
        "  - {name: s, shards: [data/near-*.tar], tasks: [{kind: classification, label: cls, classes: words.txt}]}\n"
        "  - {images: images, train: data}\n"
        "  - {csv: table.csv}\n"
        "  - {root: data, name: r, train: data}\n"
    )
    shards, images, table, root = load_suite("../project/suite.yaml").datasets
    assert (shards.shards, shards.tasks[0].classes) == (("../project/data/near-*.tar",), "../project/words.txt")
    assert (images.images, images.train, images.name) == ("../project/images", "../project/data", "images")
    assert (root.root, root.train) == ("../project/data", "data"), "the training split of a root is a name"
    assert capsys.readouterr().err == ""
    assert table.csv == "../project/table.csv"
    source = TableSource(DatasetConfig(csv=table.csv), table.csv)
    assert [entry.path for entry in source.entries] == ["../project/a.png", "b.png"]
    assert capsys.readouterr().err == f"b.png is not beside ../project/table.csv, and is taken from the working folder {here}\n"
