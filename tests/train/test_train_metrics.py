"""The files that a run writes row by row: cut back when it goes on, whole lines alone, one line where the disk is full."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flexiclip.errors import RunError
from flexiclip.train.logs import JsonLines, Metrics, read_lines


def test_json_lines_drop_what_lies_beyond_the_step_and_a_line_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "loss": step / 3} for step in (1, 2, 3, 4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 5, "lo')
    lines = JsonLines(path, resume_step=3)
    assert read_lines(path) == rows[:3]
    lines.write({"step": 4, "loss": 9.0})
    assert path.read_text().splitlines()[3:] == ['{"step": 4, "loss": 9.0}'], "it is in the file before the file is closed"
    lines.close()
    JsonLines(path).close()
    assert read_lines(path) == [*rows[:3], {"step": 4, "loss": 9.0}], "without a step nothing is dropped"


class Half(io.RawIOBase):
    """A disk that is full in the middle of a line."""

    def write(self, data: object) -> int:
        return len(bytes(data)) - 1  # type: ignore[call-overload]


def test_json_lines_on_a_full_disk_end_in_one_line(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    for full in (open("/dev/full", "ab", buffering=0), Half()):  # noqa: SIM115
        lines._file.close()
        lines._file = full  # type: ignore[assignment]
        with pytest.raises(
            RunError, match=r"metrics\.jsonl cannot be written: No space left on device: the same command goes on"
        ):
            lines.write({"step": 1})
    lines.close()


def test_metrics_name_each_bad_sample_once_over_all_starts(tmp_path: Path) -> None:
    one, other = ({"shard": shard, "key": "s1", "reason": "no image"} for shard in ("a.tar", "b.tar"))
    for _ in range(2):
        metrics = Metrics(tmp_path, 0, log_samples=False)
        metrics.log_bad([one, other, one])
        metrics.log_bad([{**one, "reason": "another one"}])
        metrics.close()
    assert read_lines(tmp_path / "bad_samples.jsonl") == [one, other]
    assert not (tmp_path / "samples.jsonl").exists()


def test_metrics_draw_each_length_and_write_what_is_not_finite_as_null(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 0, log_samples=True)
    metrics.log({"step": 1, "seqhw": 4, "loss": 2.5, "grad_norm": 1.0})
    metrics.log({"step": 2, "seqhw": 6, "loss": math.nan, "grad_norm": math.inf})
    metrics.log_samples(1, 4, ["a.tar/s1"])
    metrics.log_evaluation(2, {"toy/recall@5": 0.25})
    metrics.close()
    assert read_lines(tmp_path / "metrics.jsonl")[1] == {"step": 2, "seqhw": 6, "loss": None, "grad_norm": None}
    assert json.loads((tmp_path / "samples.jsonl").read_text()) == {"step": 1, "seqhw": 4, "samples": ["a.tar/s1"]}
    assert read_lines(tmp_path / "eval.jsonl") == [{"step": 2, "toy/recall@5": 0.25}]
    assert Metrics(tmp_path, 2, log_samples=False).evaluated == 2
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    drawn = {name: [(event.step, event.value) for event in board.Scalars(name)] for name in board.Tags()["scalars"]}
    loss = [(1, 2.5)]
    assert drawn == {"loss": loss, "loss_at_seqhw/4": loss, "grad_norm": [(1, 1.0)], "toy/recall@5": [(2, 0.25)]}
