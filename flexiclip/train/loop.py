"""The training loop.

flexiclip train RECIPE [key=value ...], or the same under torchrun or deepspeed. A step draws its length from (seed, step), its
samples from (seed, step), and its learning rate from the step: the only state is the step, the weights and the moments.
"""

from __future__ import annotations

import sys
import time

from flexiclip.config import Config
from flexiclip.data.batch import Batch
from flexiclip.errors import UserError
from flexiclip.train.objectives.base import Inputs
from flexiclip.train.processes.ranks import joined_ranks
from flexiclip.train.processes.run_lock import RunLock
from flexiclip.train.processes.signals import Stopped, StopSignal
from flexiclip.train.processes.stalls import PATIENCE, Feed
from flexiclip.train.records.recorder import Evaluators, Recorder
from flexiclip.train.setup import Run, set_up


def train(config: Config, evaluators: Evaluators | None = None) -> bool:
    """Train a recipe to its end, or until SIGINT or SIGTERM, which save first; returns whether it has come to its end.

    evaluators: model -> metrics, called on every rank.
    """
    group, patience_s = config.engine.kind == "deepspeed", (PATIENCE + 1) * config.data.stall_s
    try:
        with (
            StopSignal() as stop,
            joined_ranks(group, config.train.threads, config.train.rank_timeout_s, patience_s, stop) as ranks,
            RunLock() as lock,
        ):
            run = set_up(config, ranks, evaluators is not None, lock)
            stop.defer()
            if run.step > run.horizon.steps:
                raise UserError(
                    f"{run.folder} is at step {run.step}, beyond the {run.horizon.steps} of train.steps={config.train.steps}: "
                    "raise it, or name another run_dir"
                )
            if run.step == run.horizon.steps:
                with Recorder(run, evaluators) as recorder:
                    recorder.complete()
                ranks.say(f"{run.folder} is complete at step {run.step}: nothing to train")
                return True
            with Recorder(run, evaluators) as recorder, Feed(run.batches(), ranks.rank, config.data.stall_s, stop) as feed:
                _loop(run, recorder, feed, stop)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return False
    return run.step == run.horizon.steps


def _loop(run: Run, recorder: Recorder, feed: Feed, stop: StopSignal) -> None:
    start = run.step
    while run.step < run.horizon.steps:
        run.lock.check()
        clock = time.perf_counter()
        batch = feed.take(run.step + 1)
        waited = time.perf_counter() - clock
        # Asked before the step and not after it: a rank whose data hangs can leave together with those that have theirs.
        if run.ranks.agree(stop.asked)[0]:
            if run.step > start:
                recorder.save_last()
            recorder.say(f"stopped by a signal at step {run.step}; the same command goes on from here")
            return
        assert batch is not None, "no batch, and nobody asked to stop"
        _step(run, recorder, batch, clock, waited)
    recorder.say(f"done: {run.folder / 'model'}")


def _step(run: Run, recorder: Recorder, batch: Batch, clock: float, waited: float) -> None:
    seqhw, lr = run.course.seqhw(run.step), run.lr(run.step)
    outcome = run.stepper(Inputs.of(batch, run.ranks.device), seqhw, run.step, lr)
    run.step += 1
    if outcome.fault is not None:
        recorder.say(run.skips.refused(run.ranks, run.step, seqhw, outcome.fault))
    else:
        run.skips.healthy()
    values = {"loss": outcome.loss, "seqhw": seqhw, "lr": lr, "grad_norm": outcome.norm}
    recorder.record(batch, waited, time.perf_counter() - clock, **values)
    recorder.check_data()
    done = run.step == run.horizon.steps
    if done:
        recorder.save_last()
    elif recorder.save_is_due():
        recorder.save()
    if done or recorder.evaluation_is_due():
        recorder.evaluate()
