"""Draws against the definitions, and against numpy's Generator, which they took over from and do not call.

What they are in every version is written down in tests/data/frozen.json.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from flexiclip import draws
from flexiclip.draws import Stream


def words(*key: int) -> np.ndarray:
    return np.random.PCG64(np.random.SeedSequence(key)).random_raw(64)


def test_words_are_pcg64s() -> None:
    stream = Stream(5, 6)
    assert [stream.word() for _ in range(64)] == words(5, 6).tolist()
    assert Stream(-1, 2).word() == Stream(2**64 - 1, 2).word()
    assert Stream(2**200).word() != Stream(0).word()


def test_random_takes_the_upper_53_bits() -> None:
    stream = Stream(1)
    assert [stream.random() for _ in range(64)] == [math.ldexp(word >> 11, -53) for word in words(1).tolist()]


def test_choice_is_the_first_end_above_the_draw() -> None:
    """By brute force in fractions of integers, weights of 0 included."""
    weights = [0, 3, 0, 1, 4, 0]
    for key in range(300):
        word = int(words(key)[0]) >> 11
        expected = next(i for i in range(len(weights)) if sum(weights[: i + 1]) * 2**53 > word * sum(weights))
        assert Stream(key).weighted_index(weights) == expected
    assert Counter(Stream(key).weighted_index(np.array([1, 0, 0.5])) for key in range(3000))[1] == 0


class Fixed(Stream):
    """One word again and again."""

    def __init__(self, word: int) -> None:
        super().__init__(0)
        self._word = word

    def word(self) -> int:
        return self._word


def test_choice_at_an_end_takes_the_next_weight() -> None:
    """A draw of exactly 0, 1/4, 1/2, and the largest there is: a weight of 0 is never drawn."""
    for word, weights, expected in (
        (0, [0, 3], 1),
        (0, [1, 3], 0),
        (2**62, [1, 3], 1),
        (2**63, [1, 1], 1),
        (2**63, [2, 0, 2], 2),
        (2**64 - 1, [1, 2, 0], 1),
    ):
        assert Fixed(word).weighted_index(weights) == expected


def test_below_and_permutation() -> None:
    assert Stream(3).below(1000) == int(words(3)[0]) % 1000
    order = Stream(3).permutation(64)
    assert (np.diff(words(3)[order].astype(object)) > 0).all()


@pytest.mark.parametrize("p", [0.2, 0.7, 1.0, 1.7, 30.0])
def test_beta_is_distributed_as_beta(p: float) -> None:
    drawn = [Stream(7, key).beta(p) for key in range(4000)]
    assert all(0 <= x <= 1 for x in drawn)
    assert stats.kstest(drawn, stats.beta(p, p).cdf).pvalue > 1e-3


def test_beta_of_extremes() -> None:
    assert {Stream(key).beta(1e-200) for key in range(30)} == {0.0, 1.0}
    assert {Stream(key).beta(1e-5) for key in range(30)} >= {1.0}
    assert [Stream(key).beta(1e300) for key in range(30)] == pytest.approx([0.5] * 30)


@pytest.mark.parametrize(
    ("p", "total", "weighted", "word"),
    [
        (0.05, 2511.6112601683803, 6323193.721226803, 6421006013799364125),
        (0.2, 2501.906978320572, 6354827.8032506695, 7135992375776712858),
        (0.7, 2465.799001773126, 6192625.033089156, 15178225846851190106),
        (1.0, 2455.8264562065456, 6161118.8246460315, 1812226076346831454),
        (1.05, 2493.347844816278, 6259981.760204883, 15131192966001756644),
        (1.7, 2508.690571665013, 6300064.829722539, 10441606345361612591),
        (30.0, 2504.0689005198733, 6254410.600861005, 12306634162814260226),
    ],
)
def test_beta_is_what_numpy_2_4_draws(p: float, total: float, weighted: float, word: int) -> None:
    """5,000 numbers, their sums, and the word that follows: printed by Generator.beta of numpy 2.4.6 for the same words."""
    stream = Stream(12)
    drawn = np.array([stream.beta(p) for _ in range(5000)])
    assert drawn.sum() == pytest.approx(total, rel=1e-12)
    assert (drawn * np.arange(5000)).sum() == pytest.approx(weighted, rel=1e-12)
    assert stream.word() == word


class Listed(Stream):
    """The words of a list, and no more."""

    def __init__(self, *given: int) -> None:
        super().__init__(0)
        self.given = list(given)

    def word(self) -> int:
        return self.given.pop(0)


HALF = 2**63  # the word of random() == 0.5
LEAST = 2**11  # the word of the smallest number above 0


def test_beta_of_draws_at_the_ends() -> None:
    """By hand: with x = u^(1/p) and y = v^(1/p), a pair is drawn again if x + y > 1 or if u and v are both 0.

    If a power is 0 in float64, x / (x + y) is computed from the logarithms.
    """
    assert Listed(HALF, HALF).beta(1.0) == 0.5, "x + y of exactly 1 is taken"
    assert Listed(HALF, HALF + 2 * LEAST, 0, HALF).beta(1.0) == 0.0, "the smallest excess is drawn again"
    assert Listed(0, 0, HALF, HALF).beta(1.0) == 0.5
    assert Listed(HALF, 0).beta(1.0) == 1.0
    assert Listed(HALF, HALF // 2).beta(1e-4) == 1.0, "2^-10000 is 0 in float64: the logarithms tell which is larger"
    assert Listed(HALF // 2, HALF).beta(1e-4) == 0.0
    odds = math.exp((math.log(0.5) - math.log(0.5 - 2.0**-13)) / 1e-4)  # 0.5^10000 against a power a little smaller
    near = HALF - 2**51
    assert Listed(HALF, near).beta(1e-4) == pytest.approx(odds / (1 + odds), rel=1e-9)
    assert Listed(near, HALF).beta(1e-4) == pytest.approx(1 / (1 + odds), rel=1e-9)
    assert Listed(near, near).beta(1e-4) == pytest.approx(0.5, rel=1e-12)


def test_the_tables_of_the_ziggurat_are_those_of_the_formula() -> None:
    """Strips of equal area v under exp(-x^2/2): x_(i-1) from v / x_i + f(x_i). To the rounding of the published tables."""
    limits, scales, heights = draws._ziggurat()
    x = tail = 3.6541528853610088
    area = tail * math.exp(-(tail**2) / 2) + math.sqrt(math.pi / 2) * math.erfc(tail / math.sqrt(2))
    assert scales[0] * 2**52 == pytest.approx(area / math.exp(-(tail**2) / 2), rel=1e-12)
    assert limits[0] == pytest.approx(2**52 * tail / (area / math.exp(-(tail**2) / 2)), rel=1e-12)
    for strip in range(255, 0, -1):
        assert scales[strip] * 2**52 == pytest.approx(x, rel=1e-12)
        assert heights[strip] == pytest.approx(math.exp(-x * x / 2), rel=1e-12)
        inner = math.sqrt(-2 * math.log(area / x + math.exp(-x * x / 2))) if strip > 1 else 0.0
        assert limits[strip] == pytest.approx(2**52 * inner / x, rel=1e-12)
        x = inner
    assert heights[0] == 1


BEYOND = {  # number of the draw -> what numpy 2.4's Generator.standard_normal draws there, beyond the last strip
    2712: 3.7315614658206586,
    8639: 3.833389066444189,
    18909: -3.707887820637163,
    24516: 4.87493356129406,
    25006: 3.658521013978824,
    41661: 4.305913414047804,
    46671: 3.662441752819095,
    52870: -3.698532008697777,
    53165: 3.7230885349670335,
    53668: 3.7369551913300256,
    54083: -3.67399468375903,
    56047: 3.734486425186627,
    56484: -4.206814608104995,
    57258: 4.054297361034381,
}


def test_normal_numbers_are_what_numpy_2_4_draws() -> None:
    """60,000 numbers: their sums, all of those beyond the last strip, and the word that follows."""
    stream = Stream(11)
    drawn = np.array([stream._normal() for _ in range(60_000)])
    assert stats.kstest(drawn, stats.norm.cdf).pvalue > 1e-3
    assert {number: drawn[number] for number in np.flatnonzero(abs(drawn) > draws._TAIL)} == pytest.approx(BEYOND, rel=1e-12)
    assert drawn.sum() == pytest.approx(-46.93948045942304, rel=1e-9)
    assert (drawn**2).sum() == pytest.approx(59936.58325347034, rel=1e-12)
    assert stream.word() == 2494233487243003577


def test_nothing_that_a_run_draws_comes_from_anything_else() -> None:
    """sequential.py promises no exact resume; the noise that checks an export belongs to no run."""
    others = {"draws.py", "data/sequential.py", "export/agreement.py"}
    package = Path(draws.__file__).parent
    sources = {path.relative_to(package).as_posix(): path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    drawing = re.compile(r"\b(np|numpy)\.random\b|^import random|from random import|default_rng|randperm|\brng\b", re.MULTILINE)
    assert {name for name, source in sources.items() if drawing.search(source)} == others
