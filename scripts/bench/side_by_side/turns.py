"""Measuring works that take turns, so that other load on the machine slows all of them alike.

On a shared machine the time of one work alone means little. The median over rounds of theirs / ours, where the two of a pair are
measured one directly after the other, is more reliable.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Work = Callable[[], object]


Clock = Callable[[], float]
"""A clock in seconds: time.perf_counter, or time.process_time, which counts the CPU seconds of this process.

The latter is more reliable for one thread on a machine that others use. With several threads it also counts their waiting.
"""


def seconds(work: Work, clock: Clock = time.perf_counter) -> float:
    """Return the seconds of one call."""
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
    """Return name -> seconds of each of `rounds` rounds. Every work has one turn per round (A B A B).

    warm_up: number of rounds before these, which are not counted. before: called with a work's name before each of its turns,
    and not timed.
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
    """Return the median over rounds of of / to. Raises ValueError if their numbers of rounds differ."""
    return statistics.median(a / b for a, b in zip(of, to, strict=True))
