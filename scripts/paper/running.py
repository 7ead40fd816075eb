"""Runs commands, several at a time. After a stop, the next run skips finished commands and continues the others.

Each task writes logs/NAME.log, and after success done/NAME.json with its command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from flexiclip.errors import UserError
from scripts.paper.work import Task, ready


class Runner:
    """Runs the commands of a seed in the seed's folder. `jobs` is the number of commands at a time, which share the cores."""

    def __init__(self, folder: Path, jobs: int) -> None:
        self.folder, self.jobs = folder, jobs
        self.began = time.monotonic()

    def run(self, tasks: Sequence[Task]) -> list[str]:
        """Run all tasks that can run. Returns the names of those that failed, and of those that could not start therefore."""
        done = {task.name for task in tasks if self._finished(task)}
        started, failed = set(done), set[str]()
        self._say(f"{len(tasks)} commands, {len(done)} of them done before")
        with ThreadPoolExecutor(self.jobs) as pool:
            running: dict[Future[bool], Task] = {}
            while True:
                while len(running) < self.jobs and not any(task.alone for task in running.values()):
                    task = ready(tasks, done, started, len(running))
                    if task is None:
                        break
                    started.add(task.name)
                    running[pool.submit(self._one, task, self._threads(task))] = task
                if not running:
                    return [task.name for task in tasks if task.name not in done]
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task = running.pop(future)
                    (done if future.result() else failed).add(task.name)
                    self._say(f"{len(done)}/{len(tasks)} {'FAILED ' if task.name in failed else ''}{task.name}")

    def log(self, name: str) -> Path:
        """Return the file with a task's output."""
        return self.folder / "logs" / f"{name}.log"

    def _threads(self, task: Task) -> int:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return cores if task.alone else max(1, cores // self.jobs)

    def _one(self, task: Task, threads: int) -> bool:
        log = self.log(task.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with log.open("w", encoding="utf-8") as file:
            command = [sys.executable, "-m", "flexiclip", *task.command]
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False).returncode
        if code == 0:
            stamp = self._stamp(task)
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.write_text(json.dumps({"command": task.command, "seconds": round(time.monotonic() - began, 1)}) + "\n")
        return code == 0

    def _finished(self, task: Task) -> bool:
        """Return whether the task is done. Raises UserError if another command did it, so that results are not mixed."""
        stamp = self._stamp(task)
        if not stamp.is_file():
            return False
        if tuple(json.loads(stamp.read_text())["command"]) != task.command:
            raise UserError(f"{self.folder}: {task.name} was made there by another command; move the folder away, or delete it")
        return True

    def _stamp(self, task: Task) -> Path:
        return self.folder / "done" / f"{task.name}.json"

    def _say(self, line: str) -> None:
        print(f"[{time.monotonic() - self.began:5.0f}s] {self.folder.name}: {line}", flush=True)
