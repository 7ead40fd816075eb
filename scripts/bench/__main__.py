"""Run the benchmarks, which compare flexiclip with the real code of other libraries, and write docs/explanation/benchmarks.md.

    python -m scripts.bench                    every subject; takes hours on 2 CPU cores, which should be otherwise idle
    python -m scripts.bench losses loader      these subjects; the page keeps the records of the others
    python -m scripts.bench --quick            checks that everything runs, with small sizes and a page in build/bench-quick
    python -m scripts.bench --page             only writes the page, from the records

Each subject runs in a process of its own and writes its record. Subjects that fail are listed at the end, and the page keeps
their last records. scripts/bench.sh does the same after it has made the environment.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from scripts.bench.page import write_page
from scripts.bench.subjects import SUBJECTS

PAGE = Path("docs/explanation/benchmarks.md")
"""The page. The records are in the folder with its name."""

QUICK = Path("build/bench-quick")


def main() -> int:
    """Run the subjects that the command line names, and write the page. Returns the exit code: 1 if a subject failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", nargs="*", help=f"default: all of {', '.join(SUBJECTS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes into build/bench-quick, which only show that it works")
    parser.add_argument("--page", action="store_true", help="only write the page, from the records")
    arguments = parser.parse_args()
    for name in arguments.subject:
        if name not in SUBJECTS:
            parser.error(f"{name}: no such subject: there are {', '.join(SUBJECTS)}")
    folder, page = (QUICK, QUICK / "benchmarks.md") if arguments.quick else (PAGE.with_suffix(""), PAGE)
    chosen = [] if arguments.page else arguments.subject or SUBJECTS
    failed = [name for name in chosen if not _run(name, folder, arguments.quick)]
    write_page(folder, page)
    print(page)
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return 1 if failed else 0


def _run(subject: str, folder: Path, quick: bool) -> bool:
    """Run a subject in a process of its own, which writes its record. Returns whether it succeeded."""
    print(f"{subject}: ...", file=sys.stderr, flush=True)
    options = [*(["--quick"] if quick else []), "--output", str(folder / f"{subject}.json")]
    return subprocess.run([sys.executable, "-m", f"scripts.bench.subjects.{subject}", *options], check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
