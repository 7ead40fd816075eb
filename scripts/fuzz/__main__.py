"""Fuzz the readers of files from other sources. The exit code is 1 if anything is found.

    python -m scripts.fuzz index --minutes 10 --seed 1       tar shards, their index caches, and the members that they name
    python -m scripts.fuzz samples | recipe | weights        a sample's members; recipes and overrides; weight files and folders
    python -m scripts.fuzz index --smoke 300                 the seeds, past findings and 300 mutations, in seconds
    python -m scripts.fuzz weights --replay FILE             run one saved input again

scripts/fuzz.sh does the same after it has made the environment. Findings are written into runs/fuzz. An input whose defect was
fixed belongs into tests/fuzz/corpus, whose inputs every run repeats.

Coverage guides the search if atheris is installed (`pip install -e ".[fuzz]"`); otherwise the outcomes do. A finding is an
undocumented error, a crash, more than 10 s or 1 GB for one input, access to a file outside the input's folder, or the use of
pickle, a process or a socket.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory


def main() -> int:
    """Run what the command line asks for. Returns the exit code: 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", choices=["index", "samples", "recipe", "weights"])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=["atheris", "blind"], help="default: atheris where it is installed")
    parser.add_argument("--output", type=Path, default=Path("runs/fuzz"), help="folder for findings")
    parser.add_argument("--smoke", type=int, metavar="N", help="all seeds, all past findings and N mutations, once, blind")
    parser.add_argument("--replay", help="a saved input to run again")
    # With the next two options the command calls itself. Each takes a job in JSON.
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--minimise", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker or arguments.minimise or (arguments.replay and not arguments.target):
        return _job(arguments)
    if arguments.target is None:
        parser.error("name a target")
    from scripts.fuzz import campaign

    if arguments.replay:
        with TemporaryDirectory() as folder:
            outcome = campaign.replay(arguments.target, Path(arguments.replay), Path(folder))
        print(f"{outcome.kind}: {outcome.label}\n{outcome.detail}")
        return int(outcome.kind == "finding")
    if arguments.smoke is not None:
        died = campaign.smoke(arguments.target, arguments.smoke, arguments.seed, arguments.output.resolve())
        print(died or "nothing found")
        return int(bool(died))
    engine = arguments.engine or campaign.default_engine()
    result = campaign.run(arguments.target, arguments.minutes, arguments.seed, arguments.output.resolve(), engine)
    print(result)
    return int(bool(result.findings))


def _job(arguments: argparse.Namespace) -> int:
    from scripts.fuzz import worker

    job = json.loads(arguments.worker or arguments.minimise or arguments.replay)
    for key in ("folder", "path"):
        if key in job:
            job[key] = Path(job[key])
    if arguments.worker:
        worker.work(**job)
    elif arguments.minimise:
        worker.minimise(**job)
    else:
        print(json.dumps(dataclasses.asdict(worker.replay(**job))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
