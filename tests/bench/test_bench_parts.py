"""What the benchmarks share: turns and their ratios, processes apart, the record, and the page that is made of records."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.bench.measure import MeasurementError, measure_apart, ratio, take_turns
from scripts.bench.page import write_page
from scripts.bench.record import Goal, Record, options
from scripts.bench.subjects.growth import fit_parabola

ROOT = Path(__file__).parents[2]


def test_works_take_turns_and_the_warm_up_does_not_count() -> None:
    clock, calls = [0.0], []

    def work(name: str, spent: float) -> None:
        calls.append(name)
        clock[0] += spent * len(calls)  # the machine gets slower and slower

    times = take_turns({"a": lambda: work("a", 1.0), "b": lambda: work("b", 3.0)}, rounds=3, clock=lambda: clock[0])
    assert calls == ["a", "b"] * 4
    assert times == {"a": [3.0, 5.0, 7.0], "b": [12.0, 18.0, 24.0]}


def test_a_ratio_is_of_paired_rounds() -> None:
    assert ratio([2.0, 30.0, 40.0], [1.0, 10.0, 40.0]) == 2.0  # of 2, 3 and 1; the medians' own would be 3
    with pytest.raises(ValueError, match="shorter"):
        ratio([1.0, 2.0], [1.0])


SCRIPT = """
import json, os, sys
if "--fail" in sys.argv:
    sys.exit("no memory for %s" % sys.argv[-1])
if int(os.environ.get("RANK", 0)) == 0:
    print("not this line")
    print(json.dumps({"said": sys.argv[1:], "world": os.environ.get("WORLD_SIZE", "none"), "colour": os.environ.get("COLOUR")}))
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that other processes can run."""
    (tmp_path / "a_subject.py").write_text(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "a_subject"


def test_measure_apart_returns_what_the_process_prints(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)  # a test before it may have been a rank
    found = measure_apart(module, {"micro_batch": 3}, ("--measure",), {"COLOUR": "red"})
    assert found == {"said": ["--measure", "--micro-batch=3"], "world": "none", "colour": "red"}
    with pytest.raises(MeasurementError, match="no memory for --batch=9") as caught:
        measure_apart(module, {"batch": 9}, ("--fail",))
    assert caught.value.said == "no memory for --batch=9\n"


def test_a_measurement_in_two_ranks(module: str) -> None:
    assert measure_apart(module, {"batch": 2}, ranks=2)["world"] == "2"


PEAK = """
import json
from scripts.bench.measure import forget_peak, memory
block = b"x" * 200_000_000
del block
before = forget_peak()
at_rest = memory("VmHWM") - before
block = b"x" * 100_000_000
print(json.dumps({"at_rest": at_rest, "at_work": memory("VmHWM") - before}))
"""


def test_the_peak_is_that_since_it_was_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own: what this one has allocated before decides whether its memory grows."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    (tmp_path / "a_peak.py").write_text(PEAK)
    found = measure_apart("a_peak", {})
    assert found["at_rest"] < 50_000_000
    assert 90_000_000 < found["at_work"] < 150_000_000


def test_goal_holds_on_its_side_of_the_bound() -> None:
    assert Goal("speed", 1.4, 1.52).holds
    assert not Goal("speed", 1.4, 1.39).holds
    assert not Goal("speed", 1.4, float("nan")).holds
    assert Goal("memory", 0.05, 0.05, at_least=False).holds
    assert Goal("memory", 0.05, 0.061, at_least=False).line() == "memory: 0.061, wanted <= 0.05: DOES NOT HOLD"


def recorded(folder: Path, monkeypatch: pytest.MonkeyPatch, subject: str) -> dict[str, Any]:
    """What a record of everything writes."""
    record = Record(subject, "Two things beside each other.")
    table = record.table("a title", "size", "seconds", "ratio")
    table.add(8, 0.123456, "2.0 x")
    table.add(16, 1234.5, "a | b")
    record.goal("theirs / ours", 2.0, at_least=1.5)
    record.goal("share", 0.2, at_most=0.1)
    record.curve("growth", "size", "seconds", {"ours": [(8, 0.1), (16, 0.4)], "theirs": [(8, 0.2), (16, 0.8)]})
    record.notes.append("Nothing else ran.")
    output = folder / f"{subject}.json"
    monkeypatch.setattr(sys, "argv", ["x.py", "--rounds", "3", "--output", str(output), "--quick"])
    record.finish(argparse.Namespace(output=output))
    whole: dict[str, Any] = json.loads(output.read_text())
    return whole


def test_a_record_is_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = recorded(tmp_path, monkeypatch, "losses")
    assert whole["command"] == "python -m scripts.bench.subjects.losses --rounds 3 --quick", "without --output"
    assert whole["tables"] == [
        {
            "title": "a title",
            "columns": ["size", "seconds", "ratio"],
            "rows": [["8", "0.123", "2.0 x"], ["16", "1,234", "a | b"]],
        }
    ]
    assert [goal["found"] for goal in whole["goals"]] == [2.0, 0.2]
    assert whole["curves"][0]["series"]["theirs"] == [[8, 0.2], [16, 0.8]]
    assert {"processor", "cores", "memory", "system", "commit", "torch"} <= whole["machine"].keys()
    said = capsys.readouterr().out
    for part in ("a title", "1,234", "share: 0.2, wanted <= 0.1: DOES NOT HOLD", "Nothing else ran."):
        assert part in said


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(AssertionError, match="2 cells"):
        Record("x", "").table("t", "a", "b", "c").add(1, 2)


def test_the_page_is_made_of_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = tmp_path / "records"
    for subject in ("zoology", "losses", "pi_resize"):
        recorded(records, monkeypatch, subject)
    page = tmp_path / "docs" / "benchmarks.md"
    write_page(records, page)
    text = page.read_text()
    places = [text.index(f"\n## {title}\n") for title in ("Goals", "pi_resize", "losses", "zoology")]
    assert places == sorted(places), "in the order of the subjects, then the others"
    assert text.count("| [losses](#losses) | share | ≤ 0.1 | 0.2 | **no** |") == 1
    assert text.count("| [losses](#losses) | theirs / ours | ≥ 1.5 | 2 | yes |") == 1
    assert "| 16 | 1,234 | a \\| b |" in text
    assert "Nothing else ran." in text
    for subject in ("losses", "pi_resize", "zoology"):
        assert f"![growth](images/bench_{subject}.png)" in text
        assert (page.parent / "images" / f"bench_{subject}.png").read_bytes()[:4] == b"\x89PNG"


def test_options_of_every_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x.py", "--quick", "--threads", "1", "--output", "a/b.json"])
    given = options("what it does", rounds=7).parse_args()
    assert (given.rounds, given.threads, given.quick, given.output) == (7, 1, True, Path("a/b.json"))


def test_the_parabola_of_growth() -> None:
    n = [25, 64, 100, 225, 900]
    assert fit_parabola(n, [0.5 + 0.25 * x + 0.001 * x * x for x in n]) == pytest.approx((0.5, 0.25, 0.001), rel=1e-9)
    noisy = fit_parabola(range(1, 100), [x * (1.01 if x % 2 else 0.99) for x in range(1, 100)])
    assert noisy == pytest.approx((0, 1, 0), abs=0.01)
