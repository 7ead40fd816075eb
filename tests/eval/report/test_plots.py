"""The plots by what is drawn in them: curves hold the numbers of the rows, and a legend names chance only where its line is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from flexiclip_eval import Row
from flexiclip_eval.report.plots import plot_cascades, plot_front, plot_runs, plot_task
from flexiclip_eval.report.table import short_labels
from flexiclip_eval.rows import TaskInfo
from flexiclip_eval.tradeoffs import CascadeCurve, CascadePoint, Front, FrontPoint
from kit.reports import R5, RANK, row
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

R1, TEXT_R5 = "image_retrieval_recall@1", "text_retrieval_recall@5"
RETRIEVAL = "zeroshot_retrieval"
LENGTHS = (3, 6, 15)


def rows_of(model: str, level: float = 0.3, **more: object) -> list[Row]:
    """Rows at three lengths, longest first, where every number is its own; a median rank is no share."""
    return [
        row(model, RETRIEVAL, {R1: level + s / 100, R5: level + s / 50, TEXT_R5: level + s / 40, RANK: 7.0}, s, **more)
        for s in reversed(LENGTHS)
    ]


def task_of(chance: dict[str, float]) -> TaskInfo:
    return TaskInfo("set", RETRIEVAL, chance)


def labels(axis: Axes) -> list[str]:
    """The entries of the legend."""
    legend = axis.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def points(line: Line2D) -> list[tuple[float, float]]:
    return list(zip(map(float, line.get_xdata()), map(float, line.get_ydata()), strict=True))


def curve_of(axis: Axes, label: str) -> list[tuple[float, float]]:
    (line,) = [line for line in axis.get_lines() if line.get_label() == label]
    return points(line)


def chance_levels(axis: Axes) -> list[float]:
    """The heights of the dotted lines across the panel; the line that only stands in the legend has no points."""
    return [points(line)[0][1] for line in axis.get_lines() if line.get_linestyle() == ":" and len(line.get_xdata())]


def panels(figure: Figure | None) -> list[Axes]:
    assert figure is not None
    return list(figure.axes)


def test_plot_task_of_one_model_has_a_curve_for_each_share() -> None:
    rows = rows_of("a")
    image, text = panels(plot_task({"vit a": rows}, task_of({})))
    by_length = sorted(rows, key=lambda r: r.seq_len or 0)
    assert curve_of(image, "recall@1") == [(r.seq_len, r.metrics[R1]) for r in by_length]
    assert curve_of(image, "recall@5") == [(r.seq_len, r.metrics[R5]) for r in by_length]
    assert curve_of(text, "recall@5") == [(r.seq_len, r.metrics[TEXT_R5]) for r in by_length]
    assert (labels(image), labels(text)) == (["recall@1", "recall@5"], ["recall@5"])
    assert [axis.get_title(loc="left") for axis in (image, text)] == ["text → image recall", "image → text recall"]
    assert image.get_ylim()[0] == 0
    image, _ = panels(plot_task({"vit a": rows}, task_of({}), "gflops"))
    assert curve_of(image, "recall@1") == [(r.gflops, r.metrics[R1]) for r in by_length]


def test_plot_task_of_several_models_has_one_metric_for_each_family() -> None:
    runs = {"vit a": rows_of("a"), "vit b": rows_of("b", 0.1)}
    image, _ = panels(plot_task(runs, task_of({})))
    for label, rows in runs.items():
        assert curve_of(image, short_labels(list(runs))[label]) == [(r.seq_len, r.metrics[R5]) for r in reversed(rows)]
    assert labels(image) == ["a", "b"]


def test_plot_task_of_a_model_without_a_length_is_a_line_across_the_panel() -> None:
    fixed = [replace(row("b", RETRIEVAL, {R5: 0.2}, 6), seqhw=None, seq_len=None)]
    (axis,) = panels(plot_task({"vit a": [row("a", RETRIEVAL, {R5: 0.3}, 3)], "other": fixed}, task_of({})))
    (line,) = [line for line in axis.get_lines() if line.get_label() == "other"]
    assert (line.get_linestyle(), list(line.get_xdata()), list(line.get_ydata())) == ("--", [0, 1], [0.2, 0.2])


def test_plot_task_is_none_without_a_place_or_a_share() -> None:
    rows = rows_of("a", gflops=None)
    assert plot_task({"vit a": rows}, task_of({})) is not None
    assert plot_task({"vit a": rows}, task_of({}), "gflops") is None
    assert plot_task({"vit a": [row("a", RETRIEVAL, {RANK: 3.0}, 3)]}, task_of({})) is None


def test_plot_task_writes_the_patch_size_below_tokens_that_have_room() -> None:
    """256 tokens would be written over 225."""
    rows = [row("a", RETRIEVAL, {R5: 0.3}, s) for s in (3, 6, 15, 16)]
    (axis,) = panels(plot_task({"vit a": rows}, task_of({})))
    assert list(axis.get_xticks()) == [9, 36, 225, 256]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["9\n20", "36\n10", "225\n4", ""]


@pytest.mark.parametrize(
    ("chance", "image", "text"),
    [
        ({}, [], []),
        ({R1: 0.02, R5: 0.1, TEXT_R5: 0.15}, [0.02, 0.1], [0.15]),
        ({R1: 0.02}, [0.02], []),
        ({TEXT_R5: 0.0}, [], [0.0]),
        ({RANK: 25.5}, [], []),
    ],
)
def test_plot_task_names_chance_only_in_panels_with_its_line(
    chance: dict[str, float], image: list[float], text: list[float]
) -> None:
    for axis, levels in zip(panels(plot_task({"vit a": rows_of("a")}, task_of(chance))), (image, text), strict=True):
        assert chance_levels(axis) == levels
        assert any(label.startswith("chance") for label in labels(axis)) == bool(levels)
    runs = {"vit a": rows_of("a"), "vit b": rows_of("b", 0.1)}
    for axis, metric in zip(panels(plot_task(runs, task_of(chance))), (R5, TEXT_R5), strict=True):
        assert chance_levels(axis) == ([chance[metric]] if metric in chance else [])
        assert ("chance" in labels(axis)) == (metric in chance)


@pytest.mark.parametrize("chance", [None, 0.0, 0.1])
def test_plot_runs_names_chance_only_with_its_line(chance: float | None) -> None:
    (axis,) = panels(plot_runs({"a": rows_of("a")}, R5, chance=chance, own={}))
    assert chance_levels(axis) == [chance] * (chance is not None)
    assert ("chance" in labels(axis)) == (chance is not None)


def test_plot_runs_has_the_numbers_of_each_run_and_a_star_at_its_training_length() -> None:
    runs = {"flexible": rows_of("a"), "fixed": rows_of("b", 0.1)}
    (axis,) = panels(plot_runs(runs, R5, chance=None, own={"fixed": (6,)}))
    for label, rows in runs.items():
        assert curve_of(axis, label) == [(r.seq_len, r.metrics[R5]) for r in reversed(rows)]
    stars = [points(line) for line in axis.get_lines() if line.get_marker() == "*" and len(line.get_xdata())]
    assert stars == [[(36, 0.1 + 6 / 50)]]
    assert labels(axis) == ["flexible", "fixed", "its training length"]
    assert axis.get_ylabel() == "text → image recall@5"


def cascade(model: str, costs: tuple[float | None, ...]) -> CascadeCurve:
    """Shortlists of 0, 5, 20 and all 50 images."""
    shortlists = (0, 5, 20, 50)
    found = [CascadePoint(k, {R5: (150 + k) / 500}, k / 50, cost, 1.0) for k, cost in zip(shortlists, costs, strict=True)]
    return CascadeCurve("set", RETRIEVAL, "vit", model, 3, 15, tuple(found))


def test_plot_cascades_has_the_cascade_of_each_model_and_its_single_lengths() -> None:
    runs = {"vit a": rows_of("a"), "vit b": [*rows_of("b", 0.1), *rows_of("b", 0.2, gflops=None)]}
    costs = {"vit a": (0.4, 0.6, 0.9, 1.9), "vit b": (0.5, None, None, 2.0)}
    (axis,) = panels(plot_cascades({label: cascade(label[-1], each) for label, each in costs.items()}, runs, R5))
    for label in runs:
        known = [r for r in reversed(runs[label]) if r.gflops is not None]
        assert curve_of(axis, short_labels(list(runs))[label]) == [(r.gflops, r.metrics[R5]) for r in known]
    name = "{}: seqhw 3, the first K again at 15"
    assert curve_of(axis, name.format("a")) == [(0.4, 0.3), (0.6, 0.31), (0.9, 0.34), (1.9, 0.4)]
    assert curve_of(axis, name.format("b")) == [(0.5, 0.3), (2.0, 0.4)]
    assert sorted(text.get_text() for text in axis.texts) == ["K=20", "K=5"]
    assert labels(axis) == ["a", name.format("a"), "b", name.format("b")]
    assert chance_levels(axis) == []


def test_plot_cascades_is_none_without_a_cost() -> None:
    runs = {"vit a": rows_of("a")}
    assert plot_cascades({"vit a": cascade("a", (None,) * 4)}, runs, R5) is None


def test_plot_front_fills_the_points_on_the_front_and_hollows_the_others() -> None:
    """Of two widths, the narrow one is on the front at lengths 3 and 6, and the wide one at 15 alone."""
    runs = {"vit a [:32]": rows_of("a", 0.3, width=32), "vit a [:64]": rows_of("a", 0.3 - 0.01, width=64)}
    on_front = [("vit a [:32]", 3), ("vit a [:32]", 6), ("vit a [:64]", 15)]
    found = [(r.seqhw, r.width, r.gflops, r.metrics[R5]) for label, s in on_front for r in runs[label] if r.seqhw == s]
    best = tuple(FrontPoint("vit", "a", s, w or 0, g or 0.0, value) for s, w, g, value in found)
    (axis,) = panels(plot_front(Front("set", RETRIEVAL, R5, best), runs))
    hollow = []
    for label, rows in runs.items():
        assert curve_of(axis, short_labels(list(runs))[label]) == [(r.gflops, r.metrics[R5]) for r in reversed(rows)]
        (filled,) = [line for line in axis.get_lines() if line.get_label() == short_labels(list(runs))[label]]
        hollow += [
            sorted(points(line))
            for line in axis.get_lines()
            if line.get_markerfacecolor() == "white" and line.get_color() == filled.get_color()
        ]
        assert filled.get_markerfacecolor() != "white"
    off = {label: [r for r in reversed(rows) if (label, r.seqhw) not in on_front] for label, rows in runs.items()}
    assert hollow == [[(r.gflops, r.metrics[R5]) for r in rows] for rows in off.values()]
    assert [len(each) for each in hollow] == [1, 2]
    assert labels(axis) == list(short_labels(list(runs)).values())
    assert chance_levels(axis) == []


def test_plot_front_leaves_out_rows_without_a_width_or_a_cost() -> None:
    rows = [*rows_of("a", 0.3, width=32), *rows_of("a", 0.7), *rows_of("a", 0.9, width=32, gflops=None)]
    (axis,) = panels(plot_front(Front("set", RETRIEVAL, R5, ()), {"vit a [:32]": rows}))
    assert curve_of(axis, "vit a [:32]") == [(s / 8, 0.3 + s / 50) for s in LENGTHS]
