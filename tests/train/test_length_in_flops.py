"""A curriculum, and a length in FLOPs, in a real run: the steps that were said before, the FLOPs that they took, and a resume."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from kit.launch import Trained
from kit.overrides import load_last

from flexiclip.models.flops import pair_flops, text_cost
from flexiclip.plan.plan import Cluster, make_plan

Fit = Callable[..., Trained]


def test_a_curriculum_of_so_many_flops(fit: Fit, recipe: list[str], tmp_path: Path) -> None:
    given = [
        "train.steps=1.5 GFLOPs",
        "patch.curriculum=short_to_long",
        "patch.spread=0.5",
        "train.save_every=7",
        "train.keep_last=99",
    ]
    whole = fit(1, *given)
    config = load_last([*recipe, *given])
    plan = make_plan(config, Cluster(1, 1, "a100"))
    assert len(whole.rows) == plan.steps
    assert 1.5e-3 * (1 - 1 / len(whole.rows)) < (plan.tflops or 0.0) <= 1.5e-3

    seqhw = whole.column("seqhw")
    third = len(seqhw) // 3
    assert seqhw[:third].mean() < seqhw[third:-third].mean() < seqhw[-third:].mean()
    text = text_cost(config, kept=lambda width: False)
    spent = [12 * pair_flops(config.model, text, int(s)).model for s in seqhw]
    assert whole.column("tflops") == pytest.approx([sum(spent[: i + 1]) / 1e12 for i in range(len(spent))])

    folder = tmp_path / "again"
    shutil.copytree(whole.folder, folder)
    (folder / "checkpoints" / "latest").write_text("step-14")
    for checkpoint in folder.glob("checkpoints/step-*"):
        if checkpoint.name not in ("step-7", "step-14"):
            shutil.rmtree(checkpoint)
    resumed = fit(1, *given, folder=folder)
    assert "going on from" in (folder.parent / "log.0").read_text()
    assert resumed.timeless() == whole.timeless()
