"""What the writers share: the reasons of a refusal, the parts of a model as other libraries want them, and the files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from flexiclip.config import ModelConfig
from flexiclip.errors import UserError
from flexiclip.formats.written import (
    check,
    colours,
    mlp_ratio,
    projection_bias,
    projection_weight,
    refuse,
    scalars,
    shape_facts,
    text_of,
    write_json,
    write_weights,
)
from flexiclip.model_folder import LoadedModel
from flexiclip.models.text import TextTransformer


def test_check_raises_the_first_reason_that_holds() -> None:
    check("timm", {})
    check("timm", {"it is round": False})
    message = r"^--format timm cannot express this model: it is red$"
    with pytest.raises(UserError, match=message):
        check("timm", {"it is round": False, "it is red": True, "it is large": True})
    with pytest.raises(UserError, match=message):
        raise refuse("timm", "it is red")


def test_text_of_an_image_tower_alone_is_refused(opened: dict[str, LoadedModel]) -> None:
    config = opened["clip"].config.model
    assert text_of(config, "transformers") is config.text
    with pytest.raises(UserError, match="--format open_clip cannot express this model: it has no text half"):
        text_of(ModelConfig(text=None), "open_clip")


def test_mlp_ratio_gives_back_every_width_of_an_mlp() -> None:
    """timm and open_clip compute int(width * ratio); 4304 of 1152 is SigLIP's So400m."""
    for width in (1, 3, 7, 32, 49, 64, 1152):
        for hidden in range(1, 6 * width):
            assert int(width * mlp_ratio(width, hidden)) == hidden, (width, hidden)
    assert mlp_ratio(768, 3072) == 4.0
    assert int(1152 * mlp_ratio(1152, 4304)) == 4304


def test_projection_weight_and_projection_bias_of_layers_and_of_none() -> None:
    layer, bare = nn.Linear(3, 2), nn.Linear(3, 2, bias=False)
    x = torch.randn(5, 3)
    rebuilt = x @ projection_weight(layer, 3).T + projection_bias(layer, 2)
    assert torch.allclose(rebuilt, layer(x), atol=1e-6)
    assert not projection_weight(layer, 3).requires_grad
    assert not projection_bias(layer, 2).requires_grad
    assert projection_bias(bare, 2).tolist() == [0, 0]
    assert torch.equal(projection_weight(nn.Identity(), 3), torch.eye(3))
    assert projection_bias(nn.Identity(), 3).tolist() == [0, 0, 0]


def test_scalars_are_logit_scale_and_the_bias_of_the_sigmoid_loss(opened: dict[str, LoadedModel]) -> None:
    clip, siglip = (scalars(opened[name].model) for name in ("clip", "siglip"))
    assert clip.keys() == {"logit_scale"}
    assert siglip.keys() == {"logit_scale", "logit_bias"}
    assert siglip["logit_bias"].shape == (1,)
    assert -11 < siglip["logit_bias"].item() < -9
    assert not any(tensor.requires_grad for tensor in siglip.values())


def test_colours_are_the_preprocessing_of_the_model(opened: dict[str, LoadedModel]) -> None:
    assert colours(opened["ours"]) == {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}


def test_shape_facts_are_width_depth_heads_and_mlp_width(opened: dict[str, LoadedModel]) -> None:
    """The sizes of kit/export_models.py; CLIP's text tower has mlp_dim=100, and 4 x 32 is the default."""
    model = opened["clip"].model
    assert shape_facts(model.image_tower) == (32, 2, 4, 128)
    assert isinstance(model.text_tower, TextTransformer)
    assert shape_facts(model.text_tower) == (32, 2, 4, 100)


def test_write_json_is_indented_and_keeps_letters(tmp_path: Path) -> None:
    write_json(tmp_path / "c.json", {"name": "Zoë", "sizes": [1, 2]})
    text = (tmp_path / "c.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"name": "Zoë", "sizes": [1, 2]}
    assert text.startswith('{\n  "name": "Zoë",\n')
    assert text.endswith("}\n")


def test_write_weights_stores_float32_and_shared_memory_apart(tmp_path: Path) -> None:
    whole = torch.arange(6.0).view(2, 3)
    given = {"a": whole, "row": whole[0], "turned": whole.T, "half": whole.half(), "trained": nn.Parameter(whole)}
    write_weights(tmp_path / "w.safetensors", given)
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    assert found.keys() == given.keys()
    for name, tensor in given.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], tensor.detach().float())
