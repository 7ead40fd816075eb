"""However often it is killed, and on however many ranks it goes on: the run is the one that nobody disturbed.

pytest -m slow -s tests/train/test_soak.py       fifteen strikes at one number of ranks, and fifteen over changing ones
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from kit.alike import ENGINES
from kit.launch import Trained, run_ranks
from kit.soak import EVALUATE_EVERY, SAVE_EVERY, Life, Soak, soak, steps_for, train_and_evaluate
from kit.train_shards import SAMPLES

BATCH = 12


def arguments(recipe: list[str], tmp_path: Path, strikes: int) -> list[str]:
    """The tiny recipe, which trains its tokenizer and indexes its shards itself, so that this too is struck."""
    own = ["tokenizer.path=null", "tokenizer.vocab_size=120", f"data.index_cache={tmp_path / 'index'}"]
    pace = [f"train.steps={steps_for(strikes)}", f"train.save_every={SAVE_EVERY}", f"eval.every={EVALUATE_EVERY}"]
    return [*recipe, *own, *pace]


def undisturbed(argv: list[str], folder: Path, world: int, engine: str) -> Trained:
    codes = run_ranks(
        world, folder.with_name("log-undisturbed"), train_and_evaluate, *argv, *ENGINES[engine], f"run_dir={folder}"
    )
    assert codes == [0] * world
    return Trained(folder)


def assert_nothing_is_lost(run: Trained, steps: int) -> None:
    """Each step once and in order; each sample of each epoch exactly once; nothing half-written left behind."""
    assert [row["step"] for row in run.rows] == [row["step"] for row in run.samples] == list(range(1, steps + 1))
    order = [name for row in run.samples for name in row["samples"]]
    assert len(order) == steps * BATCH
    for epoch in range(steps * BATCH // SAMPLES):
        seen = Counter(order[epoch * SAMPLES : (epoch + 1) * SAMPLES])
        assert len(seen) == SAMPLES, f"epoch {epoch}: not every sample came"
        assert set(seen.values()) == {1}, f"epoch {epoch}: a sample came twice"
    left = [path for path in run.folder.rglob("*") if path.name.startswith(".") or path.suffix in (".part", ".tmp")]
    assert left == []


def one_number_of_ranks(engine: str) -> Life:
    return lambda rng: (2, [*ENGINES[engine], f"data.workers={rng.randint(0, 2)}"])


def changing_ranks(rng: random.Random) -> tuple[int, list[str]]:
    return rng.randint(1, 3), [*ENGINES[rng.choice(list(ENGINES))], f"data.workers={rng.randint(0, 2)}"]


def report(soaked: Soak, what: str) -> None:
    print(f"\nsoak, {what}: {soaked.counts['strikes'] + 1} lives: {soaked}")


# Seed 3 begins with a strike of each kind, in a step, an evaluation and a save.
@pytest.mark.slow
@pytest.mark.parametrize(("strikes", "engine", "seed"), [(3, "torch", 3), (15, "zero2", 0)])
@pytest.mark.timeout(3600)
def test_one_number_of_ranks_gives_the_same_bits(recipe: list[str], tmp_path: Path, strikes: int, engine: str, seed: int) -> None:
    argv = arguments(recipe, tmp_path, strikes)
    soaked = soak(argv, tmp_path / "run", strikes, seed, one_number_of_ranks(engine))
    report(soaked, f"two ranks under {engine}")
    run, reference = Trained(tmp_path / "run"), undisturbed(argv, tmp_path / "reference", 2, engine)
    assert_nothing_is_lost(run, steps_for(strikes))
    assert run.timeless() == reference.timeless()
    assert run.samples == reference.samples
    weights, expected = run.weights(), reference.weights()
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(weights[name], tensor), name


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_changing_ranks_engines_and_workers_give_the_same_run(recipe: list[str], tmp_path: Path) -> None:
    argv = arguments(recipe, tmp_path, 15)
    soaked = soak(argv, tmp_path / "run", 15, 1, changing_ranks)
    run, reference = Trained(tmp_path / "run"), undisturbed(argv, tmp_path / "reference", 2, "torch")
    assert_nothing_is_lost(run, steps_for(15))
    assert run.samples == reference.samples
    assert [row["seqhw"] for row in run.rows] == [row["seqhw"] for row in reference.rows]
    weights = run.weights()
    apart = {name: float((weights[name] - tensor).abs().max()) for name, tensor in reference.weights().items()}
    report(soaked, f"one to three ranks, every engine; weights at most {max(apart.values()):.1e} apart")
    assert weights.keys() == apart.keys()
    assert max(apart.values()) < 1e-4, max(apart, key=apart.__getitem__)
