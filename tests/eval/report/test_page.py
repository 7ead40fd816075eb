"""The page without a browser: all is inside and escaped, and the numbers of its table and its script are those of the report."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from flexiclip_eval.report.files import write_report
from flexiclip_eval.report.page import render_page
from kit.reports import HOSTILE, full_report, unique_report
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
    shown = [row["metrics"] for task in data["tasks"] for row in task["rows"]]
    by_task = [row["metrics"] for task in data["tasks"] for row in rows if row["task"] == task["task"]]
    assert shown == by_task
    first = data["tasks"][0]["rows"][0]["found"][0]
    thumbs = {int(record): picture for record, picture in data["thumbs"]["toys"].items()}
    assert set(first["ranked"]) <= set(thumbs)
    picture = Image.open(io.BytesIO(base64.b64decode(thumbs[4])))
    assert picture.format == "JPEG"
    assert picture.size == (24, 21)  # image 4 of toys(); a small one is not enlarged


def test_render_page_marks_the_best_of_each_column() -> None:
    """The highest recall and the lowest rank; the values that a click sorts by are those of the rows."""
    page = render_page(unique_report(), {})
    table = re.findall(r"<table>.*?</table>", page, re.DOTALL)[0]
    assert re.findall(r'<th class="group"[^>]*colspan="(\d)">(.*?)</th>', table) == [("2", "text→image")]
    body = re.findall(r"<tr>(.*?)</tr>", table.partition("<tbody>")[2].partition("</tbody>")[0])
    values = [re.findall(r'data-value="([^"]*)"', line) for line in body]
    assert values[2] == ["3", "vit b", "9", "20", "0.375", str(1000.0 / 3), "0.13", "13.0"]
    assert [re.findall(r'class="best" data-value="([^"]*)"', line) for line in body] == [["3.0"], [], [], ["0.16"]]
    assert "<td>10.0%</td><td>25.5</td>" in table.partition("<tfoot>")[2]
    data = json.loads(re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)[0])
    assert [[*r["metrics"].values()] for r in data["tasks"][0]["rows"]] == [[0.03, 3.0], [0.06, 6.0], [0.13, 13.0], [0.16, 16.0]]
    assert "50 images, 60 captions" in page
    assert "50 images, 3 classes. The largest class holds 40.0% of the images." in page


def test_the_head_says_what_was_evaluated_and_what_was_found() -> None:
    report = unique_report()
    report.date, report.version = "2026-12-01", "0.1.0"
    report.rows = [replace(row, standard_errors={"acc1": 0.05}) if "acc1" in row.metrics else row for row in report.rows]
    page = render_page(report, {})
    assert (
        re.findall(r"<title>(.*?)</title>", page)
        == re.findall(r"<h1>(.*?)</h1>", page)
        == ["Evaluation of 2 models on 1 data set"]
    )
    lead = "2026-12-01 · flexiclip 0.1.0 · images of 60 pixels at seqhw 3, 6 · every sample could be read"
    assert f"<p>{lead}</p>" in page
    summary = re.findall(r'<table class="summary">.*?</table>', page, re.DOTALL)[0]
    cells = [re.sub("<.*?>", "", cell) for cell in re.findall(r"<td>(.*?)</td>", summary)]
    assert cells == [
        *("text→image R@5", "16.0% b, seqhw 6, 0.75 GFLOPs", "16.0% b, seqhw 6, 0.75 GFLOPs", "10.0%"),
        # 0.325 is 7.5 points below 0.4, which their standard errors of 5 points do not exceed: 5 x sqrt(2) = 7.1
        *("acc1", "40.0% ±5.0 b, seqhw 6, 0.75 GFLOPs", "40.0% ±5.0 b, seqhw 6, 0.75 GFLOPs", "50.0%"),
    ]
    assert '<span class="sign c1"></span><b>b</b> vit b, trained at seqhw 6</li>' in page
    assert "Samples" not in page
