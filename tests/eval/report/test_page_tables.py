"""The tables of the page: the best and the cheapest row of a task. test_page.py compares the rendered tables with the rows."""

from __future__ import annotations

from dataclasses import replace

from flexiclip_eval.report.page_tables import best_and_cheapest
from kit.reports import row


def test_cheapest_as_good_is_within_a_point_or_the_standard_error() -> None:
    rows = [row("a", "t", {"acc1": value}, seqhw) for seqhw, value in ((3, 0.45), (6, 0.495), (12, 0.50))]
    best, cheapest = best_and_cheapest(rows, "acc1")
    assert (best.seqhw, cheapest and cheapest.seqhw) == (12, 6)
    uncertain = [replace(each, standard_errors={"acc1": 0.04}) for each in rows]
    assert best_and_cheapest(uncertain, "acc1")[1] == uncertain[0], "5 points are below 4 x sqrt(2)"
    assert best_and_cheapest([replace(each, gflops=None) for each in rows], "acc1")[1] is None
