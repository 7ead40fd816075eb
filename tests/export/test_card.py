"""The metrics that a card shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from flexiclip.__main__ import main


def test_a_card_has_the_metrics_of_its_own_model_alone(make: Callable[..., Path], tmp_path: Path) -> None:
    folder = make("siglip")
    row = {"dataset": "toys", "task": "zeroshot_classification", "seqhw": 3}
    own = {**row, "pretrained": str(folder.parent), "metrics": {"acc1": 0.25}}
    narrow, other = {**own, "width": 8, "metrics": {"acc1": 0.125}}, {**row, "pretrained": "openai", "metrics": {"acc1": 0.75}}
    results = folder.parent / "eval" / "results.json"
    results.parent.mkdir()
    cases = [([own, narrow, other], "| all | acc1 | 0.2500 |"), ([other], "has no row of this model"), (7, "is not a table")]
    for case, (rows, said) in enumerate(cases):
        results.write_text(json.dumps(rows))
        path = tmp_path / f"{case}.npz"
        assert main(["export", "model", str(folder), "--format", "big_vision", "--output", str(path)]) == 0
        card = path.with_suffix(".md").read_text()
        assert said in card
        assert "0.7500" not in card
        assert ("| 8 | acc1 | 0.1250 |" in card) == (rows == [own, narrow, other])
