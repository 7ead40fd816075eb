"""Verdicts against a t-test of SciPy's, and at their edges."""

from __future__ import annotations

import pytest
from scipy import stats

from scripts.paper.records import judge


@pytest.mark.parametrize(
    ("figures", "above", "words"),
    [
        ([3.0, 3.1, 2.9], 0.0, "holds"),
        ([-3.0, -3.1, -2.9], 0.0, "**does not hold**"),
        ([-3.0, -3.1, -2.9], -4.0, "holds"),
        ([3.0, -1.0, 1.0], 0.0, "within the noise, above"),
        ([-3.0, 1.0, -1.0], 0.0, "within the noise, not above"),
        ([2.0], 0.0, "one seed: above"),
        ([-2.0], 0.0, "one seed: not above"),
        ([1.0, 1.0], 0.0, "holds"),
        ([0.0, 0.0], 0.0, "within the noise, not above"),
    ],
)
def test_judge_says_the_verdict_in_words(figures: list[float], above: float, words: str) -> None:
    assert judge(figures, above).words == words


@pytest.mark.parametrize("figures", [[0.5, 1.5, 0.9], [0.1, 2.0, 0.4], [1.0, 1.2, 0.7, 0.2], [0.4, 0.6]])
def test_holds_where_a_t_test_says_so(figures: list[float]) -> None:
    p = stats.ttest_1samp(figures, 0.0, alternative="greater").pvalue
    assert (judge(figures, 0.0).words == "holds") == (p < 0.05)


def test_spread_is_the_standard_deviation_over_seeds() -> None:
    verdict = judge([1.0, 2.0, 3.0], 0.0)
    assert (verdict.mean, verdict.spread, verdict.seeds) == (2.0, 1.0, 3)
