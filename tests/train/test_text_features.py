"""Features of captions from a frozen text tower: what they are found again by, and what is not among them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from launch import Trained

from flexiclip.bundle import LoadedModel, load_model
from flexiclip.data.batch import caption_id
from flexiclip.train.processes.ranks import Ranks
from flexiclip.train.text_features import compute_text_features

ALONE = Ranks(rank=0, world=1, local_rank=0, device=torch.device("cpu"))
CAPTIONS = ["a red fox", "an owl", "two boats"]


@pytest.fixture
def loaded(reference: Trained) -> LoadedModel:
    return load_model(reference.folder)


def test_they_are_those_of_captions_tower_and_tokenizer_alike(loaded: LoadedModel, tmp_path: Path) -> None:
    """A start that failed may be mended in the same run folder: weights and captions stay, what else decides them need not."""

    def files(of: LoadedModel) -> int:
        compute_text_features(of, CAPTIONS, tmp_path, ALONE, bf16=False)
        return len(list(tmp_path.glob("text_features-*.safetensors")))

    text = loaded.config.model.text
    assert text is not None
    assert files(loaded) == 1
    assert files(loaded) == 1
    other_pool = replace(loaded.config, model=replace(loaded.config.model, text=replace(text, pool="last")))
    assert files(replace(loaded, config=other_pool)) == 2
    upper = type(loaded.tokenizer)(replace(loaded.tokenizer.config, lowercase=False), loaded.tokenizer.files)
    assert files(replace(loaded, tokenizer=upper)) == 3


@torch.no_grad()
def test_a_caption_that_could_not_be_read_has_none(loaded: LoadedModel, tmp_path: Path) -> None:
    features = compute_text_features(loaded, CAPTIONS, tmp_path, ALONE, bf16=False)
    assert features is not None
    found = features(torch.tensor([caption_id(text) for text in CAPTIONS]))
    assert found is not None
    assert torch.allclose(found, loaded.model.text_tower(loaded.tokenizer(CAPTIONS)), atol=1e-5)
    assert features(torch.tensor([caption_id("an owl"), caption_id("never read")])) is None
