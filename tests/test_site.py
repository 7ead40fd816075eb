"""The site of docs/: it builds without a broken link or reference, holds what is generated, and loads nothing from elsewhere."""

from __future__ import annotations

import argparse
import html
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import flexiclip_eval
import pytest
from kit.pages import PAGES, ROOT, schema_keys
from playwright.sync_api import Browser

import flexiclip
from flexiclip import cli
from flexiclip.train.trackers import FIELDS

TIMEOUT_MS = 120_000
LOADED = (
    r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\s(?:src|srcset)=[\"']?((?:https?:)?//[^\"'\s>]+)",
    r"<link\b(?![^>]*rel=[\"']?(?:canonical|next|prev|alternate))[^>]*?\shref=[\"']?((?:https?:)?//[^\"'\s>]+)",
    r"@import\s+(?:url\()?[\"']?((?:https?:)?//[^\"')\s;]+)",
    r"url\([\"']?((?:https?:)?//[^\"')]+)",
)
"""What a browser fetches by itself from a page or a style sheet. A link that a reader clicks is not among them."""
NEVER_FETCHED = {
    "https://unpkg.com/resize-observer-polyfill": "for browsers of before 2020, without ResizeObserver",
    "https://unpkg.com/mermaid@11/dist/mermaid.min.js": "for pages with a diagram of mermaid: there are none",
    "https://api.github.com/": "for sites with repo_url: this one has none",
}
"""Addresses in the theme's scripts, and when the theme would fetch them."""


def build(source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """`mkdocs build` as scripts/docs.sh runs it."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site: the one that scripts/test.sh has just built, or one of our own."""
    if os.environ.get("FLEXICLIP_SITE"):
        return Path(os.environ["FLEXICLIP_SITE"])
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT, folder)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def text_of(page: Path) -> str:
    """What a reader sees of a page's article."""
    (article,) = re.findall(r"<article.*?</article>", page.read_text(encoding="utf-8"), re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", "", article))


def test_every_page_is_in_the_site(site: Path) -> None:
    for page in PAGES[1:]:
        path = page.relative_to(ROOT / "docs").with_suffix("")
        assert (site / (path.parent if path.name == "index" else path) / "index.html").is_file(), page
    assert not list(site.rglob("*.py"))


@pytest.mark.parametrize(
    ("lines", "complaints"),
    [
        (
            "[a page](nonesuch.md)\n\n[an anchor](#nonesuch)\n\n![a picture](nonesuch.png)\n\n[a name][flexiclip.nonesuch]",
            ("'nonesuch.md'", "'#nonesuch'", "'nonesuch.png'", "'flexiclip.nonesuch'"),
        ),
        ("::: flexiclip.nonesuch", ("flexiclip.nonesuch could not be found",)),
    ],
)
def test_what_is_broken_does_not_build(lines: str, complaints: tuple[str, ...], tmp_path: Path) -> None:
    """With the site's own settings, on one page. With --quiet, mkdocs does not count warnings, and --strict means nothing."""
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    settings = re.sub(r"^nav:\n(?:[ ].*\n)+", "", settings, flags=re.MULTILINE).replace("hooks: [docs/hooks.py]\n", "")
    (tmp_path / "docs").mkdir()
    (tmp_path / "mkdocs.yml").write_text(settings, encoding="utf-8")
    (tmp_path / "docs" / "index.md").write_text(f"# A page\n\n{lines}\n", encoding="utf-8")
    built = build(tmp_path, tmp_path / "site")
    assert built.returncode != 0
    for complaint in complaints:
        assert complaint in built.stdout + built.stderr


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Those of every command that runs something."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for sub in (sub for group in groups for sub in group.choices.values()):
        yield from parsers(sub)
    if not groups:
        yield parser


def test_the_page_of_the_command_line_has_every_command_and_option(site: Path) -> None:
    _, *parts = re.split(r"^(flexiclip .*)¶$", text_of(site / "reference" / "cli" / "index.html"), flags=re.MULTILINE)
    by_name = dict(zip(parts[::2], parts[1::2], strict=True))
    for parser in parsers(cli._parser()):
        for action in parser._actions:
            name = action.option_strings[-1] if action.option_strings else action.metavar or action.dest
            assert name == "--help" or str(name) in by_name[parser.prog], f"{parser.prog} {name}"
            if action.help and action.dest != "help" and "%" not in action.help:
                assert action.help in by_name[parser.prog]


def test_the_page_of_recipe_keys_has_every_key(site: Path) -> None:
    page = text_of(site / "reference" / "recipe-keys" / "index.html")
    keys = schema_keys()
    sections = {key.rpartition(".")[0] for key in keys}
    assert [key for key in keys if key not in sections and f"\n{key}¶" not in page] == []


def test_the_page_of_metrics_has_every_field(site: Path) -> None:
    page = text_of(site / "reference" / "metrics" / "index.html")
    for name, field in FIELDS.items():
        assert name in page
        assert field.meaning in page


def test_the_page_of_the_python_api_has_every_public_name(site: Path) -> None:
    page = text_of(site / "reference" / "python" / "index.html")
    for name in (*flexiclip.__all__, *flexiclip_eval.__all__):
        assert re.search(rf"^\s*{name}\s*(dataclass)?\s*¶", page, re.MULTILINE), name


def test_nothing_in_the_files_is_loaded_from_elsewhere(site: Path) -> None:
    scripts = 0
    for path in site.rglob("*"):
        if path.suffix in (".html", ".css", ".svg"):
            text = path.read_text(encoding="utf-8")
            assert [found for pattern in LOADED for found in re.findall(pattern, text, re.IGNORECASE)] == [], path
            assert 'class="mermaid"' not in text
            assert 'data-md-component="source"' not in text
        elif path.suffix == ".js":
            scripts += 1
            addresses = re.findall(r"[\"'`](https?://[^\"'`\s$]+)", path.read_text(encoding="utf-8"))
            known = (*NEVER_FETCHED, "http://www.w3.org/")  # the names of XML's dialects
            assert [each for each in addresses if not each.startswith(known)] == [], path
    assert scripts > 0


@pytest.mark.parametrize(
    "line",
    [
        '<script src="https://cdn.example/x.js"></script>',
        "<script async src=//cdn.example/x.js></script>",
        '<link rel="stylesheet" href="https://fonts.example/css">',
        '<img alt="" src="https://example.org/emoji.svg">',
        '@import "https://fonts.example/css";',
        "@font-face{src:url(https://fonts.example/x.woff2)}",
    ],
)
def test_the_patterns_find_what_a_browser_would_load(line: str) -> None:
    assert any(re.search(pattern, line) for pattern in LOADED)


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """The site behind a server of this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def test_a_reader_searches_and_no_other_host_is_asked(browser: Browser, address: str) -> None:
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.set_default_timeout(TIMEOUT_MS)
    complaints: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    for path in ("", "reference/python/", "explanation/paper/", "tutorials/ship-an-encoder/"):
        page.goto(address + path, wait_until="networkidle")
    page.locator('input[name="query"]').press_sequentially("quantize")  # the theme waits for keys
    page.locator(".md-search-result__link").first.wait_for()
    assert any("search" in url for url in asked)
    hosts = {urlsplit(url).netloc for url in asked if not url.startswith(("data:", "blob:"))}
    assert hosts == {urlsplit(address).netloc}
    assert complaints == []
    page.close()
