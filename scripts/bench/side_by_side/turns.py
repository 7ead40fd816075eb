"""Works that take turns, so that a busy machine slows all alike, and the ratios of their paired rounds.

A figure of one work alone means little on a shared machine. The median over rounds of theirs / ours, each pair measured one after
the other, says more.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Work = Callable[[], object]


def seconds(work: Work) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def take_turns(works: Mapping[str, Work], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """name -> seconds of each of `rounds` rounds, in which every work has its turn, A B A B; the first `warm_up` do not count."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(warm_up + rounds):
        for name, work in works.items():
            spent = seconds(work)
            if turn >= warm_up:
                times[name].append(spent)
    return times


def ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """The median over rounds of of / to. Raises ValueError when their numbers of rounds differ."""
    return statistics.median(a / b for a, b in zip(of, to, strict=True))
