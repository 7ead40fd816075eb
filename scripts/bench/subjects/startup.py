"""Measure the start-up time of commands in fresh processes: help, a resolved recipe, and the first training step.

    python -m scripts.bench.subjects.startup           nine rounds (a minute or two)
    python -m scripts.bench.subjects.startup --quick   one round

The times are medians of wall-clock time, and the commands take turns. Heavy imports are the libraries of HEAVY that the command
has imported when it ends; help and show-config need none. The first training step is that of the debug recipe. Its time is from
the start of the process to the line about the step, and includes training the tokenizer, indexing the shards and starting a data
worker.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.bench.measure import take_turns
from scripts.bench.record import Record, options
from scripts.bench.samples import pairs, write_shard

HEAVY = (
    *(
        "torch",
        "deepspeed",
        "open_clip",
        "transformers",
        "torchvision",
        "timm",
        "webdataset",
        "matplotlib",
        "tensorboard",
        "numpy",
    ),
    *("PIL", "sentencepiece", "safetensors", "fsspec", "rich", "scipy", "pandas", "onnx", "onnxruntime", "sklearn"),
)
HELP_S = 0.5
WORDS = ("red", "old", "small", "brick", "house", "fox", "owl", "harbour", "summer", "light", "stone", "garden")
PROGRAM = """
import sys
from flexiclip.__main__ import main
try:
    main({arguments!r})
except SystemExit:  # of --help
    pass
print(file=sys.stderr)
print(*(name for name in {heavy!r} if name in sys.modules), file=sys.stderr)
"""


def run(command: Sequence[str]) -> None:
    """Run a command and discard its output. Raises CalledProcessError."""
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)


def heavy_imports(arguments: Sequence[str]) -> list[str]:
    """Return the libraries of HEAVY that `flexiclip ARGUMENTS` has imported when it ends."""
    program = PROGRAM.format(arguments=list(arguments), heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()[-1].split()


def write_pairs(folder: Path) -> str:
    """Write two shards for the debug recipe, with enough captions to train its tokenizer. Returns their pattern."""
    captions = [
        f"a {a} {b} near the {c} {number}" for number, (a, b, c) in enumerate(zip(WORDS, WORDS[3:], WORDS[5:], strict=False))
    ]
    drawn = list(pairs(64, 64, 48, captions))
    for number in range(2):
        write_shard(folder / f"pairs-{number}.tar", drawn[32 * number : 32 * number + 32])
    return str(folder / "pairs-*.tar")


def one_step(shards: str, folder: str) -> list[str]:
    """Return flexiclip's arguments for one step of the debug recipe."""
    return ["train", "debug", f"data.train={shards}", f"run_dir={folder}/run", "train.steps=1", "tokenizer.vocab_size=120"]


def first_step(shards: str) -> float:
    """Return the seconds from the start of a run to the line about its first step."""
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, "-m", "flexiclip", *one_step(shards, folder)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        metrics = Path(folder) / "run" / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.01)
        spent = time.perf_counter() - start
        _, said = process.communicate()
        assert process.returncode == 0, said[-2000:]
    return spent


def main() -> None:
    """Print the table."""
    parser = options(__doc__, rounds=9)
    arguments: argparse.Namespace = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    console = str(Path(sys.executable).with_name("flexiclip"))
    commands: dict[str, list[str]] = {
        "python, nothing imported": [sys.executable, "-c", "pass"],
        "flexiclip --help": [console, "--help"],
        "flexiclip train --help": [console, "train", "--help"],
        "flexiclip show-config debug": [console, "show-config", "debug"],
        "open_clip_train.main --help": [sys.executable, "-m", "open_clip_train.main", "--help"],
    }
    works: dict[str, Callable[[], object]] = {name: partial(run, command) for name, command in commands.items()}
    times = take_turns(works, rounds)
    record = Record(
        "startup", "This subject measures the wall-clock time of new processes, and lists the large libraries that they import."
    )
    table = record.table("start-up", "command", "median s", "smallest s", "heavy imports")
    for name, command in commands.items():
        imported = heavy_imports(command[1:]) if command[0] == console else None
        said = "-" if imported is None else ", ".join(imported) or "none"
        table.add(name, statistics.median(times[name]), min(times[name]), said)
        if imported is not None:
            record.goal(f"{name}: libraries imported without use", len(imported), at_most=0)
    record.goal("flexiclip --help, s", statistics.median(times["flexiclip --help"]), at_most=HELP_S)
    with TemporaryDirectory() as folder:
        shards = write_pairs(Path(folder))
        steps = [first_step(shards) for _ in range(min(rounds, 3))]
        imported = heavy_imports(one_step(shards, folder))
    table.add("first step of flexiclip train debug", statistics.median(steps), min(steps), ", ".join(imported))
    record.finish(arguments)


if __name__ == "__main__":
    main()
