"""Fresh weights, parameter by parameter, against what big_vision draws.

The table is worked out from big_vision's models/vit.py, models/proj/flexi/vit.py, models/proj/image_text/text_transformer.py and
two_towers.py, and from flax's initialisers that they name:

xavier_uniform         bound sqrt(6 / (fan in + fan out)); DenseGeneral flattens its kernel first, so query, key, value and out of
                       an attention are [D, D] each; of the probe [1, 1, D] the fans are 1 and D
Embed                  normal, variance 1 / D (its fan in is the features, not the vocabulary)
Dense, Conv (lecun)    variance 1 / fan in
LayerNorm              ones and zeros

Three differences, none of which a run would notice: MLP biases (normal there, deviation 1e-6, zero here), projections (flax cuts
the tails off its lecun_normal, we do not), and the kernel, whose deviation is that of vit.py's Conv, (3 p q)^-0.5, and not the
width^-0.5 of flexi/vit.py.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flexiclip.config import Config, ImageTowerConfig, ModelConfig, TextTowerConfig, from_dict
from flexiclip.model_folder import build_model
from flexiclip.models.clip import FlexiCLIP
from flexiclip.models.text import build_text_tower

D, MLP, PATCH, E = 192, 768, 20, 96  # image tower; a kernel of 3 * 20 * 20 = 1,200 pixels, so no two fans are alike
W, TEXT_MLP = 128, 384  # text tower
IMAGE = ImageTowerConfig(
    width=D, depth=2, heads=3, mlp_dim=MLP, image_size=120, base_patch_size=PATCH, base_grid=8, projection_bias=True
)
TEXT = TextTowerConfig(
    width=W,
    depth=2,
    heads=2,
    mlp_dim=TEXT_MLP,
    vocab_size=700,
    pad_id=0,
    eos_id=1,
    context_length=64,
    pool="map",
    projection_bias=True,
)

Law = tuple[str, float]  # uniform up to a bound, normal with a deviation, or constant


def xavier(fan_in: int, fan_out: int) -> Law:
    return "uniform", math.sqrt(6 / (fan_in + fan_out))


def blocks(width: int, mlp: int) -> dict[str, Law]:
    """One row for each piece of a block and of a MAP head; `weight.0` is the first square of a fused layer."""
    return {
        r"\.attn\.qkv\.weight\.[012]": xavier(width, width),
        r"(\.attn|map_heads?(\.0)?)\.proj\.weight": xavier(width, width),
        r"map_heads?(\.0)?\.q\.weight": xavier(width, width),
        r"map_heads?(\.0)?\.kv\.weight\.[01]": xavier(width, width),
        r"map_heads?(\.0)?\.probe": xavier(1, width),
        r"\.mlp\.fc1\.weight": xavier(width, mlp),
        r"\.mlp\.fc2\.weight": xavier(mlp, width),
        r"(norm\d?|norm_pre|exit_norms\.0)\.weight": ("constant", 1.0),
        r"(norm\d?|norm_pre|exit_norms\.0|qkv|proj|\.q|kv|fc1|fc2)\.bias": ("constant", 0.0),
    }


IMAGE_LAWS = {
    r"tower\.kernel": ("normal", (3 * PATCH * PATCH) ** -0.5),
    r"tower\.bias": ("constant", 0.0),
    r"tower\.posemb": ("normal", D**-0.5),
    r"tower\.cls": ("constant", 0.0),
    r"projections?(\.0)?\.weight": ("normal", D**-0.5),
    r"projections?(\.0)?\.bias": ("constant", 0.0),
    **blocks(D, MLP),
}
TEXT_LAWS = {
    r"tower\.token_embedding\.weight": ("normal", W**-0.5),
    r"tower\.posemb": ("normal", W**-0.5),
    r"projection\.weight": ("normal", W**-0.5),
    r"projection\.bias": ("constant", 0.0),
    **blocks(W, TEXT_MLP),
}


def model_of(**image: Any) -> FlexiCLIP:
    torch.manual_seed(0)
    return FlexiCLIP(ModelConfig(replace(IMAGE, **image), TEXT, embed_dim=E), build_text_tower(TEXT))


def pieces(model: FlexiCLIP) -> dict[str, Tensor]:
    """The parameters of towers and projections by name, fused ones square by square."""
    found = {}
    for name, p in model.named_parameters():
        squares = 3 if name.endswith("qkv.weight") else 2 if name.endswith("kv.weight") else 1
        parts = p.detach().double().chunk(squares)
        found |= {f"{name}.{i}" if squares > 1 else name: part for i, part in enumerate(parts)}
    return {name: part for name, part in found.items() if not name.startswith("logit_")}


def law_of(name: str) -> Law:
    laws = TEXT_LAWS if name.startswith("text_") else IMAGE_LAWS
    (found,) = [law for pattern, law in laws.items() if re.search(rf"{pattern}$", name)]
    return found


def assert_drawn_from(law: Law, x: Tensor, name: str) -> None:
    """Mean, deviation and shape within five standard errors, and the bound of a uniform one."""
    kind, size = law
    if kind == "constant":
        assert (x == size).all(), name
        return
    n, deviation = x.numel(), size / math.sqrt(3) if kind == "uniform" else size
    fourth, eighth = (1.8, 9.0) if kind == "uniform" else (3.0, 105.0)  # moments, in deviations
    found = (x - x.mean()).pow(2).mean().sqrt()
    assert abs(float(x.mean())) < 5 * deviation / math.sqrt(n), name
    assert abs(float(found) / deviation - 1) < 5 * math.sqrt((fourth - 1) / (4 * n)), f"{name}: {found}, not {deviation}"
    assert abs(float((x / deviation).pow(4).mean()) - fourth) < 5 * math.sqrt((eighth - fourth**2) / n), name
    if kind == "uniform":
        assert size * (1 - 10 / n) < float(x.abs().max()) <= size * (1 + 1e-6), name
    else:
        assert 3 < float(x.abs().max()) / size < 6.5, name


@pytest.mark.parametrize(
    "image",
    [
        {"pool": "map", "exits": (1,), "exit_heads": "separate"},
        {"pool": "tok", "pre_norm": True, "flexible": "stride"},
        {"pool": "gap", "patch_bias": False, "exits": (1,), "exit_heads": "separate"},
    ],
    ids=lambda image: image["pool"],
)
def test_initial_weights_are_big_visions(image: dict[str, Any]) -> None:
    model = model_of(**image)
    found = pieces(model)
    for name, part in found.items():
        assert_drawn_from(law_of(name), part, name)
    assert ("image_tower.cls" in found) == (image["pool"] == "tok")
    assert ("image_tower.map_head.probe" in found) == (image["pool"] == "map")


def test_initial_weights_are_drawn_apart() -> None:
    """Layers, squares of fused layers, blocks and towers: no two tensors are alike, and none has anything to do with another."""
    drawn = {
        n: p for n, p in pieces(model_of(pool="map", exits=(1,), exit_heads="separate")).items() if law_of(n)[0] != "constant"
    }
    names = list(drawn)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            x, y = drawn[a].flatten(), drawn[b].flatten()
            n = min(len(x), len(y))
            correlation = torch.corrcoef(torch.stack([x[:n], y[:n]]))[0, 1]
            assert abs(float(correlation)) < 6 / math.sqrt(n), (a, b)


def test_initial_weights_without_projections_are_those_of_the_towers() -> None:
    torch.manual_seed(0)
    text = replace(TEXT, width=D, heads=3, projection="none", pool="mean")
    model = FlexiCLIP(ModelConfig(replace(IMAGE, projection="none"), text, embed_dim=D), build_text_tower(text))
    assert not [name for name, _ in model.named_parameters() if "projection" in name]


@pytest.mark.parametrize(("scale", "bias"), [(1 / 0.07, None), (10.0, -10.0), (1.0, 0.0)])
def test_initial_logit_scale_is_a_log_and_logit_bias_is_itself(scale: float, bias: float | None) -> None:
    config = ModelConfig(IMAGE, TEXT, embed_dim=E, logit_scale_init=scale, logit_bias_init=bias)
    model = FlexiCLIP(config, build_text_tower(TEXT))
    assert model.logit_scale.tolist() == [pytest.approx(math.log(scale), abs=1e-6)]
    assert (None if model.logit_bias is None else model.logit_bias.tolist()) == (None if bias is None else [bias])
    assert [p.shape for p in model.scalars()] == [(1,)] * (1 if bias is None else 2)


@pytest.mark.parametrize("bias", [0.0, -10.0])
def test_head_bias_init_of_a_classifier_and_a_head_of_zeros(bias: float) -> None:
    image = {"width": 32, "depth": 1, "heads": 2, "image_size": 24, "base_patch_size": 8, "base_grid": 3, "projection_bias": True}
    model = {"image": image, "text": None, "classes": 7, "head_bias_init": bias}
    built = build_model(from_dict(Config, {"model": model, "patch": {"seqhw": [3]}})).model
    assert built.image_projection.weight.tolist() == [[0.0] * 32] * 7
    assert built.image_projection.bias.tolist() == [bias] * 7
    assert built.encode_image(torch.randn(2, 3, 24, 24)).tolist() == [[bias] * 7] * 2
    without = build_model(from_dict(Config, {"model": {**model, "image": {**image, "projection_bias": False}}})).model
    assert without.image_projection.bias is None
