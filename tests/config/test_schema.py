"""`Config.trained_seqhw`: which lengths a run trains, by hand, by the schedule that draws them, and by nobody else."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from flexiclip.config import Config, from_dict
from flexiclip.schedules import Horizon, SeqhwSchedule

ROOT = Path(__file__).parents[2]
STEPS, BATCH, SAMPLES = 100, 8, 400

CASES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "a list": ({"seqhw": [6, 3, 4]}, (3, 4, 6)),
    "one named twice": ({"seqhw": [4, 4]}, (4,)),
    "weight 0": ({"seqhw": [3, 4, 6], "weights": [1, 0, 2]}, (3, 6)),
    "inverse cost": ({"seqhw": [6, 4], "weights": "inverse_cost"}, (4, 6)),
    "a stage": ({"seqhw": [4], "stages": [{"start": "50%", "seqhw": [3, 6]}]}, (3, 4, 6)),
    "weight 0 in a stage": ({"seqhw": [4], "stages": [{"start": 50, "seqhw": [3, 6], "weights": [0, 1]}]}, (4, 6)),
    "replaced at once": ({"seqhw": [5, 8], "stages": [{"start": 0, "seqhw": [3]}, {"start": "50%", "seqhw": [6]}]}, (3, 6)),
    "replaced at once in percent": ({"seqhw": [5, 8], "stages": [{"start": "0%", "seqhw": [3]}]}, (3,)),
    "two stages at one time": (
        {"seqhw": [4], "stages": [{"start": "1 epoch", "seqhw": [3]}, {"start": "1 epoch", "seqhw": [6]}]},
        (4, 6),
    ),
    "stages out of order": ({"seqhw": [4], "stages": [{"start": 60, "seqhw": [3]}, {"start": 30, "seqhw": [6]}]}, (3, 4, 6)),
    "a stage at the end": ({"seqhw": [4], "stages": [{"start": "100%", "seqhw": [3, 6]}]}, (4,)),
    "a stage after the end": ({"seqhw": [4], "stages": [{"start": 250, "seqhw": [3, 6]}]}, (4,)),
    "short to long": ({"seqhw": [3, 4, 6], "weights": [1, 0, 1], "curriculum": "short_to_long"}, (3, 6)),
    "long to short": ({"seqhw": [3, 4, 6], "curriculum": "long_to_short", "spread": 0.5}, (3, 4, 6)),
    "clipa": ({"seqhw": [6, 3, 4, 8], "weights": [1, 1, 1, 0], "curriculum": "clipa"}, (3, 4, 6)),
    "clipa without a finish": ({"seqhw": [6, 3, 4], "curriculum": "clipa", "finish": 0}, (3, 4)),
    "clipa that is all finish": ({"seqhw": [6, 3, 4], "curriculum": "clipa", "finish": "100%"}, (6,)),
    "clipa with a longer finish": ({"seqhw": [6, 3, 4], "curriculum": "clipa", "finish": 100}, (6,)),
}


@pytest.mark.parametrize("name", CASES)
def test_trained_seqhw_is_what_the_schedule_draws(name: str) -> None:
    patch, expected = CASES[name]
    config = from_dict(Config, {"patch": patch, "train": {"steps": STEPS, "global_batch_size": BATCH}})
    assert config.trained_seqhw == expected
    schedule = SeqhwSchedule(config.patch, config.seed, Horizon(STEPS, BATCH, SAMPLES), float)
    assert tuple(schedule.shares()) == expected
    assert {schedule(step) for step in range(STEPS)} == set(expected), "100 steps draw each of them"


def test_other_modules_ask_trained_seqhw() -> None:
    """`patch.seqhw` alone forgets stages and weights, so outside the section and its schedule nobody reads it."""
    allowed = {"seqhw": set(), "stages": {"flexiclip/config/validate.py", "flexiclip/plan/plan.py"}}  # starts; a curriculum?
    files = [path for folder in ("flexiclip", "eval", "scripts", "recipes") for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 200
    found = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in allowed:
                owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
                name = str(path.relative_to(ROOT))
                if owner == "patch" and name not in allowed[node.attr]:
                    found.append(f"{name}:{node.lineno}")
    assert found == []
    assert ".patch.seqhw" not in (ROOT / "README.md").read_text(encoding="utf-8")
