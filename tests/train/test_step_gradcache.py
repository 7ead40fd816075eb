"""Micro-batches, by a number or by a token budget, against the single big batch: loss and gradients at every length."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from kit.alike import ENGINES
from kit.launch import Trained, run_ranks
from kit.overrides import load_last
from safetensors.numpy import load_file
from test_step import plain_loss
from torch import Tensor
from transformers import BertConfig, BertModel

from flexiclip.data.images import normalize
from flexiclip.model_folder import build_model
from flexiclip.train.objectives import Inputs
from flexiclip.train.ranks import Ranks, joined_ranks
from flexiclip.train.run_lock import RunLock
from flexiclip.train.setup import set_up

Fit = Callable[..., Trained]

LENGTHS = {2, 3, 4, 6}
STEPS = 8

STILL = [
    f"train.steps={STEPS}",
    "optimizer.lr=1e-12",
    "optimizer.betas=[0.0, 0.98]",
    "optimizer.grad_clip=null",
    "train.save_every=1",
    f"train.keep_last={STEPS}",
]
"""Steps that do not move the weights: each has the gradients of one model, which with beta1 = 0 are what exp_avg holds."""

MICRO = {"size": "train.micro_batch_size=2", "tokens": "train.micro_tokens=96"}
"""With 16 for a caption, 96 tokens are four pairs at a length of 2 x 2, three at 3 x 3 and at 4 x 4, and one at 6 x 6."""


@pytest.fixture(scope="module")
def big_batch(fit: Fit) -> Trained:
    """Each batch of 12 at once on one rank; test_step.py compares such a step with a graph written by hand."""
    run = fit(1, *STILL)
    assert {row["seqhw"] for row in run.rows} == LENGTHS
    return run


def gradients(run: Trained) -> list[dict[str, np.ndarray]]:
    """Of each step, by parameter, the scalars' too."""
    files = [load_file(run.checkpoint(step) / "optimizer.safetensors") for step in range(1, STEPS + 1)]
    return [{name: gradient for name, gradient in file.items() if "exp_avg/" in name} for file in files]


DEFAULT = [(3, "torch", "tokens"), (2, "zero2", "tokens"), (2, "zero3", "size")]
REST = [(world, engine, list(MICRO)[(world + e) % 2]) for world, (e, engine) in product((1, 2, 3), enumerate(ENGINES))]
"""Each engine on each number of ranks, and the kind of micro-batch in turn: every pair of the three is tested."""
EVERY = [*DEFAULT, *(pytest.param(*run, marks=pytest.mark.slow) for run in REST if run not in DEFAULT)]


@pytest.mark.parametrize(("world", "engine", "kind"), EVERY)
def test_micro_batches_equal_the_big_batch_at_every_length(
    fit: Fit, big_batch: Trained, world: int, engine: str, kind: str
) -> None:
    """Losses to 1e-5; gradients to 1e-5 of the largest of their tensor, their norm to 1e-5 of itself.

    And 1e-6 where a sum over the samples nearly cancels: its terms are up to a hundred times as large, and so is its rounding.
    """
    run = fit(world, *STILL, *ENGINES[engine], MICRO[kind])
    assert run.samples == big_batch.samples
    np.testing.assert_allclose(run.column("loss"), big_batch.column("loss"), rtol=0, atol=1e-5)
    np.testing.assert_allclose(run.column("grad_norm"), big_batch.column("grad_norm"), rtol=1e-5)
    worst = 0.0
    for seqhw, taken, expected in zip(run.column("seqhw"), gradients(run), gradients(big_batch), strict=True):
        assert taken.keys() == expected.keys()
        for name, gradient in expected.items():
            largest = np.abs(gradient).max()
            error = np.abs(taken[name] - gradient).max()
            worst = max(worst, error / largest)
            assert error <= 1e-5 * largest + 1e-6, (name, seqhw, error, largest)
    print(f"world {world} {engine} {kind}: largest error of a gradient {worst:.1e}")


@pytest.mark.parametrize(
    ("world", "engine"),
    [(2, "zero3"), *(pytest.param(*run, marks=pytest.mark.slow) for run in product((1, 3), ("torch", "zero1", "zero3")))],
)
def test_dropout_of_a_tower_is_the_same_in_both_passes_on_every_rank(
    recipe: list[str], tmp_path: Path, world: int, engine: str
) -> None:
    """A Hugging Face tower with a dropout of its own, in micro-batches of two: see _dropout_rank."""
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=120, hidden_dropout_prob=0.5, **size)).save_pretrained(tmp_path / "bert")
    tower = ["model.text.kind=huggingface", f"model.text.name={tmp_path / 'bert'}", "model.text.pool=mean"]
    still = [*STILL, *ENGINES[engine], "train.micro_batch_size=2", f"run_dir={tmp_path / 'run'}"]
    codes = run_ranks(world, tmp_path / "log", _dropout_rank, [*recipe, *tower, *still])
    assert codes == [0] * world, "".join(Path(f"{tmp_path / 'log'}.{rank}").read_text() for rank in range(world))


def _dropout_rank(argv: list[str]) -> None:
    """A rank's step: its gradients are those of one graph over its rows, the others' embeddings held fixed, summed over ranks.

    The graph embeds each micro-batch under the random state in which the engine's first pass met it.
    """
    config = load_last(argv)
    with joined_ranks(config.engine.kind == "deepspeed", 1) as ranks:
        plain = build_model(config).model.train()
        run = set_up(config, ranks, RunLock(), evaluates=False)
        states: list[Tensor] = []
        run.stepper.engine.towers.register_forward_pre_hook(lambda *_: states.append(torch.get_rng_state()))
        batch, seqhw = next(iter(run.batches())), run.schedule.seqhw(0)
        outcome = run.stepper(Inputs(batch.images, batch.tokens, batch.caption_ids), seqhw, 0, 1e-12)

        first, second = states[: len(states) // 2], states[len(states) // 2 :]
        assert len(first) == len(batch.images) // 2
        assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
        assert len({state.numpy().tobytes() for state in states}) == len(first), "two micro-batches have the same masks"
        images = normalize(batch.images, config.model.preprocess.mean, config.model.preprocess.std)
        halves = []
        for i, state in enumerate(first):
            torch.set_rng_state(state)
            rows = slice(2 * i, 2 * i + 2)
            halves.append(plain(images[rows], batch.tokens[rows], seqhw))
        loss = plain_loss(plain, *(_everyones(torch.cat(half), ranks) for half in zip(*halves, strict=True)))
        loss.backward()
        assert outcome.loss == pytest.approx(loss.item(), abs=1e-5)
        named = dict(plain.named_parameters())
        moments = dict(run.stepper.engine.moments())
        for name in sorted(moments):
            kind, parameter = name.split("/")
            if kind == "exp_avg":
                gradient = named[parameter].grad
                if ranks.world > 1:
                    dist.all_reduce(gradient)
                error = float((moments[name] - gradient).abs().max())
                assert error <= 1e-5 * float(gradient.abs().max()) + 1e-6, name


def _everyones(own: Tensor, ranks: Ranks) -> Tensor:
    """The rows of all ranks, of which only this rank's have a gradient."""
    if ranks.world == 1:
        return own
    parts = [torch.empty_like(own) for _ in range(ranks.world)]
    dist.all_gather(parts, own.detach())
    return torch.cat([*parts[: ranks.rank], own, *parts[ranks.rank + 1 :]])
