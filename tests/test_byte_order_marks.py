"""A byte order mark, as Windows editors write it, is no part of any text that is read. tests/data has members of shards."""

from __future__ import annotations

from pathlib import Path

from flexiclip_eval.data.files import TableSource
from flexiclip_eval.data.shards import member_label
from flexiclip_eval.suites.dataset import DatasetConfig
from flexiclip_eval.suites.layout import lines, read_json, require_text
from flexiclip_eval.suites.load import load_suite
from flexiclip_eval.suites.task import TaskConfig
from PIL import Image

from flexiclip.config import load
from flexiclip.files import read_json as read_weights_json


def marked(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8-sig")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    return str(path)


def test_recipes_and_suites(tmp_path: Path) -> None:
    assert load(marked(tmp_path / "r.yaml", "seed: 3\n")).seed == 3
    marked(tmp_path / "base.yaml", "seed: 4\n")
    assert load(marked(tmp_path / "r.yaml", f"base: {tmp_path}/base.yaml\n")).seed == 4
    task = "{kind: retrieval}"
    suite = load_suite(marked(tmp_path / "s.yaml", f"datasets: [{{name: d, shards: a.tar, captions: [txt], tasks: [{task}]}}]\n"))
    assert suite.datasets[0].name == "d"


def test_byte_order_marks_of_texts_that_come_with_samples(tmp_path: Path) -> None:
    assert lines(require_text(marked(tmp_path / "classnames.txt", "red\r\nblue\r\n"))) == ("red", "blue")
    assert read_json(marked(tmp_path / "prompts.json", '{"red": ["a"]}')) == {"red": ["a"]}
    assert member_label("cls", "\ufeff4\n".encode()) == 4
    assert member_label("cls", "\ufeffred".encode()) == "red"


def test_byte_order_marks_of_tables(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    table = marked(tmp_path / "t.csv", "filepath,title\na.png,a cat\n")
    item = TableSource(DatasetConfig(csv=table, tasks=(TaskConfig(kind="retrieval"),)), table).item(0, ())
    assert item.captions == ("a cat",)


def test_configurations_of_foreign_weights(tmp_path: Path) -> None:
    assert read_weights_json(Path(marked(tmp_path / "config.json", '{"a": 1}'))) == {"a": 1}
