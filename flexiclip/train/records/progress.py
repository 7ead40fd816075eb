"""What a person sees of a run: a live panel on a terminal, plain lines in a log."""

from __future__ import annotations

import math
import sys
import time
from typing import Any


class Progress:
    """Step, loss, images/s, share of time spent waiting for data, loss at each length, time left. Silent but on the main rank."""

    def __init__(self, total: int, start: int, main: bool) -> None:
        self.total, self.start, self.main = total, start, main
        self.began = time.monotonic()
        self.by_length: dict[int, float] = {}
        self._live: Any = None
        if main and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), refresh_per_second=4)
            self._live.start()

    def say(self, text: str) -> None:
        """One line, above the panel where there is one."""
        if not self.main:
            return
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def seen(self, seqhw: int, loss: float) -> None:
        """Take a step's loss into the running mean of its length; not that of a step that was skipped."""
        if not math.isfinite(loss):
            return
        old = self.by_length.get(seqhw, loss)
        self.by_length[seqhw] = old + 0.1 * (loss - old)

    def show(self, row: dict[str, Any]) -> None:
        """A logged row."""
        if self._live is not None:
            self._live.update(self._panel(row))
        elif self.main:
            waiting = row["data_s"] / max(row["step_s"], 1e-9)
            print(
                f"step {row['step']}/{self.total}  loss {row['loss']:.4f}  seqhw {row['seqhw']}  lr {row['lr']:.2e}  "
                f"{row['images_per_s']:.0f} images/s  data wait {waiting:.0%}  left {self._left(row['step'])}",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()

    def _left(self, step: int) -> str:
        done = step - self.start
        seconds = int((time.monotonic() - self.began) / max(1, done) * (self.total - step))
        return f"{seconds // 3600}:{seconds % 3600 // 60:02}:{seconds % 60:02}"

    def _panel(self, row: dict[str, Any]) -> Any:
        from rich.panel import Panel
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        scale = ("logit scale", f"{row['logit_scale']:.3f}") if "logit_scale" in row else ()
        table.add_row("loss", f"{row['loss']:.4f}", "lr", f"{row['lr']:.2e}", *scale)
        waiting = row["data_s"] / max(row["step_s"], 1e-9)
        table.add_row("images/s", f"{row['images_per_s']:.0f}", "data wait", f"{waiting:.0%}", "left", self._left(row["step"]))
        lengths = "  ".join(f"{s}: {loss:.2f}" for s, loss in sorted(self.by_length.items()))
        table.add_row("loss at seqhw", lengths)
        return Panel(table, title=f"step {row['step']} of {self.total}")
