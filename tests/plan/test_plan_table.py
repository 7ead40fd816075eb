"""The printed table of a plan: each of its numbers, in its unit."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios

import pytest

from flexiclip.plan.result import Plan
from flexiclip.plan.table import _work, render


def test_the_table_shows_the_plan(flexiclip_b: Plan) -> None:
    """Each number of the printed plan, in its unit."""
    text = render(flexiclip_b)
    assert flexiclip_b.hours is not None
    assert f"{flexiclip_b.hours:,.3g} hours, {16 * flexiclip_b.hours:,.4g} rank-hours" in text
    assert f"{flexiclip_b.images_per_s:,.0f} images/s ({flexiclip_b.images_per_s / 2:,.0f} per node to read and decode)" in text
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    lines = {row[0]: row[1:] for row in cells}
    own = next(stage for stage in flexiclip_b.stages if stage.own)
    kept = own.memory.states
    held = (kept.parameters + kept.optimizer + kept.buffers + kept.gradients) / 1e9
    expected = [f"{held:.2f}", f"{own.memory.peak / 1e9:.2f}", "yes", f"{own.micro_batch_size:,}", f"{own.micro_tokens:,}"]
    assert lines["ZeRO-1 *"][:5] == expected
    assert lines["ZeRO-1 *"][5:] == [f"{own.checkpointed_micro_batch_size:,}", f"{own.traffic / 1e9:.3g}"]
    last = flexiclip_b.lengths[-1]
    assert lines[str(last.seqhw)] == [
        str(last.tokens),
        f"{last.share:.0%}",
        f"{last.flops.total / 1e9:,.3g}",
        f"{last.micro_batches} x {last.micro_batch}",
        f"{last.memory.activations / 1e9:.2f}",
        f"{last.memory.peak / 1e9:.2f}",
        f"{last.step_s:.3g}",
        f"{last.network_s / (last.compute_s + last.network_s):.0%}",
        f"{last.images_per_s:,.0f}",
    ]
    assert [_work(x) for x in (0.5, 3.0, 1e3, 2.5e6, 4e9)] == ["500 GFLOPs", "3 TFLOPs", "1 PFLOPs", "2.5 EFLOPs", "4 ZFLOPs"]


def _cells(text: str) -> set[str]:
    return {cell.strip() for line in text.splitlines() if line.startswith("| ") for cell in line.split("|")[1:-1]}


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_a_terminal_of_any_width_shows_every_number_whole(width: int, flexiclip_b: Plan) -> None:
    """A table that is too wide is divided, and each part has the lengths; no line is longer than the terminal."""
    whole, narrow = render(flexiclip_b), render(flexiclip_b, width)
    assert _cells(narrow) == _cells(whole)
    assert "…" not in narrow
    assert max(map(len, narrow.splitlines())) <= width
    assert narrow.split() == whole.split() if width == 200 else narrow.count("| seqhw") > 1
    assert re.sub(r"\s+", " ", narrow).endswith(re.sub(r"\s+", " ", whole).partition("on average")[2])


def test_the_command_prints_no_shortened_number_on_a_terminal_of_80_columns() -> None:
    """In a real terminal, which a pipe is not."""
    inside, outside = pty.openpty()
    termios.tcsetwinsize(outside, (24, 80))
    command = [sys.executable, "-m", "flexiclip", "plan", "debug", "--device", "a100", "--gpus-per-node", "2"]
    without = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen(command, stdout=outside, env={**without, "TERM": "xterm"}) as running:
        os.close(outside)
        shown = b""
        while part := _read(inside):
            shown += part
    os.close(inside)
    assert running.returncode == 0
    lines = shown.decode().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in shown.decode()
    assert {"images/s", "micro_batch_size", "recomputing", "GFLOPs/pair"} <= _cells(shown.decode())


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # the other end is closed
        return b""
