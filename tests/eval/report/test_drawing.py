"""The building blocks of the plots, by the objects that matplotlib draws from them."""

from __future__ import annotations

import io

import matplotlib
import pytest
from flexiclip_eval.report.drawing import (
    COLOURS,
    MARKERS,
    chance_line,
    curve,
    drawn,
    gflops_axis,
    grid,
    legend,
    log_axis,
    look,
    percent_axis,
    token_axis,
)
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from PIL import Image


@pytest.fixture
def axis() -> Axes:
    return grid(1, 1, (4, 3))[1][0][0]


def test_grid_is_rows_of_panels_and_leaves_matplotlibs_settings_alone() -> None:
    before = dict(matplotlib.rcParams)
    figure, axes = grid(2, 3, (6, 4), sharey=True)
    assert [len(row) for row in axes] == [3, 3]
    assert tuple(figure.get_size_inches()) == (6, 4)
    assert not axes[0][0].spines["top"].get_visible()
    axes[0][0].set_ylim(0, 7)
    assert axes[1][2].get_ylim() == (0, 7)
    assert dict(matplotlib.rcParams) == before


def test_drawn_is_a_file_of_that_kind_and_size() -> None:
    figure, _ = grid(1, 1, (4, 3))
    image = Image.open(io.BytesIO(drawn(figure, dpi=50)))
    assert (image.format, image.size) == ("PNG", (200, 150))
    assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert drawn(figure, "svg").startswith(b"<?xml")
    assert drawn(figure, "pdf").startswith(b"%PDF")


def test_look_starts_again_after_the_last_colour() -> None:
    assert len({look(number) for number in range(6)}) == 6
    assert look(0) == look(6) == (COLOURS[0], MARKERS[0])
    assert look(8) == (COLOURS[2], MARKERS[2])


def test_curve_draws_the_points_in_the_colour_of_its_number(axis: Axes) -> None:
    curve(axis, iter([(9, 0.1), (36, 0.4)]), 1, "b", linestyle="--", markersize=3)
    curve(axis, [(9, 0.2)], 2)
    first, second = axis.get_lines()
    assert (list(first.get_xdata()), list(first.get_ydata())) == ([9, 36], [0.1, 0.4])
    assert (to_hex(first.get_color()).upper(), first.get_marker()) == look(1)
    assert (first.get_linestyle(), first.get_markersize(), first.get_label()) == ("--", 3, "b")
    assert (to_hex(second.get_color()).upper(), second.get_linestyle()) == (look(2)[0], "-")
    legend(axis)
    box = axis.get_legend()
    assert box is not None
    assert [text.get_text() for text in box.get_texts()] == ["b"], "a curve without a label is not in the legend"


def test_token_axis_has_a_tick_for_each_length_and_no_others(axis: Axes) -> None:
    curve(axis, [(9, 0.1), (225, 0.4)], 0)
    token_axis(axis, [9, 36, 225], ["9\n20", "", "225\n4"], "tokens")
    assert axis.get_xscale() == "log"
    assert list(axis.get_xticks()) == [9, 36, 225]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["9\n20", "", "225\n4"]
    assert list(axis.get_xticks(minor=True)) == []
    assert axis.get_xlabel() == "tokens"


@pytest.mark.parametrize(("high", "ticks"), [(20.0, [0.1, 0.2, 0.5, 1, 2, 5, 10, 20]), (1000.0, [0.1, 1, 10, 100, 1000])])
def test_log_axis_of_gflops_has_plain_numbers_that_do_not_crowd(high: float, ticks: list[float], axis: Axes) -> None:
    axis.set_xscale("log")
    axis.set_xlim(0.1, high)
    log_axis(axis)
    assert [x for x in axis.get_xticks() if 0.099 < x < 1.01 * high] == pytest.approx(ticks)
    write = axis.xaxis.get_major_formatter()
    assert [write(x, 0) for x in (0.1, 2.0, 500.0)] == ["0.1", "2", "500"]
    assert axis.xaxis.get_minor_formatter()(0.3, 0) == ""
    assert axis.get_xlabel() == ""
    gflops_axis(axis)
    assert axis.get_xlabel() == "GFLOPs per image"


def test_percent_axis_writes_shares_as_percents(axis: Axes) -> None:
    percent_axis(axis)
    write = axis.yaxis.get_major_formatter()
    assert [write(x, 0) for x in (0.0, 0.35, 1.0)] == ["0%", "35%", "100%"]
    assert axis.yaxis.get_gridlines()[0].get_visible()


def test_chance_line_is_drawn_only_where_chance_is_known(axis: Axes) -> None:
    chance_line(axis, None)
    assert list(axis.get_lines()) == []
    chance_line(axis, 0.0, COLOURS[3])
    (line,) = axis.get_lines()
    assert (list(line.get_ydata()), line.get_linestyle(), line.get_color()) == ([0.0, 0.0], ":", COLOURS[3])


def test_legend_is_outside_of_the_panel(axis: Axes) -> None:
    curve(axis, [(1, 2)], 0, "a")
    figure = axis.figure
    legend(axis, columns=1, size=7)
    figure.canvas.draw()
    box = axis.get_legend()
    assert box is not None
    assert box.get_texts()[0].get_fontsize() == 7
    assert box.get_window_extent().x0 >= axis.get_window_extent().x1
    legend(axis, (0, -0.3))
    figure.canvas.draw()
    box = axis.get_legend()
    assert box is not None
    assert box.get_window_extent().y1 < axis.get_window_extent().y0
