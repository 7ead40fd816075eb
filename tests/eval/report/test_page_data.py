"""The frame of a page and the numbers that its script draws, against a report whose every number is its own."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from pathlib import Path

import pytest
from flexiclip_eval import DatasetConfig, TaskConfig
from flexiclip_eval.data.images import Record
from flexiclip_eval.report import page_data as module
from flexiclip_eval.report.page_data import (
    SIDE,
    Gallery,
    add_thumbnails,
    as_script,
    fill,
    frame,
    inline_pictures,
    page_data,
    policy,
    style,
)
from flexiclip_eval.tradeoffs import sentence
from kit.evaluation import Toy, toys, write_shards
from kit.reports import R5, RANK, full_report, unique_report
from PIL import Image


def digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_policy_allows_the_style_and_the_one_script_by_their_hashes() -> None:
    assert f"style-src '{digest(style())}'" in policy()
    assert "script-src" not in policy()
    assert policy().startswith("default-src 'none';")
    assert f"script-src '{digest('draw()')}';" in policy("draw()")


def test_frame_escapes_the_title_and_the_lead_and_keeps_the_body() -> None:
    page = frame("<p>body</p>\n\n", title="<b> & co", lead='"x" <i>', contents='<a href="#x">X</a>', script="draw()")
    assert "<title>&lt;b&gt; &amp; co" in page
    assert "&quot;x&quot; &lt;i&gt;" in page
    assert "<p>body</p>" in page
    assert '<a href="#x">X</a>' in page
    assert style() in page
    assert policy("draw()") in page
    assert "<!-- " not in page


def test_fill_replaces_each_field_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that looks like a field stays what it is."""
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    (tmp_path / "a.html").write_text("<p><!-- first --></p><!-- second --> <!-- first -->")
    assert fill("a.html", {"first": "<!-- second -->", "second": "2"}) == "<p><!-- second --></p>2 <!-- second -->"
    with pytest.raises(KeyError, match="second"):
        fill("a.html", {"first": ""})


def test_inline_pictures_names_the_files_that_find_no_room(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b<", "c")):
        (tmp_path / f"{name}.png").write_bytes(bytes([number]) * 30)  # 40 characters in base64
    pictures = [(tmp_path / f"{name}.png", f"the {name}") for name in ("a", "b<", "c")]
    whole = inline_pictures(pictures, 121)
    assert [base64.b64decode(text) for text in re.findall(r"base64,([^\"]*)", whole)] == [bytes([n]) * 30 for n in range(3)]
    assert 'alt="the b&lt;"' in whole
    part = inline_pictures(pictures, 41)
    assert len(re.findall("base64,", part)) == 1
    assert "<code>b&lt;.png</code>" in part
    assert "<code>c.png</code>" in part


def test_gallery_thumbnails_are_the_images_of_the_records(tmp_path: Path) -> None:
    """Record 0 is sample 2, because samples 0 and 1 could not be read. A large image shrinks, and a lost one is left out."""
    items = toys(5)
    large = Toy(items[3].image.resize((300, 150)), items[3].captions, items[3].category)
    shards = write_shards(tmp_path, [*items[:3], large, items[4]], (5,))
    gallery = Gallery()
    config = DatasetConfig("toys", shards, (TaskConfig("retrieval"),), captions=("json:captions",))
    gallery.add(["toys", "toys-fine"], config, [Record(str(i), (), {}, i) for i in (2, 3, 4)])
    assert gallery.thumbnail("other", 0) is None
    sizes = []
    for record in range(3):
        picture = gallery.thumbnail("toys-fine", record)
        assert picture is not None
        assert picture == gallery.thumbnail("toys", record)
        image = Image.open(io.BytesIO(base64.b64decode(picture)))
        assert image.format == "JPEG"
        sizes.append(image.size)
    assert sizes == [items[2].image.size, (SIDE, SIDE // 2), items[4].image.size]
    broken = Gallery()
    shards = write_shards(tmp_path / "broken", toys(3, (1,)), (3,))
    broken.add(["toys"], DatasetConfig("toys", shards, config.tasks, captions=("json:captions",)), [Record("1", (), {}, 1)])
    assert broken.thumbnail("toys", 0) is None


def test_page_data_leaves_the_recalls_of_classes_out_where_they_are_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    (_, whole) = page_data(unique_report())["tasks"]
    size = len(json.dumps([(row["perClass"], row["confusion"]) for row in whole["rows"]]))
    retrieval = len(json.dumps([(None, None)] * 4))
    for room, kept in ((retrieval + size, True), (retrieval + size - 1, False)):
        monkeypatch.setattr(module, "CLASS_BYTES", room)
        (_, task) = page_data(unique_report())["tasks"]
        assert [row["perClass"] is not None for row in task["rows"]] == [kept] * 4
        assert [row["metrics"] for row in task["rows"]] == [row["metrics"] for row in whole["rows"]]


def test_add_thumbnails_bounds_the_size_caption_by_caption(tmp_path: Path) -> None:
    report, gallery = full_report(tmp_path)
    report.details = [{key: value for key, value in details.items() if key != "mistakes"} for details in report.details]
    everything, data = page_data(report), page_data(report)
    add_thumbnails(everything, gallery, 1 << 20)
    room = sum(len(picture) + 16 for picture in everything["thumbs"]["toys"].values()) - 1  # the last picture finds no room
    add_thumbnails(data, gallery, room)
    retrieval, classification = data["tasks"]
    kept = {len(row["found"]) for row in retrieval["rows"]}
    assert len(kept) == 1
    assert 0 < kept.pop() < 6
    assert sum(map(len, data["thumbs"]["toys"].values())) < room
    for row in retrieval["rows"]:
        for found in row["found"]:
            assert {*found["ranked"], found["positives"][0]} <= data["thumbs"]["toys"].keys()
    assert classification["rows"][0]["perClass"][0] == pytest.approx(1 / 8 + 0.03, abs=1e-4)


def test_as_script_lets_no_text_end_the_script() -> None:
    text = as_script({"a": "</script><!--\u2028&"})
    assert re.search(r"[<>&\u2028]", text) is None
    assert json.loads(text) == {"a": "</script><!--\u2028&"}


def test_page_data_is_the_report() -> None:
    report = unique_report()
    data = page_data(report)
    assert data["models"] == [
        {"name": "vit a", "short": "a", "trained": (3, 6)},
        {"name": "vit b", "short": "b", "trained": (6,)},
    ]
    retrieval, classification = data["tasks"]
    assert [(m["key"], m["share"], m["chance"]) for m in retrieval["metrics"]] == [(R5, True, 0.1), (RANK, False, 25.5)]
    assert (retrieval["primary"], classification["primary"]) == (0, 0)
    assert [(r["model"], r["seqhw"], [*r["metrics"].values()]) for r in retrieval["rows"]] == [
        (0, 3, [0.03, 3.0]),
        (0, 6, [0.06, 6.0]),
        (1, 3, [0.13, 13.0]),
        (1, 6, [0.16, 16.0]),
    ]
    assert [(r["seq_len"], r["patch_size"], r["gflops"], r["images_per_s"]) for r in retrieval["rows"][:2]] == [
        (9, 20, 3 / 8, 1000 / 3),
        (36, 10, 6 / 8, 1000 / 6),
    ]
    assert [r["found"][0]["caption"] for r in retrieval["rows"]] == ["c3", "c6", "c13", "c16"]
    assert [r["perClass"] for r in retrieval["rows"]] == [None] * 4
    assert [r["perClass"] for r in classification["rows"]] == [[u / 50, None, 0.1235] for u in (3, 6, 13, 16)]
    assert classification["classes"] == ["x", "y", "z"]
    assert [(c["model"], c["seqhw"]) for c in retrieval["choices"]] == [(0, 6), (0, 3), (1, 6), (1, 3)]
    assert retrieval["choices"][2]["text"] == sentence(report.choices[4]) != retrieval["choices"][0]["text"]
    (curve,) = retrieval["cascades"]
    assert (curve["model"], curve["short"], curve["long"]) == (1, 3, 6)
    costs = {"gflops_per_image": 0.75, "gflops_per_query": 3.75}
    assert curve["points"][1] == {"shortlist": 5, "metrics": {R5: 0.04}, "reranked": 0.5, **costs}
    assert classification["cascades"] == []


def test_mistakes_and_confusions_are_in_the_data_with_their_images(tmp_path: Path) -> None:
    made, gallery = full_report(tmp_path)
    mistakes = [{"image": i, "label": 0, "named": 1, "rank": 2} for i in (3, 4, 9)]
    made.details = [
        {**details, "confusion": [(0, 0, 5), (0, 1, 3)], "mistakes": mistakes} if "per_class" in details else details
        for details in made.details
    ]
    data = page_data(made)
    add_thumbnails(data, gallery, 1 << 20)
    classification = data["tasks"][1]
    assert classification["rows"][0]["confusion"] == [(0, 0, 5), (0, 1, 3)]
    assert {3, 4, 9} <= data["thumbs"]["toys"].keys()
    without_room = page_data(made)
    add_thumbnails(without_room, gallery, 100)
    assert all(row["mistakes"] == [] for row in without_room["tasks"][1]["rows"])
