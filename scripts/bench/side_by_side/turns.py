"""Works that take turns, so that a busy machine slows all alike, and the ratios of their paired rounds.

A figure of one work alone means little on a shared machine. The median over rounds of theirs / ours, each pair measured one after
the other, says more.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Work = Callable[[], object]


Clock = Callable[[], float]
"""Seconds: time.perf_counter, or time.process_time, the CPU seconds of this process, which say more of one thread where others
use the machine too. (Several threads wait for each other, and that counts.)"""


def seconds(work: Work, clock: Clock = time.perf_counter) -> float:
    """Seconds of one call."""
    start = clock()
    work()
    return clock() - start


def take_turns(
    works: Mapping[str, Work],
    rounds: int,
    warm_up: int = 1,
    clock: Clock = time.perf_counter,
    before: Callable[[str], object] = lambda name: None,
) -> dict[str, list[float]]:
    """name -> seconds of each of `rounds` rounds, in which every work has its turn, A B A B; the first `warm_up` do not count.

    before: called with a work's name before each of its turns, and not timed.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(warm_up + rounds):
        for name, work in works.items():
            before(name)
            spent = seconds(work, clock)
            if turn >= warm_up:
                times[name].append(spent)
    return times


def ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """The median over rounds of of / to. Raises ValueError when their numbers of rounds differ."""
    return statistics.median(a / b for a, b in zip(of, to, strict=True))
