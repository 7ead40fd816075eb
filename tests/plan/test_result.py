"""The result of a plan: ranks of a cluster, seconds of a step, and every figure in its JSON."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from flexiclip.errors import UserError
from flexiclip.plan.result import Cluster, LengthPlan, Plan, StagePlan


def test_cluster_world_is_its_nodes_times_their_gpus() -> None:
    assert Cluster(3, 8, "h100").world == 24
    assert Cluster(1, 1, "cpu").world == 1


@pytest.mark.parametrize(("nodes", "gpus", "said"), [(0, 8, "--nodes 0"), (2, -1, "--gpus-per-node -1")])
def test_cluster_without_a_rank_is_refused(nodes: int, gpus: int, said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}: give 1 or more$"):
        Cluster(nodes, gpus, "h100")


def test_length_plan_step_s_is_compute_and_the_network_that_is_not_hidden(flexiclip_b: Plan) -> None:
    length = replace(flexiclip_b.lengths[0], compute_s=1.5, network_s=0.25)
    assert length.step_s == 1.75


def test_plan_to_dict_has_every_field_and_what_follows_from_them(flexiclip_b: Plan) -> None:
    found = json.loads(json.dumps(flexiclip_b.to_dict()))
    assert found.keys() == {field.name for field in fields(Plan)}
    assert found["cluster"] == {"nodes": 2, "gpus_per_node": 8, "device": "h100", "mfu": None}
    for row, length in zip(found["lengths"], flexiclip_b.lengths, strict=True):
        assert row.keys() == {field.name for field in fields(LengthPlan)} | {"step_s"}
        assert row["step_s"] == row["compute_s"] + row["network_s"] == length.step_s
        assert (row["flops"]["model"], row["flops"]["total"]) == (length.flops.model, length.flops.total)
        assert row["memory"]["states"]["parameters"] == length.memory.states.parameters
    for row, stage in zip(found["stages"], flexiclip_b.stages, strict=True):
        assert row.keys() == {field.name for field in fields(StagePlan)}
        assert (row["engine"], row["own"], row["fits"]) == (stage.engine, stage.own, stage.fits)
    assert [part["part"] for part in found["parameters"]] == [part.part for part in flexiclip_b.parameters]
    assert (found["hours"], found["steps"], found["notes"]) == (flexiclip_b.hours, flexiclip_b.steps, list(flexiclip_b.notes))
