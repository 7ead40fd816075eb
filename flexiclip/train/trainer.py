"""The training loop, and what happens around its steps: logging, checkpoints and evaluation.

    flexiclip train RECIPE [key=value ...]    # or the same under torchrun or deepspeed

A step draws its length and its samples from (seed, step), and its learning rate from the step. So the only state is the step, the
weights and the moments.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable

from flexiclip.config import Config, to_dict
from flexiclip.data.batch import Batch
from flexiclip.errors import RunError, UserError
from flexiclip.model_folder import LoadedModel, OpenModel, is_model_folder, save_model
from flexiclip.schedules import TERA
from flexiclip.train.banner import EstimateMemory, banner
from flexiclip.train.checkpoint import Facts, Snapshot
from flexiclip.train.checkpoint_writer import CheckpointWriter
from flexiclip.train.eval_table import evaluation_table
from flexiclip.train.feed import STALLS_BEFORE_GIVING_UP, Feed
from flexiclip.train.logs import BadShare, Metrics, Progress
from flexiclip.train.objectives import Inputs
from flexiclip.train.ranks import joined_ranks
from flexiclip.train.run_lock import RunLock
from flexiclip.train.setup import Run, consolidated, model_to_evaluate, set_up
from flexiclip.train.signals import Stopped, StopSignal
from flexiclip.train.trackers import Tracker, open_trackers

Evaluators = Callable[[LoadedModel], dict[str, float]]
"""A function from a model to its metrics. Every rank calls it with the model in eval mode, and gets the same result."""


class Recorder:
    """Logs, saves and evaluates a run. Every rank must call the collective methods, but only the main rank writes."""

    def __init__(self, run: Run, evaluators: Evaluators | None) -> None:
        train, every = run.config.train, run.config.eval.every
        self.run, self.evaluators, self.horizon, self.ranks = run, evaluators, run.schedule.horizon, run.context.ranks
        steps_of, folder, main = self.horizon.steps_of, run.context.folder, self.ranks.main
        self.log_every = steps_of(train.log_every)
        self.save_every = None if train.save_every.unit == "minutes" else steps_of(train.save_every)
        self.eval_every = steps_of(every) if every is not None else None
        trackers = self._trackers() if main else []  # before the panel, because a service may print and may refuse
        self.progress = Progress(self.horizon.steps, run.step, main)
        self.metrics = Metrics(folder, run.step, train.log_samples, trackers) if main else None
        keep = train.keep_last, steps_of(train.keep_every) if train.keep_every is not None else None
        self.writer = CheckpointWriter(run.store, folder, keep, self.say, run.checkpoint) if main else None
        self._bad: list[dict[str, str]] = []  # found by this rank and not yet logged
        self._bad_share, self._start = BadShare(run.config.data.max_bad_fraction), run.step
        self._name_damaged()
        self._times: list[tuple[float, float]] = []  # (data, step) seconds since the last row
        self._saved_at = time.monotonic()

    def _trackers(self) -> list[Tracker]:
        run = self.run
        return open_trackers(run.config.train.trackers, run.context.folder, run.step, to_dict(run.config), self.say)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.writer is not None and kind is not KeyboardInterrupt:  # a second Ctrl-C means to leave at once
            self.writer.wait()
        self.progress.close()
        if self.metrics is not None:
            self.metrics.close()

    def say(self, text: str) -> None:
        """Print one line, only on the main rank."""
        self.progress.say(text)

    def record(self, batch: Batch, data_s: float, step_s: float, **values: float) -> None:
        """Record a finished step, and write a row every train.log_every steps. Collective.

        data_s: seconds spent waiting for the batch. step_s: seconds of the whole step, with the wait.
        """
        run = self.run
        self._times.append((data_s, step_s))
        run.flops += run.step_flops(run.step - 1)
        self._bad += batch.bad
        self.progress.seen(int(values["seqhw"]), values["loss"])
        if run.config.train.log_samples:
            samples = self.ranks.collect(batch.samples)
            if self.metrics is not None:
                self.metrics.log_samples(run.step, int(values["seqhw"]), samples)
        if run.step % self.log_every and run.step != self.horizon.steps:
            return
        self._name_bad()
        row = {"step": run.step, **self._row(values)}
        if self.metrics is not None:
            self.metrics.log(row)
        self.progress.show(row)
        self._times = []

    def check_data(self) -> None:
        """Save and raise UserError if too many samples cannot be used. The counts change at each logged row. Collective."""
        try:
            self._bad_share.check((self.run.step - self._start) * self.horizon.batch)
        except UserError:
            self.save_last()
            raise

    def save_is_due(self) -> bool:
        """Whether train.save_every has passed. If it is in minutes, the main rank's clock decides. Collective."""
        if self.save_every is not None:
            return self.save_every > 0 and self.run.step % self.save_every == 0
        minutes = self.run.config.train.save_every.value
        passed = self.ranks.main and time.monotonic() - self._saved_at >= 60 * minutes
        return self.ranks.agree(passed)[0]

    def save(self) -> None:
        """Start to write a checkpoint. A failure is only printed. Collective.

        Without train.save_in_background, also wait until it is written.
        """
        snapshot = self._snapshot()
        if self.writer is None or snapshot is None:
            return
        background = self.run.config.train.save_in_background
        self.writer.write(snapshot.owned() if background else snapshot)
        if not background:
            self.writer.wait()
        self._saved_at = time.monotonic()  # by the main rank's clock

    def save_last(self) -> None:
        """Write the last checkpoint of this start. Raises RunError on every rank if it cannot be written. Collective."""
        snapshot = self._snapshot()
        failed: list[str] = []
        if self.writer is not None and snapshot is not None:
            try:
                self.writer.write_last(snapshot)
            except RunError as error:
                failed = [str(error)]
        for said in self.ranks.collect(failed):
            raise RunError(said)

    def complete(self) -> None:
        """Write the model and run the last evaluation, if a start that died at its very end left them out. Collective."""
        run = self.run
        folder = run.context.folder / "model"
        saved = not self.ranks.main or is_model_folder(folder)
        scored = self.evaluators is None or self.metrics is None or self.metrics.evaluated == run.step
        if not all(self.ranks.collect([saved])):
            snapshot = self._snapshot()
            if snapshot is not None:
                save_model(folder, snapshot.loaded, snapshot.weights, step=snapshot.facts.step)
        if not all(self.ranks.collect([scored])):
            self.evaluate()

    def _snapshot(self) -> Snapshot | None:
        """Return the contents of a checkpoint on the main rank. The others help to gather them and return None. Collective."""
        run, engine = self.run, self.run.stepper.engine
        self._name_bad()  # a run that goes on from this checkpoint does not read these samples again
        if not self.ranks.main:
            for _ in itertools.chain(engine.weights(), engine.moments()):
                pass
            return None
        weights, moments = consolidated(run), dict(engine.moments())
        moments |= {f"scalars/{name}": tensor for name, tensor in run.stepper.scalars.state().items()}
        facts = Facts(run.step, run.skips.total, to_dict(run.config), run.data_order, run.flops)
        return Snapshot(run.loaded, weights, moments, facts)

    def evaluation_is_due(self) -> bool:
        """Whether eval.every has passed. The same on every rank."""
        return self.eval_every is not None and self.run.step % self.eval_every == 0

    def evaluate(self) -> None:
        """Run the evaluators and write their metrics to eval.jsonl and the trackers. Collective."""
        if self.evaluators is None:
            return
        values = self.evaluators(model_to_evaluate(self.run))
        self.run.loaded.model.train()
        if self.metrics is not None:
            self.metrics.log_evaluation(self.run.step, values)
        self.say(evaluation_table(self.run.step, values))

    def _name_damaged(self) -> None:
        damaged = self.run.sources.damaged if self.run.sources is not None else ()
        if damaged and self.metrics is not None:
            self.metrics.log_bad([shard.as_dict() for shard in damaged])
            more = f", and {len(damaged) - 1} more (bad_samples.jsonl)" if len(damaged) > 1 else ""
            self.say(f"a damaged shard, {damaged[0]}{more}")

    def _name_bad(self) -> None:
        bad = self.ranks.collect(self._bad)
        self._bad_share.add(bad)
        if self.metrics is not None:
            self.metrics.log_bad(bad)
        self._bad = []

    def _row(self, values: dict[str, float]) -> dict[str, float]:
        run, batch, samples = self.run, self.horizon.batch, self.horizon.samples
        data_s, step_s = (sum(column) / len(column) for column in zip(*self._times, strict=True))
        row = {"samples": run.step * batch, **values}
        named = zip(("logit_scale", "logit_bias"), run.stepper.scalars.scalars, strict=False)
        row |= {name: float(p.detach()) for name, p in named}
        row |= {"skipped": run.skips.total} if run.config.train.on_nonfinite == "skip" else {}
        row |= {"epoch": run.step * batch / samples} if samples else {}
        row |= {"tflops": run.flops / TERA} if run.flops else {}
        return row | {"images_per_s": batch / step_s, "data_s": data_s, "step_s": step_s}


def train(
    config: Config,
    evaluators: Evaluators | None = None,
    *,
    open_model: OpenModel | None = None,
    estimate: EstimateMemory | None = None,
) -> bool:
    """Train a recipe to its end, or until SIGINT or SIGTERM, after which the run saves and stops. Returns whether it is complete.

    evaluators: model -> metrics, called on every rank. open_model: opens the models of other libraries that `init` names.
    estimate: the memory that the recipe needs, for the lines at the start. Raises UserError and RunError.
    """
    group, longest_wait_s = config.engine.kind == "deepspeed", (STALLS_BEFORE_GIVING_UP + 1) * config.data.stall_s
    try:
        with (
            StopSignal() as stop,
            joined_ranks(group, config.train.threads, config.train.rank_timeout_s, longest_wait_s, stop) as ranks,
            RunLock() as lock,
        ):
            run = set_up(config, ranks, lock, evaluators is not None, open_model)
            stop.defer()
            folder, steps = run.context.folder, run.schedule.horizon.steps
            if run.step > steps:
                raise UserError(
                    f"{folder} is at step {run.step}, beyond the {steps} of train.steps={config.train.steps}: "
                    "raise it, or name another run_dir"
                )
            if run.step == steps:
                with Recorder(run, evaluators) as recorder:
                    recorder.complete()
                ranks.say(f"{folder} is complete at step {run.step}: nothing to train; a larger train.steps makes it longer")
                return True
            if ranks.main:
                ranks.say("\n".join(banner(run, estimate)))
            with Recorder(run, evaluators) as recorder, Feed(run.batches(), ranks.rank, config.data.stall_s, stop) as feed:
                _loop(run, recorder, feed, stop)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return False
    return run.step == steps


def _loop(run: Run, recorder: Recorder, feed: Feed, stop: StopSignal) -> None:
    start = run.step
    while run.step < run.schedule.horizon.steps:
        run.lock.check()
        clock = time.perf_counter()
        batch = feed.take(run.step + 1)
        waited = time.perf_counter() - clock
        # Checked before the step and not after it, so that a rank whose data hangs can leave together with the other ranks.
        if run.context.ranks.agree(stop.asked)[0]:
            if run.step > start:
                recorder.save_last()
            recorder.say(f"stopped by a signal at step {run.step}; the same command goes on from here")
            return
        assert batch is not None, "no batch, and no signal to stop"
        _step(run, recorder, batch, clock, waited)
    recorder.say(f"done: {run.context.folder / 'model'}")


def _step(run: Run, recorder: Recorder, batch: Batch, clock: float, waited: float) -> None:
    seqhw, lr = run.schedule.seqhw(run.step), run.schedule.lr(run.step)
    outcome = run.stepper(Inputs.of(batch, run.context.device), seqhw, run.step, lr)
    run.step += 1
    if outcome.fault is not None:
        recorder.say(run.skips.refused(run.context.ranks, run.step, seqhw, outcome.fault))
    else:
        run.skips.healthy()
    values = {"loss": outcome.loss, "seqhw": seqhw, "lr": lr, "grad_norm": outcome.norm}
    recorder.record(batch, waited, time.perf_counter() - clock, **values)
    recorder.check_data()
    done = run.step == run.schedule.horizon.steps
    if done:
        recorder.save_last()
    elif recorder.save_is_due():
        recorder.save()
    if done or recorder.evaluation_is_due():
        recorder.evaluate()
