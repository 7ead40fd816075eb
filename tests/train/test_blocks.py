"""Blocks that are recomputed: the losses and gradients of those that are not, in less memory, for every tower and engine.

Memory that is freed stays with the process, so that no step pays for pages again; workers differ.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import transformers
from kit.alike import ENGINES, assert_same_training, assert_same_weights
from kit.launch import Trained
from torch import Tensor, nn

from flexiclip.config import ImageTowerConfig, TextTowerConfig
from flexiclip.errors import UserError
from flexiclip.models.flexivit import FlexiViT
from flexiclip.models.locks import blocks_of, lock_of
from flexiclip.models.text import TextTransformer, build_text_tower
from flexiclip.models.text.open_clip import OpenClipText
from flexiclip.models.transformer import MLP
from flexiclip.train import blocks as host_memory
from flexiclip.train.blocks import recompute_blocks

Fit = Callable[..., Trained]
SIZES = {"width": 32, "depth": 3, "heads": 2}
IMAGES = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([[5, 7, 9, 2, 0, 0, 0], [5, 2, 0, 0, 0, 0, 0], [5, 8, 8, 6, 2, 0, 0], [3, 2, 0, 0, 0, 0, 0]])
OURS = TextTowerConfig(**SIZES, vocab_size=20, pad_id=0, eos_id=2, context_length=7)  # type: ignore[arg-type]


def add_dropout(tower: nn.Module) -> nn.Module:
    for module in list(tower.modules()):
        if isinstance(module, MLP):
            module.act = nn.Sequential(module.act, nn.Dropout(0.5))
    return tower


def image_tower(**changes: Any) -> FlexiViT:
    return FlexiViT(ImageTowerConfig(**SIZES, image_size=48, base_patch_size=16, base_grid=4, **changes))  # type: ignore[arg-type]


def bert(folder: Path) -> nn.Module:
    """Its dropout is on."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 20}
    transformers.BertModel(transformers.BertConfig(**sizes, max_position_embeddings=9)).save_pretrained(folder)
    return build_text_tower(TextTowerConfig(kind="huggingface", name=str(folder), pool="mean"))


def t5(folder: Path) -> nn.Module:
    """Its layers hand a position bias on to each other, and hold lists of modules themselves."""
    sizes = {
        "d_model": 32,
        "d_kv": 16,
        "num_heads": 2,
        "d_ff": 64,
        "num_layers": 3,
        "vocab_size": 20,
        "decoder_start_token_id": 0,
    }
    transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)).save_pretrained(folder)
    return build_text_tower(TextTowerConfig(kind="huggingface", name=str(folder), pool="mean", context_length=7))


def clip_text(folder: Path) -> nn.Module:
    text_cfg = {"context_length": 7, "vocab_size": 20, "width": 32, "heads": 2, "layers": 3, "pool_type": "argmax"}
    vision = {"image_size": 16, "patch_size": 8, "layers": 1, "width": 64}
    model = open_clip.CustomTextCLIP(24, dict(vision), dict(text_cfg))
    return OpenClipText(TextTowerConfig(kind="open_clip", name="tiny"), model.text, {"embed_dim": 24, "text_cfg": text_cfg})


TOWERS: dict[str, Callable[[Path], nn.Module]] = {
    "image": lambda _: add_dropout(image_tower()),
    "text": lambda _: add_dropout(TextTransformer(OURS)),
    "bert": bert,
    "t5": t5,
    "open_clip": clip_text,
}


def run(tower: nn.Module) -> tuple[Tensor, int]:
    """The tower's output under a fixed random state, its gradients left in the parameters, and how many numbers backward held."""
    held = []
    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t.numel()) or t, lambda t: t):
        out = tower(IMAGES, 6) if isinstance(tower, FlexiViT) else tower(TOKENS)
    out.square().sum().backward()
    return out, sum(held)


def assert_same_gradients(tower: nn.Module, expected: nn.Module, tolerance: float = 1e-6) -> None:
    """To that fraction of the largest of each tensor."""
    other = dict(tower.named_parameters())
    trained = 0
    for name, p in expected.named_parameters():
        assert (p.grad is None) == (other[name].grad is None), name
        if p.grad is not None:
            trained += 1
            torch.testing.assert_close(other[name].grad, p.grad, rtol=0, atol=tolerance * float(p.grad.abs().max()), msg=name)
    assert trained > 10


@pytest.mark.parametrize("name", TOWERS)
def test_a_recomputed_tower_gives_the_same_gradients_and_holds_less(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = TOWERS[name](tmp_path).train()
    tower = copy.deepcopy(plain)
    names = list(tower.state_dict())
    recompute_blocks(tower)
    copied = copy.deepcopy(tower)
    assert len(blocks_of(tower)) == 3
    assert list(tower.state_dict()) == names
    expected, whole = run(plain)
    for other in (tower, copied):
        out, held = run(other)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-6 * float(expected.detach().abs().max()))
        assert_same_gradients(other, plain)
        assert held < 0.5 * whole, f"backward held {held} numbers of {whole}"


def test_a_frozen_block_is_never_run_twice() -> None:
    torch.manual_seed(0)
    config = ImageTowerConfig(lock=True, unlock_last=1)
    plain = image_tower()
    lock_of(plain, config, "model.image").freeze()
    tower = copy.deepcopy(plain)
    recompute_blocks(tower)
    calls = [0, 0, 0]
    for i, block in enumerate(blocks_of(tower)):
        block.mlp.register_forward_pre_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
    with torch.no_grad():
        tower(IMAGES, 6)
    assert calls == [1, 1, 1], "without gradients there is nothing to recompute"
    assert torch.equal(run(tower)[0], run(plain)[0])
    assert calls == [2, 2, 3]
    assert_same_gradients(tower, plain)


def test_a_tower_without_blocks_says_so() -> None:
    with pytest.raises(UserError, match=r"Linear has no list of blocks: set train\.activation_checkpointing=false"):
        recompute_blocks(nn.Linear(2, 2))


SHARDED = [  # below 100,000 elements ZeRO-3 would keep a parameter whole on each rank: here it keeps none, not for a moment
    f"engine.deepspeed.zero_optimization.stage3_{key}=0"
    for key in ("param_persistence_threshold", "prefetch_bucket_size", "max_live_parameters")
]
RUNS = [
    pytest.param(2, "zero3", SHARDED, id="2-zero3-sharded"),
    *(pytest.param(2, engine, [], id=f"2-{engine}", marks=pytest.mark.slow) for engine in ENGINES),
    pytest.param(2, "zero3", [*SHARDED, "train.micro_batch_size=2"], id="2-zero3-micro", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("world", "engine", "overrides"), RUNS)
def test_every_engine_recomputes(fit: Fit, reference: Trained, world: int, engine: str, overrides: list[str]) -> None:
    run = fit(world, "train.activation_checkpointing=true", *ENGINES[engine], *overrides)
    assert_same_training(run, reference)
    assert_same_weights(run, reference)


PROGRAM = """
import os, resource, sys
import torch
from flexiclip.train.blocks import keep_freed_memory

def faults(megabytes=48):  # beyond glibc's largest threshold
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.ones(megabytes << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
plain = faults()
kept = keep_freed_memory()
for _ in range(4):  # an aligned array needs a little more than the last one freed: the heap grows until one fits
    faults()
print(kept, plain, faults(), flush=True)
if os.fork() == 0:
    print(faults(300), flush=True)  # more than the parent kept
    os._exit(0)
os.wait()
"""


def run_program(environment: dict[str, str]) -> list[str]:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command, env={"OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True, check=True, timeout=300
    )
    return done.stdout.split()


def test_freed_arrays_stay_with_the_process_and_not_with_its_children() -> None:
    kept, plain, after, child = run_program({})
    pages = 3 * 48 * 256  # 4 KB each; larger ones would be fewer
    assert kept == "True"
    assert int(plain) > pages // 2
    assert int(after) < pages // 100
    assert int(child) > 300 * 256 * 2, "each of the three was mapped anew"


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_"])
def test_what_the_environment_says_holds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variable alone, at a value of glibc's own too: malloc is asked for nothing."""
    asked: list[int] = []
    monkeypatch.setattr(host_memory, "_set", lambda parameter, value: asked.append(parameter) or False)
    monkeypatch.setattr(host_memory.platform, "libc_ver", lambda: ("glibc", "2.35"))
    assert host_memory.keep_freed_memory() is False
    assert len(asked) == 1, "without a variable it asks, and is refused here"
    monkeypatch.setenv(name, str(128 << 10))
    assert host_memory.keep_freed_memory() is False
    assert len(asked) == 1
