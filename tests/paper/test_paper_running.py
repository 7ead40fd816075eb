"""Commands run a few at a time, real ones: finished ones are kept, and failures stop only what needs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexiclip.errors import UserError
from scripts.paper.running import Runner
from scripts.paper.work import Task

SHOW = ("show-config", "openmoji_flexilit")


def test_a_failure_is_logged_and_stops_what_needs_it_alone(tmp_path: Path) -> None:
    tasks = [
        Task("runs/good", SHOW),
        Task("runs/bad", ("show-config", "no_such_recipe")),
        Task("eval/of-bad", SHOW, frozenset({"runs/bad"})),
        Task("eval/of-good", SHOW, frozenset({"runs/good"}), alone=True),
    ]
    runner = Runner(tmp_path, jobs=2)
    assert runner.run(tasks) == ["runs/bad", "eval/of-bad"]
    assert "no_such_recipe" in runner.log("runs/bad").read_text()
    assert not runner.log("eval/of-bad").exists()
    assert "openmoji" in runner.log("eval/of-good").read_text()


def test_what_is_done_is_not_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [Task("runs/one", SHOW)]
    assert Runner(tmp_path, jobs=1).run(tasks) == []
    log = Runner(tmp_path, jobs=1).log("runs/one")
    log.unlink()
    assert Runner(tmp_path, jobs=1).run(tasks) == []
    assert not log.exists()
    assert "1 of them done before" in capsys.readouterr().out


def test_another_command_of_the_same_name_is_refused(tmp_path: Path) -> None:
    Runner(tmp_path, jobs=1).run([Task("runs/one", SHOW)])
    with pytest.raises(UserError, match="runs/one was made there by another command"):
        Runner(tmp_path, jobs=1).run([Task("runs/one", (*SHOW, "seed=2"))])
