"""Where the curves of a run are drawn: TensorBoard, Weights & Biases (wandb), or trackio, which has wandb's interface.

    train.trackers: [tensorboard]            the default: files in RUN/tensorboard
    train.trackers: [tensorboard, wandb]     also wandb; with WANDB_MODE=offline its files stay in RUN/wandb

metrics.jsonl and eval.jsonl hold every number under its own name, whatever is tracked. Here the numbers get the names of curves,
in groups: the loss, the evaluation, the model's scalars, the schedule and the speed. FIELDS says which field is drawn where.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from flexiclip.errors import RunError
from flexiclip.files import read_json, system_reason, write_whole
from flexiclip.libraries import library_errors, require, short_reason


class Field(NamedTuple):
    """A field of metrics.jsonl: the name of its curve ("" for none), and its meaning."""

    curve: str
    meaning: str


FIELDS = {
    "step": Field("", "Number of finished steps. It is the horizontal axis of every curve."),
    "samples": Field("schedule/samples", "Number of samples that all ranks have trained on: step x train.global_batch_size."),
    "loss": Field("train/loss", "Loss of this step over the global batch. null if it was NaN or Inf (train.on_nonfinite=skip)."),
    "seqhw": Field("schedule/seqhw", "Grid side that this step was trained at. The images have seqhw^2 tokens."),
    "lr": Field("schedule/lr", "Learning rate of this step."),
    "grad_norm": Field("model/grad_norm", "Norm of all gradients together, before they are clipped. null if it was NaN or Inf."),
    "logit_scale": Field(
        "model/logit_scale",
        "Natural logarithm of the scale of the logits after this step. The curve shows the scale itself. Only in contrastive "
        "training and in the distillation of two towers.",
    ),
    "logit_bias": Field("model/logit_bias", "Bias of the logits after this step. Only with loss.kind=sigmoid."),
    "skipped": Field(
        "model/skipped", "Number of steps that were left out since the start of the run. Only with train.on_nonfinite=skip."
    ),
    "epoch": Field("schedule/epoch", "Number of passes over the training samples. Not with data.sequential."),
    "tflops": Field("schedule/tflops", "Floating-point operations of all steps so far, in units of 10^12."),
    "images_per_s": Field("speed/images_per_s", "Images per second over all ranks, as the mean since the row before."),
    "data_s": Field("speed/data_s", "Seconds per step that the main rank waited for data, as the mean since the row before."),
    "step_s": Field("speed/step_s", "Seconds per step with that wait, as the mean since the row before."),
}
"""Every field that a row of metrics.jsonl may have. docs/reference/metrics.md is written from it."""

NAMES = ("tensorboard", "wandb", "trackio")

_RETRIEVED = {"image_retrieval": "text→image", "text_retrieval": "image→text"}
_STATE = "trackers.json"  # in the run folder: the ids under which services know the run


class Tracker(Protocol):
    """Something that draws curves. Only the main rank has any."""

    def log(self, step: int, curves: Mapping[str, float]) -> None:
        """Draw one point of each curve. All values are finite."""

    def close(self) -> None:
        """Write what is left."""


def curves_of(row: Mapping[str, float]) -> dict[str, float]:
    """Return the curves of a row of metrics.jsonl. Each length also has a curve of its loss. Values are finite."""
    curves = {FIELDS[name].curve: math.exp(value) if name == "logit_scale" else value for name, value in row.items()}
    if "seqhw" in row:
        curves[f"train/loss_at_seqhw={row['seqhw']:02d}"] = row["loss"]
    curves.pop("", None)
    return {name: value for name, value in curves.items() if math.isfinite(value)}


def evaluation_curves(values: Mapping[str, float]) -> dict[str, float]:
    """Return the curves eval/SET/METRIC/seqhw=NN of the values {SET/TASK/METRIC/seqhw=N} of an evaluation.

    Metrics have short names, because TensorBoard cuts long ones. If two tasks of a set have the same metric, the task stays.
    """
    named: dict[str, list[tuple[str, float]]] = {}
    for key, value in values.items():
        found = key.rsplit("/", 3)
        short, task = (_short_curve(*found), found[1]) if len(found) == 4 else (key, "")
        named.setdefault(short, []).append((task, value))
    curves: dict[str, float] = {}
    for short, tasks in named.items():
        for task, value in tasks:
            head, slash, tail = short.partition("/")
            curves["eval/" + (short if len(tasks) == 1 else f"{head}{slash}{task} {tail}")] = value
    return {name: value for name, value in curves.items() if math.isfinite(value)}


def _short_curve(name: str, _: str, metric: str, length: str) -> str:
    for long, direction in _RETRIEVED.items():
        if metric.startswith(f"{long}_"):
            metric = f"{metric.removeprefix(f'{long}_').replace('recall@', 'R@')} {direction}"
    side = length.removeprefix("seqhw=")
    return f"{name}/{metric}/" + (f"seqhw={int(side):02d}" if side.isdecimal() else length)


def open_trackers(
    names: Sequence[str], run: Path, step: int, config: Mapping[str, Any], say: Callable[[str], None]
) -> list[Tracker]:
    """Return the trackers that a recipe names. `step`: the number of finished steps; `config`: the recipe, as plain values.

    Raises UserError if a package is missing or a service cannot be reached.
    """
    made: list[Tracker] = []
    for name in names:
        made.append(TensorBoard(run, step) if name == "tensorboard" else Service(name, run, config, say))
    return made


class TensorBoard:
    """Writes RUN/tensorboard, without what is drawn beyond the step at which a run goes on.

    TensorBoard shows groups in the order of their names, capitals first. So that the loss comes before the evaluation, its
    group is called `Train` there.
    """

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = run / "tensorboard"
        self._hook = threading.excepthook
        threading.excepthook = self._thread_died
        self._board = SummaryWriter(str(self.folder), purge_step=step + 1)

    def log(self, step: int, curves: Mapping[str, float]) -> None:
        """Draw one point of each curve. Raises RunError if the disk is full."""
        with one_line(self.folder):
            for name, value in curves.items():
                self._board.add_scalar(f"Train/{name[6:]}" if name.startswith("train/") else name, value, step)

    def close(self) -> None:
        """Write what is left."""
        with suppress(OSError):  # on a full disk; metrics.jsonl has every number
            self._board.close()
        threading.excepthook = self._hook

    def _thread_died(self, arguments: threading.ExceptHookArgs) -> None:
        """Suppress the traceback with which TensorBoard's thread dies on a full disk.

        The next call to TensorBoard raises the same error, and that one is reported.
        """
        if not type(arguments.thread).__module__.startswith("tensorboard."):
            self._hook(arguments)


class Service:
    """Sends the curves by wandb, or by a package with the same interface. A run that goes on continues the same curves.

    After the start, an error of the package does not end the run: it is printed once, and the package is not called again.
    """

    def __init__(self, name: str, run: Path, config: Mapping[str, Any], say: Callable[[str], None]) -> None:
        self.name, self._say = name, say
        self._package: ModuleType | None = require(name, name, f"train.trackers={name}")
        fix = "; log in with `wandb login`, or set WANDB_MODE=offline" if name == "wandb" else ""
        with library_errors(f"train.trackers={name}: it cannot start", fix):
            self._package.init(**self._settings(run, config))

    def _settings(self, run: Path, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of `init`. WANDB_PROJECT and wandb's other variables replace what is given here."""
        about = {"project": os.environ.get("WANDB_PROJECT", "flexiclip"), "name": run.name, "config": dict(config)}
        if self.name != "wandb":
            return {**about, "resume": "allow"}
        assert self._package is not None
        quiet = self._package.Settings(console="off")  # the output of a run belongs to its own panel
        return {**about, "dir": str(run), "id": _id_of(run, self.name), "resume": "allow", "settings": quiet}

    def log(self, step: int, curves: Mapping[str, float]) -> None:
        """Send one point of each curve."""
        with self._told():
            if self._package is not None:
                self._package.log(dict(curves), step=step)

    def close(self) -> None:
        """Send what is left."""
        with self._told():
            if self._package is not None:
                self._package.finish()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._package = None
            self._say(f"{self.name} draws no more curves of this run: {short_reason(error)}; metrics.jsonl has every number")


def _id_of(run: Path, name: str) -> str:
    """Return the id of the run at a service. It is made at the first start and kept in the run folder."""
    path = run / _STATE
    known = read_json(path) if path.is_file() else {}
    if name not in known:
        known[name] = secrets.token_hex(4)
        with one_line(path):
            write_whole(path, json.dumps(known) + "\n")
    return str(known[name])


@contextmanager
def one_line(path: Path) -> Iterator[None]:
    """Turn an OSError about a file of the run into a RunError of one line."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {system_reason(error)}: "
            "the same command goes on from the newest checkpoint when that is fixed"
        ) from error
