"""A real headless Chromium clicks through a real report at a phone's width and a desktop's. scripts/test.sh installs one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from flexiclip_eval.report.files import write_report
from kit.reports import HOSTILE, LENGTHS, full_report, recalls
from playwright.sync_api import Browser, Page

TIMEOUT_MS = 120_000  # a busy machine is slow


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    made, gallery = full_report(out / "data")
    write_report(made, out, gallery)
    return out / "report.html"


@pytest.mark.parametrize("width", [400, 1400])
def test_a_reader_clicks_through(browser: Browser, report: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(TIMEOUT_MS)
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on("request", lambda request: None if request.url.startswith("data:") else requests.append(request.url))
    page.goto(report.as_uri())
    _curves(page)
    _table(page)
    _cascade_and_classes(page)
    _mistakes(page)
    _found(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.title() == "Evaluation of 2 models on 1 data set"
    assert complaints == []
    assert requests == [report.as_uri()]
    page.close()


def _curves(page: Page) -> None:
    """Both switches move the curves; a point says its row's numbers; a model leaves and returns; arrows walk."""
    chart = page.locator("#task-0 .curves .chart")
    line = chart.locator('g[data-model="0"] polyline')
    seen = {line.get_attribute("points")}
    for axis in ("gflops", "images_per_s"):
        page.click(f'[data-axis="{axis}"]')
        seen.add(line.get_attribute("points"))
    page.click('[data-axis="seq_len"]')
    page.select_option('#task-0 [aria-label="Metric"]', label="text→image R@10")
    assert len(seen) == 3
    chart.locator('g[data-model="0"] .point').nth(3).hover()
    tip = chart.locator(".tip").inner_text()
    assert f"text→image R@10 {100 * recalls(0, 6)['image_retrieval_recall@10']:.1f}% ±3.1" in tip
    assert "seqhw 6 · 36 tokens · patch 10" in tip
    assert "0.0733 GFLOPs · 1,500 images/s" in tip
    assert chart.locator('g[data-model="1"] .hollow').count() == len(LENGTHS) - 1  # trained at 6 alone
    page.click('button[data-model="1"]')
    assert chart.locator('g[data-model="1"]').count() == 0
    page.click('button[data-model="1"]')
    assert chart.locator('g[data-model="1"] .point').count() == len(LENGTHS)
    chart.locator('.point[tabindex="0"]').focus()
    page.keyboard.press("ArrowRight")
    assert "seqhw 4 ·" in chart.locator(".tip").inner_text()


def _table(page: Page) -> None:
    """A click sorts down, another one up."""
    table = page.locator("#task-0 table")
    cells = table.locator("tbody tr td:nth-child(8)")  # text -> image recall@5, behind the length, the model and four costs
    table.locator("thead button").nth(7).click()
    values = [float(text.partition("%")[0]) for text in cells.all_inner_texts()]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) > 7
    table.locator("thead button").nth(7).click()
    assert [float(text.partition("%")[0]) for text in cells.all_inner_texts()] == values[::-1]
    assert table.locator("thead .group").all_inner_texts() == ["text→image", "image→text"]
    scroll = page.locator("#task-0 .scroll")
    scroll.evaluate("box => { box.scrollLeft = box.scrollWidth; }")
    left = scroll.bounding_box()
    length = table.locator("tbody th").first.bounding_box()
    assert left is not None
    assert length is not None
    assert abs(left["x"] - length["x"]) < 1, "the length stays in sight"


def _cascade_and_classes(page: Page) -> None:
    cascade = page.locator("#task-0 .cascade")
    assert cascade.locator("details").get_attribute("open") is None, "it gains nothing here"
    cascade.locator("summary").click()
    assert cascade.locator("polyline.dashed").count() == 2
    cascade.locator("g:has(> .dashed) .point").nth(2).focus()
    assert "the first 10 again at 15" in cascade.locator(".tip").inner_text()
    classes = page.locator("#task-1 .classes")
    assert classes.locator(".class").first.inner_text().split("\n")[0] == "animals"
    classes.locator('[aria-label="Order of the classes"]').select_option("best")
    assert HOSTILE in classes.locator(".class").first.inner_text()
    assert page.locator("#task-0 .choices li").count() == 4


def _mistakes(page: Page) -> None:
    """The matrix has the counts of the chosen length, and a wrong image both of its classes."""
    matrix = page.locator("#task-1 .confusion table")
    assert matrix.locator("tbody tr").first.locator("td").all_inner_texts() == ["20", "", "3", "", "3", "", "3"]
    page.select_option('#task-1 [aria-label="Model and length of the confusions"]', label="seqhw 3 · flexible")
    assert matrix.locator("tbody tr").nth(1).locator("td").all_inner_texts()[1] == "20"
    wrong = page.locator("#task-1 .mistakes .shot")
    assert wrong.count() == 12
    assert wrong.first.inner_text().split("\n") == ["flags", "is animals, at rank 2"]
    names = page.locator('#task-0 .found [aria-label="Model and length"] option').all_inner_texts()
    assert names[:2] == ["seqhw 3 · flexible", "seqhw 4 · flexible"]


def _found(page: Page) -> None:
    found = page.locator("#task-0 .found")
    assert found.locator(".hit").count() == 6
    found.locator('[aria-label="Which captions"]').select_option("wrong")
    assert found.locator(".hit").count() == 3
    assert re.search(r"rank 8\b", found.locator(".hit").first.inner_text())
    assert found.locator(".hit").first.locator(".wanted img").count() == 1
    widths = found.locator("img").evaluate_all("all => Promise.all(all.map(i => i.decode().then(() => i.naturalWidth)))")
    assert set(widths) == {24}


def test_print_shows_every_thumbnail_and_no_control(browser: Browser, report: Path) -> None:
    """Nothing is loaded only when it comes into sight, and what is folded on the screen is open on paper."""
    page = browser.new_page(viewport={"width": 1280, "height": 500})
    page.set_default_timeout(TIMEOUT_MS)
    page.goto(report.as_uri())
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    images = page.locator(".shot img")
    assert images.count() > 40
    assert images.evaluate_all("all => all.every(i => i.complete && i.naturalWidth > 0 && i.loading !== 'lazy')")
    assert page.locator("#task-0 .cascade details").get_attribute("open") is not None
    for hidden in ("#controls", "#task-0 .curves .bar", "nav"):
        assert not page.locator(hidden).first.is_visible()
    assert page.locator("#task-1 .bars").evaluate("bars => bars.scrollHeight <= bars.clientHeight")
    assert len(page.pdf(format="A4")) > 50_000
    page.close()


def test_a_curve_high_above_0_has_an_axis_that_is_cut_off(browser: Browser, report: Path) -> None:
    """acc1 of the first model alone is 44 % to 55 %: the axis begins below 44 %, and at 0 after a click."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(TIMEOUT_MS)
    page.goto(report.as_uri())
    page.click('button[data-model="1"]')
    button = page.locator("#task-1 .curves button")
    labels = page.locator('#task-1 .curves text[text-anchor="end"]')
    assert button.get_attribute("aria-pressed") == "false"
    assert 30 <= float(labels.first.text_content().rstrip("%")) < 44
    assert page.locator("#task-1 .curves .error").count() == len(LENGTHS)
    button.click()
    assert float(labels.first.text_content().rstrip("%")) == 0
    page.close()


def test_it_reads_without_a_script(browser: Browser, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 400, "height": 900})
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    page.goto(report.as_uri())
    assert page.locator(".pictures img").count() == 5
    assert page.locator(".pictures img").first.is_visible()
    assert page.locator("#task-0 tbody tr").count() == 2 * len(LENGTHS)
    context.close()
