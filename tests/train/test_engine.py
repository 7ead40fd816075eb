"""AdamW's groups and arithmetic against float64 by hand and big_vision's golden run, and the clamp of logit_scale.

`train.precision`: what `auto` comes to on this machine, and how the trainer reports it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip.transformer
import pytest
import torch
import transformers
from kit.launch import Trained, run_ranks
from torch import nn

from flexiclip.config import ImageTowerConfig, ModelConfig, OptimizerConfig, TextTowerConfig
from flexiclip.models.clip import FlexiCLIP
from flexiclip.models.text import build_text_tower
from flexiclip.train import engine as precision
from flexiclip.train.engine import ScalarOptimizer, adamw, clip_gradients
from flexiclip.train.ranks import Ranks, joined_ranks

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "optim_adam.npz")
CONFIG = OptimizerConfig(lr=1e-3, weight_decay=0.2, betas=(0.9, 0.98), eps=1e-8)


def names_of(module: nn.Module) -> tuple[set[str], set[str]]:
    """The names of the parameters that are decayed, and of those that are not."""
    names = {p: name for name, p in module.named_parameters()}
    groups = adamw(module, CONFIG).param_groups
    decayed = {names[p] for group in groups if group["weight_decay"] == 0.2 for p in group["params"]}
    kept = {names[p] for group in groups if group["weight_decay"] == 0.0 for p in group["params"]}
    return decayed, kept


def small(**text: object) -> FlexiCLIP:
    image = ImageTowerConfig(width=16, depth=1, heads=2, image_size=32, base_patch_size=8, base_grid=4, pool="map")
    size = {"width": 16, "depth": 1, "heads": 2, "vocab_size": 50, "pad_id": 0, "eos_id": 1, "context_length": 8}
    config = TextTowerConfig(**size | text)  # type: ignore[arg-type]
    return FlexiCLIP(ModelConfig(image, config, embed_dim=8), build_text_tower(config))


def test_only_matrices_decay() -> None:
    decayed, kept = names_of(small())
    block = {f"blocks.0.{name}.weight" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    head = {f"map_head.{name}.weight" for name in ("q", "kv", "proj", "mlp.fc1", "mlp.fc2")}
    image = {"kernel", *block, *head}
    assert decayed == {f"image_tower.{name}" for name in image} | {f"text_tower.{name}" for name in block} | {
        "image_projection.weight",
        "text_projection.weight",
    }
    assert {"image_tower.posemb", "image_tower.map_head.probe", "text_tower.posemb"} < kept
    assert {"text_tower.token_embedding.weight", "image_tower.norm.weight", "image_tower.bias", "logit_scale"} < kept
    cls = FlexiCLIP(ModelConfig(ImageTowerConfig(variant="Ti", depth=1, pool="tok")), small().text_tower)
    assert "image_tower.cls" in names_of(cls)[1]


def test_embeddings_of_foreign_towers_do_not_decay() -> None:
    clip = open_clip.transformer.TextTransformer(context_length=8, vocab_size=50, width=16, heads=2, layers=1)
    assert {"token_embedding.weight", "positional_embedding"} <= names_of(clip)[1]
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=50, **size))
    size = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    t5 = transformers.T5EncoderModel(transformers.T5Config(vocab_size=50, **size))
    for tower in (bert, t5):
        decayed, kept = names_of(tower)
        tables = {f"{name}.weight" for name, m in tower.named_modules() if isinstance(m, nn.Embedding)} & (decayed | kept)
        assert tables
        assert tables <= kept
        assert decayed == {f"{name}.weight" for name, m in tower.named_modules() if isinstance(m, nn.Linear)}


def test_locked_towers_are_left_out_and_no_group_is_empty() -> None:
    model = small(lock=True)
    decayed, kept = names_of(model)
    assert not any(name.startswith("text_tower.") for name in decayed | kept)
    assert "text_projection.weight" in decayed
    assert len(adamw(nn.LayerNorm(4), CONFIG).param_groups) == 1  # DeepSpeed raises on an empty one


def test_steps_equal_float64_by_hand() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 3)
    optimizer = adamw(layer, CONFIG)
    expected = {name: p.detach().double().numpy().copy() for name, p in layer.named_parameters()}
    moments = {name: (np.zeros_like(x), np.zeros_like(x)) for name, x in expected.items()}
    for step in range(1, 4):
        for name, p in layer.named_parameters():
            p.grad = torch.randn_like(p)
            gradient, (m, v) = p.grad.double().numpy(), moments[name]
            m[:], v[:] = 0.9 * m + 0.1 * gradient, 0.98 * v + 0.02 * gradient**2
            decay = 0.2 if name == "weight" else 0.0
            update = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.98**step)) + 1e-8)
            expected[name] -= 1e-3 * (update + decay * expected[name])
        optimizer.step()
    for name, p in layer.named_parameters():
        assert np.abs(p.detach().numpy() - expected[name]).max() < 1e-7


def test_steps_equal_big_vision() -> None:
    """Its decay is not multiplied by lr, so 0.01 there is 0.01 / lr here; schedule, clipping and moments are the same."""
    names = ("txt/Dense_0/kernel", "txt/Dense_0/bias", "t")
    parameters = {name: nn.Parameter(torch.from_numpy(GOLDEN[f"params0/{name}"])) for name in names}
    module = nn.ParameterDict({name.replace("/", "_"): p for name, p in parameters.items()})
    optimizer = adamw(module, OptimizerConfig(lr=1e-3, weight_decay=0.01 / 1e-3, betas=(0.9, 0.999), eps=1e-8))
    for step, factor in enumerate(GOLDEN["sched"]):
        for name, p in parameters.items():
            p.grad = torch.from_numpy(GOLDEN[f"grad{step}/{name}"])
        clip_gradients(optimizer, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * float(factor)
        optimizer.step()
        for name, p in parameters.items():
            assert np.abs(p.detach().numpy() - GOLDEN[f"params{step + 1}/{name}"]).max() < 1e-6, (step, name)


def scalars(scale: float, bias: float) -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor([scale])), nn.Parameter(torch.tensor([bias]))]


def test_logit_scale_is_clamped_and_comes_back() -> None:
    pair = scalars(4.6, -10.0)
    optimizer = ScalarOptimizer(pair, CONFIG, logit_scale_max=100.0)
    down, up = [torch.tensor([1.0]), torch.tensor([1.0])], [torch.tensor([-1.0]), torch.tensor([-1.0])]
    for _ in range(10):
        optimizer.step(0.1, up)
    assert pair[0].item() == pytest.approx(math.log(100.0), abs=1e-6)
    assert pair[1].item() == pytest.approx(-9.0, abs=1e-4), "the bias is not bounded"
    for _ in range(200):
        optimizer.step(0.1, down)
    assert pair[0].item() == 0.0
    for _ in range(200):
        optimizer.step(0.1, up)
    assert pair[0].item() == pytest.approx(math.log(100.0), abs=1e-6)


def test_scalars_are_not_decayed_and_follow_the_given_rate() -> None:
    pair = scalars(2.0, -10.0)
    optimizer = ScalarOptimizer(pair, CONFIG, logit_scale_max=100.0)
    optimizer.step(0.0, [torch.tensor([0.3]), torch.tensor([-0.3])])
    assert [p.item() for p in pair] == [2.0, -10.0]
    for _ in range(3):
        optimizer.step(0.01, [torch.tensor([0.3]), torch.tensor([-0.3])])  # a constant gradient moves by lr a step
    assert [p.item() for p in pair] == pytest.approx([1.97, -9.97], abs=1e-5)


@pytest.mark.parametrize("betas", [(0.9, 0.98), (0.5, 0.7), (0.0, 0.999)])
@pytest.mark.parametrize("eps", [1e-8, 0.1])
def test_scalars_steps_equal_float64_by_hand(betas: tuple[float, float], eps: float) -> None:
    """Gradients that change, so that both moments and eps count."""
    start = [2.0, -10.0]
    pair = scalars(*start)
    optimizer = ScalarOptimizer(pair, replace(CONFIG, betas=betas, eps=eps), logit_scale_max=100.0)
    m, v, expected = np.zeros(2), np.zeros(2), np.array(start)
    for step in range(1, 6):
        gradient = np.array([math.sin(step), 0.1 * math.cos(2 * step)])
        optimizer.step(0.01 * step, [torch.tensor([g], dtype=torch.float32) for g in gradient])
        m, v = betas[0] * m + (1 - betas[0]) * gradient, betas[1] * v + (1 - betas[1]) * gradient**2
        update = (m / (1 - betas[0] ** step)) / (np.sqrt(v / (1 - betas[1] ** step)) + eps)
        expected = expected - 0.01 * step * update
        assert [p.item() for p in pair] == pytest.approx(expected.tolist(), abs=2e-6)
    state = optimizer.state()
    assert [state[f"exp_avg/{i}"].item() for i in range(2)] == pytest.approx(m.tolist(), rel=1e-5)
    assert [state[f"exp_avg_sq/{i}"].item() for i in range(2)] == pytest.approx(v.tolist(), rel=1e-5)


def test_scalars_go_on_where_they_stopped() -> None:
    gradients = [[torch.tensor([math.sin(i)]), torch.tensor([math.cos(i)])] for i in range(8)]
    whole, first = scalars(2.0, -10.0), scalars(2.0, -10.0)
    through, before = ScalarOptimizer(whole, CONFIG, 100.0), ScalarOptimizer(first, CONFIG, 100.0)
    for gradient in gradients:
        through.step(1e-2, gradient)
    for gradient in gradients[:5]:
        before.step(1e-2, gradient)
    second = [nn.Parameter(p.detach().clone()) for p in first]
    after = ScalarOptimizer(second, CONFIG, 100.0)
    after.load({name: t.clone() for name, t in before.state().items()}, updates=5)
    for gradient in gradients[5:]:
        after.step(1e-2, gradient)
    assert [p.item() for p in second] == [p.item() for p in whole]


ALONE = Ranks(rank=0, world=1, local_rank=0, device=torch.device("cpu"))


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the kernel says what the processor has on Linux only")
def test_bf16_is_the_hardwares_own_from_avx512_on() -> None:
    """oneDNN multiplies bfloat16 where the processor has AVX-512 with BW, VL and DQ, or on Arm its own instructions."""
    lines = [
        line.split(":")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Features"))
    ]
    flags = set(lines[0].split())
    assert precision.has_bf16(torch.device("cpu")) == ({"avx512bw", "avx512vl", "avx512dq"} <= flags or "bf16" in flags)


def says_of_itself(native_rank: int) -> None:
    """In a rank: only one of them has the hardware."""
    with joined_ranks(process_group=False, threads=1) as ranks:
        precision.has_bf16 = lambda device: ranks.rank == native_rank  # type: ignore[assignment]
        assert precision.uses_bf16("auto", ranks) is False
        assert precision.uses_bf16("bf16", ranks) is True
        precision.has_bf16 = lambda device: True  # type: ignore[assignment]
        assert precision.uses_bf16("auto", ranks) is True


@pytest.mark.parametrize("native_rank", [0, 1])
def test_auto_is_fp32_on_all_ranks_where_one_has_no_bf16(tmp_path: Path, native_rank: int) -> None:
    assert run_ranks(2, tmp_path / "log", says_of_itself, native_rank) == [0, 0], (tmp_path / "log.1").read_text()
    assert "train.precision=auto: fp32, as the hardware has no bf16 arithmetic" in (tmp_path / "log.0").read_text()


@pytest.mark.parametrize("native", [True, False])
def test_what_each_setting_comes_to(native: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda device: native)
    assert precision.uses_bf16("auto", ALONE) is native
    assert ("auto: bf16" if native else "auto: fp32") in capsys.readouterr().err
    assert precision.uses_bf16("bf16", ALONE) is True
    assert ("fp32 (or auto)" in capsys.readouterr().err) is not native
    assert precision.uses_bf16("fp32", ALONE) is False
    assert capsys.readouterr().err == ""


def test_auto_trains_as_the_setting_that_it_comes_to(fit: Callable[..., Trained], reference: Trained) -> None:
    """The recipe says fp32."""
    same = fit(1, "train.precision=bf16") if precision.has_bf16(torch.device("cpu")) else reference
    assert fit(1, "train.precision=auto").column("loss").tolist() == same.column("loss").tolist()
