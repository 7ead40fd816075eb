"""Compiled blocks: one graph for all lengths, the names and numbers of eager blocks, under every engine that can.

The default tests trace the graphs and run them without the compiler behind (aot_eager), in seconds; the slow ones compile.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.alike import ENGINES, assert_same_training, assert_same_weights
from kit.launch import ENVIRONMENT, Trained, flexiclip_main, run_ranks, said
from kit.overrides import load_last
from test_blocks import OURS, TOWERS, assert_same_gradients, image_tower
from torch import nn
from torch._dynamo.utils import counters

from flexiclip.errors import UserError
from flexiclip.models.flexivit import FlexiViT
from flexiclip.models.locks import blocks_of
from flexiclip.models.text import TextTransformer
from flexiclip.train.blocks import compile_blocks, prepare_blocks, recompute_blocks, remove_cut_off

Fit = Callable[..., Trained]
LENGTHS = (2, 3, 4, 5, 6, 8, 10, 12, 15, 20)  # of 120 px: ten, where torch gives up after eight graphs


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def backward(tower: nn.Module, length: int, batch: int) -> torch.Tensor:
    """The output for a batch of this length; its gradients are added to the parameters."""
    torch.manual_seed(length)
    if isinstance(tower, FlexiViT):
        out = tower(torch.randn(batch, 3, 120, 120), length)
    else:
        out = tower(torch.cat([torch.randint(3, 19, (batch, length - 1)), torch.full((batch, 1), 2)], dim=1))
    out.square().sum().backward() if out.requires_grad else None
    return out.detach()


def assert_one_graph_for_all(tower: nn.Module, lengths: tuple[int, ...], graphs: int) -> None:
    """`graphs` of them after the first length and after the last, and each output and gradient that of the eager tower."""
    plain, names = copy.deepcopy(tower), list(tower.state_dict())
    compile_blocks(tower, backend="aot_eager")
    recompute_blocks(tower)
    assert list(tower.state_dict()) == names
    for number, length in enumerate(lengths):
        batch = 2 + number % 3 if number else length**2  # the first as large as the image is long
        for grad in (False, True):  # as gradient caching does
            with torch.set_grad_enabled(grad):
                out, expected = (backward(each, length, batch) for each in (tower, plain))
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        assert counters["stats"]["unique_graphs"] == graphs, f"at length {length}"
    assert not counters["graph_break"]
    assert not counters["unimplemented"]
    assert counters["frames"]["ok"] == counters["frames"]["total"]
    assert_same_gradients(tower, plain, 1e-5)


def test_ten_lengths_are_one_graph_of_the_image_tower() -> None:
    torch.manual_seed(0)
    tower = image_tower()
    assert_one_graph_for_all(tower, LENGTHS, graphs=2)


@pytest.mark.parametrize("name", ["text", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bert", "open_clip"))])
def test_captions_of_any_length_are_one_graph_of_a_text_tower(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower = TextTransformer(OURS) if name == "text" else TOWERS[name](tmp_path)
    for module in tower.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # compiled dropout draws other numbers than eager's
    kinds = 2 if name == "text" else 1  # our last block computes one token
    assert_one_graph_for_all(tower, (4, 2, 3, 5, 6), graphs=2 * kinds)  # open_clip's causal mask, uncut at 7, would be another


def test_zero_3_says_that_it_cannot(recipe: list[str]) -> None:
    with pytest.raises(UserError, match=r"train\.compile=true .* engine\.zero_stage=3: set a stage below 3"):
        load_last([*recipe, "train.compile=true", *ENGINES["zero3"]])


def test_libraries_that_a_kill_has_cut_off_are_removed_from_the_cache(tmp_path: Path) -> None:
    """What is whole, what is no library, and what may be in the midst of being written stays."""
    whole = next(Path(sysconfig.get_config_var("DESTSHARED")).glob("*.so")).read_bytes()  # a module of Python's own
    contents = {
        "whole": whole,
        "empty": b"",
        "cut": whole[:-1],
        "half": whole[: len(whole) // 2],
        "head": whole[:20],
        "text": b"#",
    }
    contents["zeros"] = bytes(4096)
    for name, content in contents.items():
        for folder in ("old", "new"):
            path = tmp_path / folder / name / "c.so"
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
            if folder == "old":
                os.utime(path, (time.time() - 60,) * 2)
    (tmp_path / "old" / "c.cpp").write_bytes(b"")
    removed = {path.relative_to(tmp_path).parts[:2] for path in remove_cut_off(tmp_path)}
    assert removed == {("old", name) for name in ("empty", "cut", "half", "head", "zeros")}
    left = {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("c.so")}
    assert left == {(folder, name) for folder in ("old", "new") for name in contents} - removed
    assert remove_cut_off(tmp_path / "absent") == []


@pytest.mark.slow
def test_a_start_after_a_kill_in_the_compiler_builds_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every library of the cache empty, torch itself fails for ever."""
    check = "import torch; from flexiclip.train.blocks import check_compiler; check_compiler(torch.device('cpu'))"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    subprocess.run([sys.executable, "-c", check], check=True)
    libraries = list(tmp_path.rglob("*.so"))
    assert libraries
    for path in libraries:
        path.write_bytes(b"")
        os.utime(path, (time.time() - 60,) * 2)
    subprocess.run([sys.executable, "-c", check], check=True)


def marked(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """In the place of torch.compile, which takes a compiler and a minute: the function itself, which counts its calls."""
    assert options in ({}, {"dynamic": True, "backend": "inductor"})

    def compiled(*arguments: Any, **given: Any) -> Any:
        compiled.calls += 1  # type: ignore[attr-defined]
        return function(*arguments, **given)

    compiled.calls = 0  # type: ignore[attr-defined]
    return compiled


@pytest.mark.parametrize(("compiled", "recomputed"), [(True, False), (True, True), (False, True), (False, False)])
def test_prepare_blocks_compiles_every_block_and_recomputes_those_that_train(
    monkeypatch: pytest.MonkeyPatch, recipe: list[str], compiled: bool, recomputed: bool
) -> None:
    """The image tower is frozen but for its last block."""
    made: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: made.append(marked(function, **options)) or made[-1])
    towers = [image_tower(), TextTransformer(OURS)]
    for name, parameter in towers[0].named_parameters():
        parameter.requires_grad = name.startswith("blocks.2.")
    switches = [f"train.compile={str(compiled).lower()}", f"train.activation_checkpointing={str(recomputed).lower()}"]
    prepare_blocks(towers, load_last([*recipe, *switches]).train, torch.device("cpu"))
    recomputations = 0
    if compiled:
        check, *blocks = made
        assert check.calls == 1, "one addition, to see that the compiler works"
        assert len(blocks) == 2, "one for each tower, whose blocks are of one class"
    else:
        assert made == []
    for tower, trained in zip(towers, (1, 3), strict=True):
        entered: list[nn.Module] = []
        for block in blocks_of(tower):
            attention: nn.Module = block.attn  # type: ignore[assignment]
            attention.register_forward_hook(lambda module, *_, seen=entered: seen.append(module))
        backward(tower, 3, 2)
        recomputations += len(entered) - 3
        assert len(entered) == 3 + (trained if recomputed else 0)
    if compiled:
        assert sum(each.calls for each in blocks) == 6 + recomputations


def train_without_a_compiler(*argv: str) -> int:
    """As where g++ is missing."""

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("\n  No working C++ compiler found\nsecond line")

    torch.compile = fail
    return flexiclip_main("train", *argv)


def test_a_compiler_that_does_not_work_ends_the_run_before_it_begins(recipe: list[str], tmp_path: Path) -> None:
    argv = [*recipe, f"run_dir={tmp_path / 'run'}", "train.compile=true"]
    assert run_ranks(1, tmp_path / "log", train_without_a_compiler, *argv) == [2]
    (line,) = said(tmp_path / "log", 0)
    assert line.startswith("flexiclip: train.compile: torch.compile does not work here (No working C++ compiler found): install")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_without_a_compiler_the_run_ends_before_it_begins(recipe: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flexiclip", "train", *recipe, f"run_dir={tmp_path / 'run'}", "train.compile=true"]
    missing = {"CXX": str(tmp_path / "nothing"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "PATH": str(tmp_path)}
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT, **missing}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert "train.compile: torch.compile does not work here" in last
    assert "apt install g++" in last
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


RUNS = [
    (1, "torch", []),
    (2, "torch", ["train.activation_checkpointing=true", "train.micro_batch_size=2"]),
    (1, "zero0", ["train.activation_checkpointing=true"]),
    (2, "zero1", []),
    (2, "zero2", ["train.activation_checkpointing=true", "train.micro_tokens=100"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("world", "engine", "overrides"), RUNS)
def test_a_compiled_run_is_the_eager_one(fit: Fit, reference: Trained, world: int, engine: str, overrides: list[str]) -> None:
    run = fit(world, "train.compile=true", *ENGINES[engine], *overrides)
    assert_same_training(run, reference)
    assert_same_weights(run, reference)


@pytest.mark.slow
def test_a_compiled_run_in_bfloat16_with_a_locked_image_tower(fit: Fit, reference: Trained) -> None:
    """Compiled bf16 rounds less often than eager's, by as much as bf16 differs from itself in test_deepspeed.py."""
    lock = [
        "model.image.lock=true",
        f"model.image.init={reference.folder}",
        "seed=1",
        "train.precision=bf16",
        "optimizer.lr=1e-4",
    ]
    compiled, eager = (fit(1, *lock, f"train.compile={compile}") for compile in ("true", "false"))
    assert_same_training(compiled, eager, loss=0.02, norm=0.1)
