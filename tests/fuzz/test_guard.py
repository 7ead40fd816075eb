"""The guard itself: whatever an input may not lead to is a finding, and refused; what it may is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import json, os, pickle, socket, subprocess, sys, time
from pathlib import Path
from scripts.fuzz import guard
guard.SECONDS = 0.2
root, outside, elsewhere = map(Path, sys.argv[1:])
watch = guard.Watch(root, outside)
GLOBAL = b"cbuiltins\\nlen\\n."

def swallowed(action):  # as code does that turns every error into its own
    try:
        action()
    except Exception as error:
        raise ValueError("no such file") from error

def spin():
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    return "late"

def memory():
    swallowed(lambda: bytearray(2**62))

def undocumented():
    raise KeyError("key")

ACTIONS = {
    "writes inside": lambda: (root / "a").write_text("x") and "a",
    "reads elsewhere": lambda: (elsewhere / "seed").read_text(),
    "documented": lambda: swallowed(undocumented),
    "undocumented": undocumented,
    "writes elsewhere": lambda: (elsewhere / "a").write_text("x"),
    "leads out": lambda: (root / ".." / "elsewhere" / "a").write_text("x"),
    "follows a link": lambda: (root / "link" / "a").write_text("x"),
    "makes a folder": lambda: (elsewhere / "b").mkdir(),
    "removes": lambda: (elsewhere / "seed").unlink(),
    "renames": lambda: os.rename(root / "a", elsewhere / "a"),
    "reads a secret": lambda: (outside / "secret").read_text(),
    "swallows": lambda: swallowed((outside / "secret").read_text),
    "runs": lambda: subprocess.run(["true"]),
    "connects": lambda: socket.create_connection(("127.0.0.1", 9)),
    "unpickles": lambda: pickle.loads(GLOBAL),
    "takes memory": memory,
    "is slow": spin,
}
outcomes = {name: guard.execute(action, (ValueError,), watch) for name, action in ACTIONS.items()}
(elsewhere / "after").write_text("the watch is over")
print(json.dumps({name: [each.kind, each.label] for name, each in outcomes.items()}))
"""


def test_the_guard_finds_what_breaks_its_rules_and_refuses_it(tmp_path: Path) -> None:
    """In a process of its own: a hook of Python's audit events stays for good."""
    root, outside, elsewhere = (tmp_path / name for name in ("root", "outside", "elsewhere"))
    for folder in (root, outside, elsewhere):
        folder.mkdir()
    (outside / "secret").write_text("secret")
    (elsewhere / "seed").write_text("seed")
    (root / "link").symlink_to(elsewhere)
    command = [sys.executable, "-c", PROGRAM, str(root), str(outside), str(elsewhere)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found.pop("writes inside") == ["value", "a"]
    assert found.pop("reads elsewhere") == ["value", "seed"]
    assert found.pop("documented") == ["refused", "ValueError: no such file"]
    assert {name for name, (kind, _) in found.items() if kind != "finding"} == set(), "all others are findings"
    assert found.pop("undocumented")[1].startswith("KeyError: ")
    assert found.pop("takes memory")[1].startswith("memory: ")
    assert found.pop("is slow")[1].startswith("slow: ")
    assert {label for _, label in found.values()} == {
        *("forbidden: write", "forbidden: read", "forbidden: os.mkdir", "forbidden: os.remove", "forbidden: os.rename"),
        *("forbidden: subprocess.Popen", "forbidden: socket.getaddrinfo", "forbidden: pickle.find_class"),
    }
    assert sorted(path.name for path in elsewhere.iterdir()) == ["after", "seed"], "what is forbidden does not happen"
