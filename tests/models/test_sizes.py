"""Whether stored weights have room for the model of a config: what is counted, and where the border is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from flexiclip.config import ImageTowerConfig, ModelConfig, TextTowerConfig
from flexiclip.errors import UserError
from flexiclip.models.clip import FlexiCLIP
from flexiclip.models.sizes import MOST_LAYERS, build_within, check_layers, check_sizes
from flexiclip.models.text import build_text_tower

SLACK = 2**20
IMAGE = ImageTowerConfig(width=256, depth=6, heads=4, mlp_dim=640, base_patch_size=(16, 20), base_grid=(5, 7))
TEXT = TextTowerConfig(
    width=192, depth=4, heads=3, mlp_dim=500, vocab_size=3000, context_length=40, pad_id=0, eos_id=1, pool="last"
)


@pytest.mark.parametrize("text", [TEXT, None], ids=["two towers", "an image tower alone"])
def test_check_sizes_counts_every_matrix_of_the_model(text: TextTowerConfig | None) -> None:
    """The border lies at the model's own number of parameters, but for its biases, norms and scalars, and the slack."""
    config = ModelConfig(IMAGE, text, embed_dim=96)
    model = FlexiCLIP(config, build_text_tower(text))
    tables = ("kernel", "posemb", "probe", "embedding.weight")
    counted = sum(p.numel() for n, p in model.named_parameters() if p.ndim > 1 and (n.endswith(tables) or n.endswith("weight")))
    check_sizes(config, counted - SLACK, "w")
    with pytest.raises(
        UserError, match=rf"^w: the model of the config has {counted} parameters, its weights of {counted - SLACK - 1}"
    ):
        check_sizes(config, counted - SLACK - 1, "w")
    check_sizes(config, sum(4 * p.numel() for p in model.parameters()), "w")


def test_check_layers_stops_at_the_most() -> None:
    check_layers(MOST_LAYERS, "w")
    for layers in (MOST_LAYERS + 1, 10**9, "12", None, 1.5):
        with pytest.raises(UserError, match=f"^w: a tower of {layers!r} layers; the most are 1000$"):
            check_layers(layers, "w")
    deep = replace(IMAGE, depth=MOST_LAYERS + 1)
    with pytest.raises(UserError, match="a tower of 1001 layers"):
        check_sizes(ModelConfig(deep, None), 10**15, "w")
    with pytest.raises(UserError, match="a tower of 1001 layers"):
        check_sizes(ModelConfig(IMAGE, replace(TEXT, depth=MOST_LAYERS + 1)), 10**15, "w")


def test_build_within_refuses_what_the_file_has_no_room_for(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"0" * 1000)
    assert isinstance(build_within(lambda: nn.Linear(1024, 1024, bias=False), weights, "w"), nn.Linear)  # the slack
    with pytest.raises(
        UserError, match=r"^w: the model of the config has 1049600 parameters, its weights of 1000 bytes have no room"
    ):
        build_within(lambda: nn.Linear(1025, 1024, bias=False), weights, "w")

    def with_buffer(numbers: int) -> nn.Module:
        module = nn.Linear(1, 1)
        module.register_buffer("mask", torch.empty(numbers))
        return module

    build_within(lambda: with_buffer(2**26), weights, "w")
    with pytest.raises(UserError, match="have no room for them"):
        build_within(lambda: with_buffer(2**26 + SLACK + 1001), weights, "w")
    weights.unlink()
    assert build_within(lambda: nn.Linear(1025, 1024, bias=False), weights, "w").weight.shape == (1024, 1025), "no file, no bound"
