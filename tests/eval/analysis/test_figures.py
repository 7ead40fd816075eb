"""The page of an analysis, and maps over images by what matplotlib draws of them."""

from __future__ import annotations

import base64
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from flexiclip_eval.analysis import figures
from flexiclip_eval.analysis.figures import attention, render_findings, tokens
from flexiclip_eval.analysis.subject import Finding, Table
from flexiclip_eval.report.drawing import drawn, grid
from kit.reports import HOSTILE
from matplotlib.axes import Axes

LENGTHS = (2, 3)
IMAGES = torch.arange(2 * 3 * 4 * 6, dtype=torch.uint8).reshape(2, 3, 4, 6)
"""Two images of 6 x 4 pixels."""


def finding(title: str, *names: str) -> Finding:
    figure, _ = grid(1, 1, (2, 1))
    table = Table(("layer", f"{title} <b>"), (("stem", "0.5"), (HOSTILE, "1")))
    return Finding(
        title, f"method of {title}", f"{title} & more", {}, table, {name: (figure, f"a picture: {name}") for name in names}
    )


def maps(seed: int) -> list[list[torch.Tensor]]:
    """A map of each of the two images at each length."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.rand(length, length, generator=generator) for length in LENGTHS] for _ in range(2)]


def assert_is_the_map(axis: Axes, values: torch.Tensor) -> None:
    """One cell per token, over the whole area of the image."""
    (shown,) = axis.get_images()
    np.testing.assert_allclose(np.asarray(shown.get_array()), values.numpy())
    assert list(shown.get_extent()) == [0, 6, 4, 0]
    assert shown.get_interpolation() == "nearest"


def test_render_findings_has_every_sentence_picture_table_and_method(tmp_path: Path) -> None:
    found = [finding("CKA", "cka"), finding("maps", "one", "two")]
    for each in found:
        for name, (figure, _) in each.figures.items():
            (tmp_path / f"{name}.png").write_bytes(drawn(figure) + name.encode())
    page = render_findings(found, tmp_path, title="T & t", lead="lead", command=f"flexiclip analyze {HOSTILE}")
    assert HOSTILE not in page
    assert f"flexiclip analyze {HOSTILE}" in unescape(page)
    assert "<!-- " not in page
    assert "<script" not in page
    for number, each in enumerate(found):
        section = page.partition(f'<section id="finding-{number}">')[2].partition("</section>")[0]
        text = unescape(section)
        assert f"<h2>{each.title}</h2>" in text
        assert each.sentence in text
        assert each.method in text
        assert re.findall(r'<th scope="col">(.*?)</th>', text) == ["layer", f"{each.title} <b>"]
        rows = re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td></tr>', section)
        assert [(unescape(name), value) for name, value in rows] == [("stem", "0.5"), (HOSTILE, "1")]
        pictures = re.findall(r'alt="([^"]*)" src="data:image/png;base64,([^"]*)"', section)
        files = [(f"a picture: {name}", (tmp_path / f"{name}.png").read_bytes()) for name in each.figures]
        assert [(alt, base64.b64decode(data)) for alt, data in pictures] == files
        assert f'<a href="#finding-{number}">{each.title}</a>' in page


def test_render_findings_divides_the_room_of_the_page_among_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pictures of 40 and 400 characters in 400: the large one is mentioned by its name."""
    for name, size in (("one", 30), ("two", 300), ("cka", 30)):
        (tmp_path / f"{name}.png").write_bytes(bytes(size))
    monkeypatch.setattr(figures, "PAGE_BYTES", 400)
    page = render_findings([finding("CKA", "cka"), finding("maps", "one", "two")], tmp_path, title="", lead="", command="")
    assert len(re.findall("base64,", page)) == 2
    assert "<code>two.png</code>" in page


def test_attention_draws_each_image_with_its_text_and_its_map_at_each_length() -> None:
    heats = maps(0)
    text = "a caption that is longer than the room beside a picture"
    figure = attention(IMAGES, [text, None], heats, LENGTHS)
    axes = np.reshape(figure.axes, (2, 3))
    for line, image, heat in zip(axes, IMAGES, heats, strict=True):
        np.testing.assert_array_equal(line[0].get_images()[0].get_array(), image.permute(1, 2, 0).numpy())
        for axis, values in zip(line[1:], heat, strict=True):
            assert_is_the_map(axis, values)
            assert axis.get_images()[0].get_clim() == (0, float(values.max()))
    assert [line[0].get_ylabel() for line in axes] == ["…" + text[-23:], ""]
    assert [axis.get_title() for axis in axes[0]] == ["", "seqhw 2", "seqhw 3"]


def test_tokens_draws_all_maps_on_one_scale_and_marks_the_seed() -> None:
    """The seed at (0.4, 0.9) of a grid of 5 is the token in row 2 and column 4, whose middle is 2.5 and 4.5 fifths in."""
    found = maps(1)
    figure = tokens(IMAGES, found, LENGTHS, 5, (0.4, 0.9))
    axes = np.reshape(figure.axes[:6], (2, 3))
    lowest = min(float(values.min()) for line in found for values in line)
    for line, cosines in zip(axes, found, strict=True):
        for axis, values in zip(line[1:], cosines, strict=True):
            assert_is_the_map(axis, values)
            assert axis.get_images()[0].get_clim() == (lowest, 1)
        (mark,) = line[0].get_lines()
        np.testing.assert_allclose([mark.get_xdata()[0], mark.get_ydata()[0]], [6 * 4.5 / 5, 4 * 2.5 / 5])
    assert [axis.get_ylabel() for axis in figure.axes[6:]] == ["cosine"]
