"""The curves of a run: what a real run writes is what the reference explains, in TensorBoard's order and under wandb offline."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from kit.overrides import last_of_each
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from docs.hooks import PARTS
from flexiclip.config import load
from flexiclip.errors import UserError
from flexiclip.train.logs import read_lines
from flexiclip.train.trackers import FIELDS, TensorBoard, curves_of, evaluation_curves, open_trackers

EVERY_FIELD = ("loss.kind=sigmoid", "model.logit_bias_init=-10", "train.on_nonfinite=skip", "train.log_every=1", "train.steps=3")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    board = EventAccumulator(str(folder))
    board.Reload()
    return {name: [(event.step, event.value) for event in board.Scalars(name)] for name in board.Tags()["scalars"]}


@pytest.fixture(scope="module")
def run(recipe: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that writes every field, to TensorBoard and to wandb, as a program of its own."""
    folder = tmp_path_factory.mktemp("runs") / "curves"
    given = [*recipe, *EVERY_FIELD, "train.trackers=[tensorboard,wandb]", f"run_dir={folder}"]
    command = [sys.executable, "-m", "flexiclip", "train", *last_of_each(given)]
    offline = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    done = subprocess.run(command, env=offline, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_the_reference_explains_every_field_that_a_run_writes(run: Path) -> None:
    for row in read_lines(run / "metrics.jsonl"):
        assert set(row) == set(FIELDS)
    table = PARTS["metrics"]().splitlines()[2:]
    assert [line.split("`")[1] for line in table] == list(FIELDS), "docs/reference/metrics.md is made of this table"


def test_tensorboard_shows_the_loss_first_and_the_rows_of_metrics(run: Path) -> None:
    """TensorBoard sorts by code points (vz_sorting compareTagNames): groups first, then the curves of a group."""
    drawn, rows = scalars(run / "tensorboard"), read_lines(run / "metrics.jsonl")
    assert min(drawn) == "Train/loss"
    assert {name.split("/")[0] for name in drawn} == {"Train", "model", "schedule", "speed"}
    for name, field in FIELDS.items():
        if not field.curve:
            continue
        tag = field.curve.replace("train/", "Train/")
        wanted = [math.exp(row[name]) if name == "logit_scale" else row[name] for row in rows]
        assert [value for _, value in drawn[tag]] == pytest.approx(wanted, rel=1e-6), name
        assert [step for step, _ in drawn[tag]] == [1, 2, 3]
    lengths = {row["seqhw"] for row in rows}
    assert {name for name in drawn if "at_seqhw" in name} == {f"Train/loss_at_seqhw={seqhw:02d}" for seqhw in lengths}


def test_wandb_offline_has_the_same_curves(run: Path) -> None:
    """Read back with wandb's own reader of its files."""
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    rows, config = read_wandb(file)
    assert [int(row["_step"]) for row in rows] == [1, 2, 3]
    for got, row in zip(rows, read_lines(run / "metrics.jsonl"), strict=True):
        for name, value in curves_of(row).items():
            assert float(got[name]) == pytest.approx(value), name
    assert config["optimizer"]["lr"] == load("debug", []).optimizer.lr
    assert config["train"]["trackers"] == ["tensorboard", "wandb"]
    known = json.loads((run / "trackers.json").read_text())
    assert file.name == f"run-{known['wandb']}.wandb"


def read_wandb(file: Path) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """(rows of the history, recipe) of a .wandb file: a LevelDB log of messages, in blocks of 32 kB."""
    from wandb.proto import wandb_internal_pb2

    data, at, message, rows, config = file.read_bytes(), 7, b"", [], {}
    while at + 7 <= len(data):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        message += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind not in (1, 4):  # the first or a middle part of a message
            continue
        record = wandb_internal_pb2.Record()
        record.ParseFromString(message)
        message = b""
        if record.HasField("history"):
            rows.append({item.key or "/".join(item.nested_key): item.value_json for item in record.history.item})
        if record.HasField("run"):
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    return rows, config


def test_a_run_that_goes_on_does_not_draw_a_step_twice(tmp_path: Path) -> None:
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        board = TensorBoard(tmp_path, start)
        for step in steps:
            board.log(step, {"train/loss": step + start})
        board.close()
    assert scalars(tmp_path / "tensorboard") == {"Train/loss": [(1, 1.0), (2, 2.0), (3, 5.0), (4, 6.0)]}


def test_the_curves_of_an_evaluation_have_short_names_and_lengths_of_two_digits() -> None:
    values = {
        "emoji/retrieval/image_retrieval_recall@5/seqhw=3": 0.1,
        "emoji/retrieval/text_retrieval_median_rank/seqhw=12": 2.0,
        "a/b/classification/acc1/seqhw=3": 0.5,
        "emoji/multilabel/mean_average_precision/seqhw=3": math.nan,
        "other": 1.0,
    }
    assert evaluation_curves(values) == {
        "eval/emoji/R@5 text→image/seqhw=03": 0.1,
        "eval/emoji/median_rank image→text/seqhw=12": 2.0,
        "eval/a/b/acc1/seqhw=03": 0.5,
        "eval/other": 1.0,
    }


def test_tasks_of_a_set_that_share_a_metric_keep_their_names() -> None:
    values = {"pets/classification/acc1/seqhw=3": 0.5, "pets/choice/acc1/seqhw=3": 0.7}
    assert evaluation_curves(values) == {"eval/pets/classification acc1/seqhw=03": 0.5, "eval/pets/choice acc1/seqhw=03": 0.7}


class Package(ModuleType):
    """A package with wandb's interface, as trackio is."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, Any]] = []
        self.broken = False

    def init(self, **settings: Any) -> None:
        self.calls.append(("init", settings))

    def log(self, values: dict[str, float], step: int) -> None:
        if self.broken:
            raise RuntimeError("no network: no network")
        self.calls.append((f"log {step}", values))

    def finish(self) -> None:
        self.calls.append(("finish", None))


def test_trackio_is_called_as_wandb_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Package("trackio")
    monkeypatch.setitem(sys.modules, "trackio", package)
    (tracker,) = open_trackers(["trackio"], tmp_path / "small", 0, {"seed": 1}, print)
    tracker.log(4, {"train/loss": 2.0})
    tracker.close()
    start = {"project": "flexiclip", "name": "small", "config": {"seed": 1}, "resume": "allow"}
    assert package.calls == [("init", start), ("log 4", {"train/loss": 2.0}), ("finish", None)]


def test_a_service_that_fails_is_named_once_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, said = Package("trackio"), list[str]()
    package.broken = True
    monkeypatch.setitem(sys.modules, "trackio", package)
    (tracker,) = open_trackers(["trackio"], tmp_path, 0, {}, said.append)
    for step in (1, 2):
        tracker.log(step, {"train/loss": 2.0})
    tracker.close()
    assert said == ["trackio draws no more curves of this run: no network; metrics.jsonl has every number"]
    assert [name for name, _ in package.calls] == ["init"]


def test_a_missing_package_and_a_login_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(
        UserError, match=r"train\.trackers=trackio: the Python package trackio is not installed; run `pip install"
    ):
        open_trackers(["trackio"], tmp_path, 0, {}, print)
    refusing = Package("wandb")
    refusing.Settings = lambda **_: None  # type: ignore[attr-defined]
    refusing.init = lambda **_: (_ for _ in ()).throw(RuntimeError("api_key not configured"))  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "wandb", refusing)
    with pytest.raises(UserError, match=r"it cannot start: api_key not configured; log in with `wandb login`, or set WANDB_MODE"):
        open_trackers(["wandb"], tmp_path, 0, {}, print)
