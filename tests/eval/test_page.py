"""The page without a browser: all is inside and escaped, its size is bounded, and pictures are those of the data set."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from flexiclip_eval.report.files import write_report
from flexiclip_eval.report.page_data import add_thumbnails, as_script, page_data
from kit.reports import HOSTILE, full_report
from PIL import Image


class Tags(HTMLParser):
    """The attributes of all elements, as a browser would read them."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page")
    report, gallery = full_report(out / "data")
    write_report(report, out, gallery)
    return out


def test_the_page_loads_nothing_and_says_everything(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    sources = [value for name, value in tags.attributes if name in ("src", "href", "srcset", "action")]
    assert not any(name.startswith("on") for name, _ in tags.attributes)
    assert sum(source.startswith("data:image/png;base64,") for source in sources) == 5
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert "<!-- " not in page
    for text in ("FlexiViT-128x4 runs/flexible", "flexiclip eval runs/flexible", "run_dir: runs/fixed", "35.5%", "chance"):
        assert text in page
    assert HOSTILE not in page
    assert HOSTILE in unescape(page)
    assert page.count("<script") == page.count("</script>") == 2


def test_the_policy_names_the_script_and_the_style_by_their_hashes(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    for name in ("script", "style"):
        (body,) = re.findall(f"<{name}>(.*?)</{name}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_the_data_of_the_script_is_the_rows(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    data = json.loads(text)
    rows = json.loads((folder / "results.json").read_text())
    shown = [dict(zip([m["key"] for m in t["metrics"]], row["values"], strict=True)) for t in data["tasks"] for row in t["rows"]]
    by_task = [row["metrics"] for task in data["tasks"] for row in rows if row["task"] == task["task"]]
    assert shown == by_task
    first = data["tasks"][0]["rows"][0]["found"][0]
    thumbs = {int(record): picture for record, picture in data["thumbs"]["toys"].items()}
    assert set(first["ranked"]) <= set(thumbs)
    picture = Image.open(io.BytesIO(base64.b64decode(thumbs[4])))
    assert picture.format == "JPEG"
    assert picture.size == (24, 21)  # image 4 of toys(); a small one is not enlarged


def test_size_is_bounded_caption_by_caption(tmp_path: Path) -> None:
    report, gallery = full_report(tmp_path)
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


def test_no_text_ends_the_script() -> None:
    text = as_script({"a": "</script><!--\u2028&"})
    assert re.search(r"[<>&\u2028]", text) is None
    assert json.loads(text) == {"a": "</script><!--\u2028&"}
