"""The modules that an export traces, called directly: unit embeddings of the model, and a model that they leave alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kit.exports import IMAGES, assert_same_embeddings, pixels, tokens_of

from flexiclip import load_model
from flexiclip.config import PreprocessConfig
from flexiclip.errors import UserError
from flexiclip.export.encoders import ImageEncoder, TextEncoder, require_text
from flexiclip.model_folder import LoadedModel


@torch.no_grad()
def test_normalisation_inside_is_by_channel_with_the_models_mean_and_std(opened: dict[str, LoadedModel]) -> None:
    model, preprocess = opened["ours"].model, PreprocessConfig(mean=(0.1, 0.3, 0.6), std=(0.4, 0.2, 0.7))
    images = pixels(3)
    channels = [(images[:, c].double() / 255 - preprocess.mean[c]) / preprocess.std[c] for c in range(3)]
    expected = model.encode_image(torch.stack(channels, 1).float(), 4, normalize=True)
    assert_same_embeddings(ImageEncoder(model, 4, preprocess)(images), expected)
    assert_same_embeddings(ImageEncoder(model, 4)(torch.stack(channels, 1).float()), expected)


@pytest.mark.parametrize("name", ["ours", "clip", "siglip"])
@torch.no_grad()
def test_image_encoder_has_one_length_and_gives_unit_rows(name: str, opened: dict[str, LoadedModel]) -> None:
    """The default length of these models is 6; SigLIP's has no projection."""
    model = opened[name].model
    for seqhw, encoder in ((6, ImageEncoder(model)), (3, ImageEncoder(model, 3))):
        found = encoder(IMAGES)
        assert_same_embeddings(found, torch.nn.functional.normalize(model.encode_image(IMAGES, seqhw), dim=-1))
        assert torch.allclose(found.norm(dim=-1), torch.ones(4), atol=1e-6)
        assert not encoder.pixels
    assert not torch.allclose(ImageEncoder(model)(IMAGES), ImageEncoder(model, 3)(IMAGES), atol=1e-2)


@pytest.mark.parametrize(("name", "open_length"), [("ours", True), ("clip", True), ("siglip", False)])
@torch.no_grad()
def test_text_encoder_takes_fewer_columns_where_the_tower_does(
    name: str, open_length: bool, opened: dict[str, LoadedModel]
) -> None:
    """SigLIP pools the last column, so all twelve have to be there."""
    loaded = opened[name]
    encoder, tokens = TextEncoder(loaded.model), tokens_of(loaded)
    assert (encoder.context_length, encoder.dynamic_length) == (12, open_length)
    for length in (12, 7) if open_length else (12,):
        found = encoder(tokens[:, :length])
        assert_same_embeddings(found, loaded.model.encode_text(tokens[:, :length], normalize=True))
        assert torch.allclose(found.norm(dim=-1), torch.ones(3), atol=1e-6)


def test_encoders_are_frozen_copies_in_float32(folders: dict[str, Path]) -> None:
    loaded = load_model(folders["siglip"])
    model = loaded.model.bfloat16().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for encoder in (ImageEncoder(model, 3, loaded.transform.preprocess), TextEncoder(model)):
        assert {p.dtype for p in encoder.parameters()} == {torch.float32}
        assert not any(p.requires_grad for p in encoder.projection.parameters())
        assert not encoder.tower.training
        with torch.no_grad():
            for p in encoder.parameters():
                p.zero_()
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_require_text_refuses_an_image_tower_alone(make: Callable[..., Path], opened: dict[str, LoadedModel]) -> None:
    require_text(opened["ours"].model)
    alone = load_model(make("ours", text=None)).model
    for ask in (require_text, TextEncoder):
        with pytest.raises(UserError, match="an image tower alone: there is no text half to export"):
            ask(alone)
    assert ImageEncoder(alone, 3)(IMAGES).shape == (4, 24)
