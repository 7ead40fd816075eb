"""A NaN or Inf in a step: named, refused on every rank before any weight is touched, and skipped where the recipe says so."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from kit.alike import ENGINES
from kit.launch import Trained, flexiclip_main, run_ranks
from kit.train_shards import SAMPLES, SIZES, sample, write_shard
from safetensors.torch import load_file, save_file
from test_step import ALONE
from torch import Tensor

from flexiclip.config import Config, load
from flexiclip.errors import RunError
from flexiclip.model_folder import LoadedModel, build_model, load_model
from flexiclip.train.engine import Engine, TorchEngine
from flexiclip.train.nonfinite import REFUSED_IN_A_ROW, Skips, marked
from flexiclip.train.ranks import Ranks, joined_ranks
from flexiclip.train.towers import Towers

Fit = Callable[..., Trained]
Refuse = Callable[..., str]

NAN = float("nan")
QKV = "image_tower.blocks.0.attn.qkv.weight"
MLP = "image_tower.blocks.0.mlp"
SKIP = "train.on_nonfinite=skip"


def covering(turn: int, *default: tuple[int, str]) -> list[Any]:
    """The default cases, and slow ones: every engine, with a number of ranks that another turn changes.

    The tests below take the turns 0, 1 and 2, so that together they run every engine on every number of ranks.
    """
    rest = [(1 + (e + turn) % 3, engine) for e, engine in enumerate(ENGINES)]
    return [*default, *(pytest.param(*run, marks=pytest.mark.slow) for run in rest if run not in default)]


@pytest.fixture(scope="module")
def saved(fit: Fit) -> Trained:
    """20 steps with a checkpoint in the middle."""
    return fit(1, "train.save_every=10")


@pytest.fixture
def refuse(recipe: list[str], tmp_path: Path) -> Refuse:
    """refuse(world, *overrides) trains and expects exit code 1 of every rank; returns the line that was said for it."""

    def run(world: int, *overrides: str) -> str:
        codes = run_ranks(world, tmp_path / "log", flexiclip_main, "train", *recipe, f"run_dir={tmp_path / 'run'}", *overrides)
        said = [line for rank in range(world) for line in Path(f"{tmp_path / 'log'}.{rank}").read_text().splitlines()]
        assert codes == [1] * world, said
        assert not any("Traceback" in line for line in said)
        errors = [line for line in said if line.startswith("flexiclip: ")]
        assert len(errors) == 1, said
        return errors[0]

    return run


def spoil(folder: Path, target: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    """A copy of a checkpoint, or of a model folder, with its weights changed."""
    shutil.copytree(folder, target)
    file = next(target.rglob("model.safetensors"))
    weights = load_file(file)
    change(weights)
    save_file(weights, file)
    return target


def spoil_one(name: str, value: float) -> Callable[[dict[str, Tensor]], Any]:
    """Replace one element, as a bit that fell over on a disk would."""
    return lambda weights: weights[name].view(-1)[:1].fill_(value)


@pytest.mark.parametrize(("world", "engine"), covering(0, (3, "torch"), (2, "zero2")))
def test_embeddings_are_named_by_step_length_and_tower(
    refuse: Refuse, saved: Trained, tmp_path: Path, world: int, engine: str
) -> None:
    tower = "image" if world == 2 else "text"
    bad = spoil(saved.checkpoint(10), tmp_path / "bad", spoil_one(f"{tower}_tower.blocks.1.mlp.fc1.weight", NAN))
    said = refuse(world, *ENGINES[engine], f"train.resume={bad}")
    seqhw = saved.samples[10]["seqhw"]
    assert said.startswith(f"flexiclip: step 11, seqhw {seqhw}: embeddings of the {tower} tower are not finite; no weight was")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(("world", "engine"), covering(1, (2, "zero1")))
def test_gradients_are_named_by_tower_when_all_before_them_is_finite(
    refuse: Refuse, saved: Trained, tmp_path: Path, world: int, engine: str
) -> None:
    """GELU of 1e20 is 1e20 or 0; the formula of its gradient squares that, and an Inf times zero comes of it."""

    def change(weights: dict[str, Tensor]) -> None:
        weights[f"{MLP}.fc1.weight"].mul_(1e20)
        weights[f"{MLP}.fc2.weight"].mul_(1e-20)  # what follows sees ordinary numbers

    bad = spoil(saved.checkpoint(10), tmp_path / "bad", change)
    micro = ["train.micro_batch_size=2"] if world > 1 else []
    said = refuse(world, *ENGINES[engine], f"train.resume={bad}", *micro)
    assert ": gradients of the image tower are not finite;" in said


def test_a_norm_that_overflows_is_said_as_such(refuse: Refuse, saved: Trained, tmp_path: Path) -> None:
    bad = spoil(saved.checkpoint(10), tmp_path / "bad", lambda weights: weights[QKV].mul_(1e17))
    assert "the norm of the gradients is not finite, though each of them is" in refuse(1, f"train.resume={bad}")


def test_a_scalar_of_the_loss_is_named(refuse: Refuse, saved: Trained, tmp_path: Path) -> None:
    bad = spoil(saved.checkpoint(10), tmp_path / "bad", spoil_one("logit_scale", NAN))
    assert ": a scalar of the loss is not finite;" in refuse(1, f"train.resume={bad}")


@pytest.mark.parametrize(("world", "engine"), covering(2, (1, "torch")))
def test_a_learning_rate_that_overflows_leaves_the_last_checkpoint_as_it_was(
    refuse: Refuse, tmp_path: Path, world: int, engine: str
) -> None:
    """The first step goes well and is saved; it is the weights after it that float32 cannot multiply."""
    said = refuse(world, *ENGINES[engine], "optimizer.lr=1e37", "optimizer.warmup=0", "train.save_every=1")
    assert said.startswith("flexiclip: step 2, seqhw ")
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"step-1", "latest"}


@pytest.fixture(scope="module")
def rare(reference: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[int]]:
    """(overrides under which one caption's embedding is NaN, the steps that meet this caption: the first, and one an epoch).

    It holds a letter that the tokenizer does not know, and the token of all such letters has a NaN in the text tower.
    """
    folder = tmp_path_factory.mktemp("rare")
    name = reference.samples[0]["samples"][0]
    samples = [sample(number) for number in range(SAMPLES)]
    samples[int(name[-4:])]["txt"] = "a ж".encode()
    for shard, (start, count) in enumerate(zip(np.cumsum([0, *SIZES]), SIZES, strict=False)):
        write_shard(folder / f"train-{shard:04d}.tar", samples[start : start + count])
    unknown = int(load_model(reference.folder).tokenizer(["ж"])[0, 1])
    spoilt = spoil(
        reference.folder / "model",
        folder / "model",
        lambda weights: weights["text_tower.token_embedding.weight"][unknown].fill_(NAN),
    )
    overrides = [f"data.train={folder}/train-*.tar", f"model.text.init={spoilt}", SKIP]
    return overrides, [row["step"] for row in reference.samples if name in row["samples"]]


@pytest.fixture(scope="module")
def skipping(fit: Fit, rare: tuple[list[str], list[int]]) -> Trained:
    """The run that skips those steps, on one rank, with a checkpoint after every step."""
    return fit(1, *rare[0], "train.save_every=1", "train.keep_last=20")


def test_skipped_steps_are_counted_and_touch_nothing(skipping: Trained, rare: tuple[list[str], list[int]]) -> None:
    """Exactly the steps with that caption; weights, moments and scalars stay bit-equal through them, and only through them."""
    faulty = rare[1]
    assert faulty[0] == 1
    assert len(faulty) in (2, 3)
    assert [row["step"] for row in skipping.rows if row["loss"] is None] == faulty
    assert [row["skipped"] for row in skipping.rows] == [sum(step <= k for step in faulty) for k in range(1, 21)]
    for step in range(2, 21):
        before, after = (load_state(skipping.checkpoint(k)) for k in (step - 1, step))
        same = [name for name in before if np.array_equal(before[name], after[name], equal_nan=True)]
        assert (len(same) == len(before)) == (step in faulty), step
    first = load_state(skipping.checkpoint(1))
    assert not any(tensor.any() for name, tensor in first.items() if "exp_avg" in name), "no update, no moments"


def load_state(checkpoint: Path) -> dict[str, np.ndarray]:
    files = (checkpoint / "optimizer.safetensors", checkpoint / "model" / "model.safetensors")
    return {name: tensor.numpy() for file in files for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(("world", "engine"), covering(0, (1, "zero1")))
def test_a_run_that_skips_goes_on_as_if_never_stopped(
    fit: Fit, skipping: Trained, rare: tuple[list[str], list[int]], world: int, engine: str
) -> None:
    """Adam corrects its bias by the number of updates, not of steps, and a resumed run knows it, also before the first one."""
    offload = ["engine.offload=optimizer"] if engine in ("zero2", "zero3") and world == 2 else []
    for start in (1, 12):
        run = fit(world, *rare[0], *ENGINES[engine], *offload, f"train.resume={skipping.checkpoint(start)}")
        assert run.samples == skipping.samples[start:]
        assert [row["skipped"] for row in run.rows] == [row["skipped"] for row in skipping.rows[start:]]
        for name in ("loss", "grad_norm", "logit_scale"):
            np.testing.assert_allclose(run.column(name), skipping.column(name)[start:], rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("world", "engine"), [(1, "zero1"), *(pytest.param(2, f"zero{n}", marks=pytest.mark.slow) for n in range(4))]
)
def test_deepspeed_saves_before_its_first_update(fit: Fit, rare: tuple[list[str], list[int]], world: int, engine: str) -> None:
    run = fit(world, *rare[0], *ENGINES[engine], "train.steps=1")
    state = load_state(run.checkpoint(1))
    assert not any(tensor.any() for name, tensor in state.items() if "exp_avg" in name)


def test_a_hundred_in_a_row_end_the_run(refuse: Refuse, saved: Trained, tmp_path: Path) -> None:
    init = spoil(saved.folder / "model", tmp_path / "bad", spoil_one("text_tower.norm.weight", NAN))
    said = refuse(1, f"model.text.init={init}", SKIP, "train.steps=200", "train.save_every=0")
    assert said.startswith(f"flexiclip: step {REFUSED_IN_A_ROW}, seqhw ")
    assert "embeddings of the text tower are not finite, as in the 99 steps before" in said


def test_a_healthy_step_begins_the_row_anew(capsys: pytest.CaptureFixture[str]) -> None:
    """99 refused steps, a healthy one, 99 more: the run goes on. The next one is the hundredth in a row."""
    skips = Skips("skip", total=5)
    for row in range(2):
        for step in range(99):
            assert skips.refused(ALONE, step, 3, "it") == f"step {step}, seqhw 3: it: skipped, {5 + 99 * row + step + 1} so far"
        if row == 0:
            skips.healthy()
    with pytest.raises(RunError, match="step 7, seqhw 3: it, as in the 99 steps before"):
        skips.refused(ALONE, 7, 3, "it")


def test_stop_ends_the_run_at_the_first_one() -> None:
    skips = Skips("stop")
    with pytest.raises(RunError, match=r"step 7, seqhw 3: it; no weight was touched: train\.on_nonfinite=skip goes on"):
        skips.refused(ALONE, 7, 3, "it")
    assert skips.total == 0
    with pytest.raises(SystemExit, match="1"):
        skips.refused(replace(ALONE, rank=1), 7, 3, "it")


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
def test_marked_gradients_are_nan_if_a_value_is_not_finite_and_otherwise_the_same_bits(value: float) -> None:
    gradients = (torch.randn(3, 4), torch.tensor([1e-45, -0.5]))
    for found, given in zip(marked(gradients, torch.tensor(1e30), torch.tensor([2.0, 3.0])), gradients, strict=True):
        assert torch.equal(found, given)
    for found in (*marked(gradients, torch.tensor(value)), *marked(gradients, torch.tensor(1.0), torch.tensor([0.0, value]))):
        assert found.isnan().all()


def engine_of(config: Config, loaded: LoadedModel, ranks: Ranks) -> Engine:
    towers = Towers(loaded.model.train())
    if config.engine.kind == "torch":
        return TorchEngine(towers, config.optimizer, ranks)
    from flexiclip.train.deepspeed import DeepSpeedEngine

    shortest = min(config.patch.all_seqhw)
    return DeepSpeedEngine(towers, config.engine, config.train, config.optimizer, shortest, ranks)


def refuse_under_every_stage(*argv: str) -> None:
    """In a rank: an update, then a step whose gradients hold a NaN, under plain torch and each stage of ZeRO."""
    for name, overrides in ENGINES.items():
        config = load(argv[0], [*argv[1:], *overrides])
        with joined_ranks(False, 1) as ranks:
            if not dist.is_initialized():
                dist.init_process_group("gloo")
            loaded = build_model(config)
            engine = engine_of(config, loaded, ranks)
            inputs = engine.towers.dummy_inputs(ranks.device)
            tokens = torch.tensor([[5, 6, 7, 1]])

            def add(factor: float, last: bool, engine: Any = engine, inputs: Any = inputs, tokens: Tensor = tokens) -> None:
                halves = engine.embed((inputs[0] + 100, tokens), 3, last=last)
                engine.backward(factor * torch.stack([half[:, 0].sum() for half in halves]).sum())

            def step(factor: float, engine: Any = engine, add: Any = add) -> float:
                add(factor, last=True)
                return float(engine.step(1e-2))

            def state(engine: Any = engine) -> dict[str, Tensor]:
                return {name: t.clone() for name, t in (*engine.weights(), *engine.moments())}

            first = state()
            norm = step(1.0)
            assert math.isfinite(norm), name
            before = state()
            assert any(not torch.equal(first[key], before[key]) for key in before), name
            for factor in (NAN, float("inf")):
                assert not math.isfinite(step(factor)), name
                after = state()
                assert all(torch.equal(before[key], after[key]) for key in before), f"{name}: a refused step updates something"
            add(1e6, last=False)
            engine.discard_gradients()
            after = state()
            assert all(torch.equal(before[key], after[key]) for key in before), f"{name}: discarding gradients updates something"
            assert step(1.0) < 10 * norm, f"{name}: what was refused or discarded is not forgotten"
            assert any(not torch.equal(after[key], value) for key, value in state().items()), name


def test_no_engine_updates_anything_in_a_refused_step(recipe: list[str], tmp_path: Path) -> None:
    assert run_ranks(1, tmp_path / "log", refuse_under_every_stage, *recipe) == [0], (tmp_path / "log.0").read_text()
