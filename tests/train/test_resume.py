"""Which recipe may go on with a run that is there, key by key, and which ranks mean the same run."""

from __future__ import annotations

import copy
import dataclasses
import threading
import typing
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from flexiclip.config import Config, from_dict, to_dict
from flexiclip.config.explain import keys as documented
from flexiclip.errors import UserError
from flexiclip.train.ranks import Ranks
from flexiclip.train.resume import check_one_recipe, check_same_run, longer, prepare_run_folder
from flexiclip.train.run_lock import RunLock
from flexiclip.train.setup import run_schedule


def keys(sections: dict[str, str]) -> set[str]:
    """Dotted keys, from the names in each section."""
    return {f"{section}.{name}".lstrip(".") for section, names in sections.items() for name in names.split()}


MAY_CHANGE = keys(
    {
        "": "run_dir",
        "data": "workers prefetch index_cache read_attempts read_timeout_s stall_s max_bad_fraction",
        "train": """
            micro_batch_size micro_tokens activation_checkpointing compile on_nonfinite log_every save_every
            save_in_background checkpoint_dir keep_last keep_every resume threads rank_timeout_s log_samples trackers
        """,
        "engine": "kind zero_stage offload deepspeed",
        "eval": "suites every seqhw batch_size",
    }
)
"""Where and how fast a run goes, and what it writes down."""

MAY_GROW = {"train.steps"}

MAKES_ANOTHER_RUN = keys(
    {
        "": "seed objective init",
        "model.image": """
            variant width depth heads mlp_dim image_size base_patch_size base_grid flexible exits exit_heads
            default_seqhw pool activation norm_eps pre_norm patch_bias kernel_resize kernel_antialias
            grid_resize grid_antialias projection projection_bias lock unlock_last init
        """,
        "model.text": """
            kind name sha256 variant width depth heads mlp_dim vocab_size pad_id eos_id context_length causal
            pad_mask pool activation norm_eps projection projection_bias lock unlock_last init
        """,
        "model.preprocess": "mean std resize interpolation",
        "model": "embed_dim classes head_bias_init logit_scale_init logit_scale_max logit_bias_init",
        "tokenizer": "kind path vocab_size context_length lowercase sticky_eos",
        "data": """
            train image_keys captions labels sequential allow_shell window_shards crop_scale crop_ratio flip
            scaled_decoding mixup
        """,
        "patch": "seqhw weights stages curriculum spread finish",
        "loss": "kind mask_identical widths",
        "classification": "loss label_smoothing",
        "distillation": "teacher seqhw temperature kl cosine",
        "optimizer": "lr weight_decay betas eps grad_clip schedule warmup cooldown timescale",
        "train": "global_batch_size precision",
    }
)

EACH_RANKS_OWN = {"data.train", "data.workers", "data.prefetch", "data.index_cache", "train.threads"}


def leaves(cls: Any, prefix: str = "") -> Iterator[str]:
    """The dotted keys of a section and of those inside."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        inside = [part for part in (hints[field.name], *typing.get_args(hints[field.name])) if dataclasses.is_dataclass(part)]
        sections = [part for part in inside if part.__name__.endswith("Config")]  # a Duration is a value
        if sections:
            yield from leaves(sections[0], f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def test_every_key_is_said_to_be_free_or_not() -> None:
    """Whoever adds one decides whether a run may go on under another value of it."""
    said = [MAY_CHANGE, MAY_GROW, MAKES_ANOTHER_RUN]
    assert set().union(*said) == set(leaves(Config))
    assert sum(map(len, said)) == len(set(leaves(Config)))


def changed(key: str) -> dict[str, Any]:
    """The default recipe as plain data, one key of it with another value."""
    recipe: dict[str, Any] = copy.deepcopy(to_dict(Config()))
    *sections, last = key.split(".")
    section = recipe
    for name in sections:
        section = section[name]
    section[last] = other(section[last])
    return recipe


def other(value: Any) -> Any:
    """A value of the same kind. What a key takes is of no account to the comparison."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, list):
        return [*value, 7]
    return {"x": 1} if isinstance(value, dict) else f"{value}x"


@pytest.mark.parametrize("key", sorted(MAKES_ANOTHER_RUN))
def test_a_run_with_another_value_is_refused(key: str) -> None:
    with pytest.raises(UserError) as caught:
        check_same_run(Config(), changed(key), "runs/a")
    assert str(caught.value).startswith(f"runs/a holds a run with {key}=")


@pytest.mark.parametrize("key", sorted(MAY_CHANGE | MAY_GROW))
def test_a_run_with_another_value_goes_on(key: str) -> None:
    check_same_run(Config(), changed(key), "runs/a")


def test_explain_and_the_reference_page_say_the_same() -> None:
    """Keys of the items of a list belong to the key that holds the list."""
    plain = {doc.key: doc.resume for doc in documented() if "[]" not in doc.key}
    assert plain.keys() == MAY_CHANGE | MAY_GROW | MAKES_ANOTHER_RUN
    assert {key for key, free in plain.items() if free} == MAY_CHANGE | MAY_GROW


@pytest.mark.parametrize(("section", "goes_on"), [("engine", True), ("eval", True), ("train", False), ("data", False)])
def test_a_key_that_this_version_does_not_have(section: str, goes_on: bool) -> None:
    """The run of an older version may hold keys that are gone. In a section that is free as a whole they do not matter."""
    recipe = to_dict(Config())
    recipe[section]["gone"] = 3
    if goes_on:
        check_same_run(Config(), recipe, "runs/a")
        return
    with pytest.raises(UserError, match=f"runs/a holds a run with {section}.gone=3, not None"):
        check_same_run(Config(), recipe, "runs/a")


class Threads(Ranks):
    """Two ranks that are threads of this process."""

    def collect(self, items: list[Any]) -> list[Any]:
        BOARD[self.rank] = items
        BARRIER.wait(10)
        found = [item for rank in (0, 1) for item in BOARD[rank]]
        BARRIER.wait(10)
        return found


BOARD: dict[int, list[Any]] = {}
BARRIER = threading.Barrier(2)


def said_by_two(recipes: tuple[dict[str, Any], dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What check_one_recipe raises on each of two ranks."""
    monkeypatch.setattr("flexiclip.train.resume.to_dict", lambda recipe: recipe)  # of any value of a key
    said = ["", ""]

    def start(rank: int) -> None:
        try:
            check_one_recipe(recipes[rank], Threads(rank, 2, rank, torch.device("cpu")))  # type: ignore[arg-type]
        except UserError as error:
            said[rank] = str(error)

    threads = [threading.Thread(target=start, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


@pytest.mark.parametrize("key", sorted(MAKES_ANOTHER_RUN | MAY_CHANGE | MAY_GROW))
def test_ranks_with_other_values_are_refused_but_for_what_is_their_own(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = said_by_two((to_dict(Config()), changed(key)), monkeypatch)
    assert said[0] == said[1]
    assert bool(said[0]) == (key not in EACH_RANKS_OWN)
    assert key in EACH_RANKS_OWN or f" was started with {key}=" in said[0]


SCHEDULE_OF = partial(run_schedule, samples=2560)


def config_of(*sections: tuple[str, dict[str, Any]]) -> Config:
    return from_dict(Config, dict(sections))


def grown(steps: Any, step: int = 10, **optimizer: Any) -> str | None:
    """What is said when a run of 20 steps, 10 of which are done, goes on with so many."""
    sections: Any = [("train", {"steps": 20}), ("optimizer", {"warmup": 2, "schedule": "constant", **optimizer})]
    before, after = config_of(*sections), config_of(("train", {"steps": steps}), sections[1])
    return longer(after, to_dict(before), SCHEDULE_OF, step, "runs/a")


def test_longer_says_the_rule_of_the_schedules() -> None:
    assert grown(20) is None
    assert grown("5120 samples") is None, "as long, in another unit"
    line = "train.steps has grown from 20 to 40 at step 10: "
    same = "learning rates and lengths are those of a run that had 40 steps from its start"
    rates = "the learning rates from here on are those of a run of 40 steps, which has others before"
    assert grown(40) == grown("4 epochs") == line + same
    assert grown(40, schedule="rsqrt") == line + same
    assert grown(40, schedule="cosine") == line + rates
    assert grown(40, warmup="50%") == line + rates
    assert grown(40, step=0) is None, "nothing is done that could have been otherwise"


def test_longer_says_it_of_lengths_too() -> None:
    stages = ("patch", {"seqhw": [5], "stages": [{"start": "40%", "seqhw": [6]}]})
    constant = ("optimizer", {"warmup": 2, "schedule": "constant"})
    before, after = (config_of(("train", {"steps": steps}), stages, constant) for steps in (20, 40))
    said = [longer(after, to_dict(before), SCHEDULE_OF, step, "a") or "" for step in (8, 9)]
    assert "lengths are those of a run that had" in said[0]
    assert "the lengths from here on are those of a run of 40 steps" in said[1]


def test_a_run_is_not_made_shorter() -> None:
    with pytest.raises(UserError, match=r"runs/a holds a run with train.steps=20, and 19 is less: a run may only be made longer"):
        grown(19)


def test_a_run_of_a_version_that_had_fewer_keys_goes_on() -> None:
    recipe = to_dict(Config())
    del recipe["objective"], recipe["distillation"], recipe["data"]["mixup"]
    check_same_run(Config(), recipe, "runs/a")
    with pytest.raises(UserError, match=r"runs/a holds a run with objective=contrastive, not distillation"):
        check_same_run(Config(objective="distillation"), recipe, "runs/a")


def test_a_recipe_that_this_version_cannot_read_is_another_run() -> None:
    recipe = to_dict(Config()) | {"objectives": 2}
    with pytest.raises(UserError, match=r"runs/a holds a run with objectives=2, not None"):
        check_same_run(Config(), recipe, "runs/a")


def test_the_temporary_files_of_a_start_that_was_killed_are_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    left = [run / name for name in (".config.yaml.123", ".metrics.jsonl.123", ".samples.jsonl.7")]
    for path in left:
        path.write_text("half")
    kept = run / "metrics.jsonl"
    kept.write_text("{}\n")
    with RunLock() as lock:
        prepare_run_folder(from_dict(Config, {"run_dir": str(run)}), lock, print)
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "metrics.jsonl"]
