"""One training run killed over and over, at random moments and in random ways, on ranks that come and go.

`soak` starts a life, strikes, checks that everybody left as they should, and starts the next one with the same run folder; the
last life comes to the run's end. What the run must then be is for test_soak.py to say.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from kit.launch import leave_in_time, said, started_ranks, trained
from kit.overrides import load_last

Life = Callable[[random.Random], tuple[int, list[str]]]
"""How a life is started: its number of ranks, and overrides of the recipe."""

STRIKES = {"kill all": -9, "kill one": -9, "SIGTERM": -15}
"""What is done to the ranks, and the exit code of one that is struck before it can answer."""

MOMENTS = ("start", "step", "save", "evaluation")
SAVE_EVERY, EVALUATE_EVERY, MAX_STEPS = 2, 5, 6
"""Steps: between checkpoints, between evaluations, and at most from a life's first step to the strike."""


def steps_for(strikes: int) -> int:
    """Steps of a run that is not over before so many strikes, in whole epochs of eight."""
    return -(-strikes * (MAX_STEPS + EVALUATE_EVERY) // 8) * 8


def train_and_evaluate(*argv: str) -> int:
    """The command line's training, with an evaluation that encodes images on every rank and can be seen from outside."""

    import torch

    from flexiclip.train import ranks

    os.environ["MKL_CBWR"] = "AVX2,STRICT"  # the same sums wherever in memory a matrix lies
    ranks.JOIN_S = 20.0  # a rank that is killed before it has met the others is not waited for long
    config = load_last(argv)
    seen = Path(config.run_dir) / "evaluating"

    @torch.no_grad()
    def evaluate(loaded: Any) -> dict[str, float]:
        if os.environ["RANK"] == "0":
            seen.touch()
        norms = [float(loaded.model.encode_image(torch.ones(8, 3, 48, 48), seqhw=s).norm()) for s in (2, 3, 4, 6)]
        seen.unlink(missing_ok=True)
        return {"toy/norm": sum(norms)}

    return trained(config, evaluate)


@dataclass
class Soak:
    """The run of `argv` in `folder`, and what has been done to it."""

    argv: list[str]
    folder: Path
    rng: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    resumed: set[int] = field(default_factory=set)  # steps of the checkpoints that were gone on from

    @property
    def log(self) -> Path:
        """Of the present life; its ranks write LOG.RANK."""
        return self.folder.with_name("log")

    def strike(self, life: Life, how: str, moment: str) -> None:
        """One life that does not end by itself."""
        for left in (self.folder / "evaluating", *self.log.parent.glob(f"{self.log.name}.*")):  # of the life before
            left.unlink(missing_ok=True)
        world, overrides = life(self.rng)
        with started_ranks(world, self.log, train_and_evaluate, *self.argv, *overrides) as ranks:
            self._wait_for(moment, ranks)
            victims = [self.rng.choice(ranks)] if how == "kill one" else self.rng.sample(ranks, world)
            for victim in victims:
                (victim.terminate if how == "SIGTERM" else victim.kill)()
            leave_in_time(ranks, 120)
        trained = self._read_log()
        self.counts.update([how, f"at {moment}", f"on {world}", "strikes"])
        self._check(how, trained, ranks, ranks.index(victims[0]))

    def finish(self, life: Life) -> None:
        """The life in which the run comes to its end."""
        world, overrides = life(self.rng)
        with started_ranks(world, self.log, train_and_evaluate, *self.argv, *overrides) as ranks:
            leave_in_time(ranks, 900)  # most of the steps are this life's, and three ranks may share a busy core
        self._read_log()
        assert [rank.exitcode for rank in ranks] == [0] * world, self._text(0)

    def __str__(self) -> str:
        counts = ", ".join(f"{number} {what}" for what, number in sorted(self.counts.items()))
        return f"{counts}; gone on from {len(self.resumed)} checkpoints between steps {min(self.resumed)} and {max(self.resumed)}"

    def _wait_for(self, moment: str, ranks: list[BaseProcess]) -> None:
        if moment == "start":
            time.sleep(self.rng.uniform(0.0, 3.0))
            return
        steps = self.rng.randint(1, MAX_STEPS)
        begun = (re.findall(r"^step (\d+)/", self._text(0), re.MULTILINE) for _ in itertools.repeat(None))
        self._poll((len(lines) >= steps for lines in begun), ranks)
        if moment == "save":
            before = self._being_saved()
            self._poll((bool(self._being_saved() - before) for _ in itertools.repeat(None)), ranks)
        elif moment == "evaluation":
            self._poll(((self.folder / "evaluating").exists() for _ in itertools.repeat(None)), ranks)
        time.sleep(self.rng.uniform(0.0, 0.01))

    def _poll(self, conditions: Iterator[bool], ranks: list[BaseProcess]) -> None:
        deadline = time.monotonic() + 120
        for met in conditions:
            if met:
                return
            assert time.monotonic() < deadline, f"the run does not get there: {self._text(0)[-2000:]}"
            assert all(rank.exitcode is None for rank in ranks), f"the run ended by itself: {self._text(0)[-2000:]}"
            time.sleep(0.001)

    def _being_saved(self) -> set[str]:
        checkpoints = self.folder / "checkpoints"
        return {name for name in os.listdir(checkpoints) if name.startswith(".")} if checkpoints.is_dir() else set()

    def _read_log(self) -> bool:
        """Count what a life went on from; returns whether it came as far as a step."""
        self.resumed.update(int(step) for step in re.findall(r"going on from \S+/step-(\d+)", self._text(0)))
        return bool(re.search(r"^step \d+/", self._text(0), re.MULTILINE))

    def _check(self, how: str, trained: bool, ranks: list[BaseProcess], victim: int) -> None:
        """Everybody left as they should: the struck ones by the strike, the others naming one of them, in one line."""
        codes = [rank.exitcode for rank in ranks]
        if how == "SIGTERM" and trained:
            assert codes == [0] * len(ranks), (how, codes, self._text(0)[-2000:])
            return
        assert set(codes) <= {STRIKES[how], 1, 0 if how == "SIGTERM" else 1}, (how, codes)
        assert how != "kill one" or codes[victim] == STRIKES[how]
        for rank, code in enumerate(codes):
            if code == 1:
                (line,) = said(self.log, rank)
                named = re.search(r"rank \d \(\S+, pid \d+\) is lost|does not meet the other ranks", line)
                assert named, line
                assert how != "kill one" or not trained or f"flexiclip: rank {victim} (" in line, line

    def _text(self, rank: int) -> str:
        path = Path(f"{self.log}.{rank}")
        return path.read_text() if path.is_file() else ""


def soak(argv: list[str], folder: Path, strikes: int, seed: int, life: Life) -> Soak:
    """Strike the run of `argv`, which trains `steps_for(strikes)` steps, so many times, then let it come to its end."""
    soaked = Soak([*argv, f"run_dir={folder}"], folder, random.Random(seed))
    every = list(itertools.product(STRIKES, MOMENTS))
    plan = list(itertools.islice(itertools.cycle(every), max(strikes, len(every))))
    soaked.rng.shuffle(plan)
    for how, moment in plan[:strikes]:
        soaked.strike(life, how, moment)
    soaked.finish(life)
    return soaked
