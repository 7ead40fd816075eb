"""Features of captions from a frozen text tower: what they are found again by, and what is not among them."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kit.launch import Trained
from torch import Tensor

from flexiclip.data.batch import caption_id
from flexiclip.errors import UserError
from flexiclip.model_folder import LoadedModel, load_model
from flexiclip.train import text_features
from flexiclip.train.ranks import Ranks, RunContext
from flexiclip.train.text_features import compute_text_features

ALONE = Ranks(rank=0, world=1, local_rank=0, device=torch.device("cpu"))
CAPTIONS = ["a red fox", "an owl", "two boats"]


def in_fp32(folder: Path) -> RunContext:
    """A run of one rank in that folder."""
    return RunContext(ALONE, bf16=False, folder=folder)


@pytest.fixture
def loaded(reference: Trained) -> LoadedModel:
    return load_model(reference.folder)


def test_features_are_kept_by_all_that_decides_them(loaded: LoadedModel, tmp_path: Path) -> None:
    """A start that failed may be mended in the same run folder, and a checkpoint of other weights be put there."""
    text = loaded.config.model.text
    assert text is not None

    def features(of: LoadedModel = loaded, captions: list[str] = CAPTIONS, bf16: bool = False) -> tuple[Tensor, int]:
        """Of "an owl", and how many files there are."""
        found = compute_text_features(of, captions, RunContext(ALONE, bf16, tmp_path))
        assert found is not None
        row = found(torch.tensor([caption_id("an owl")]))
        assert row is not None
        return row, len(list(tmp_path.glob("text_features-*.safetensors")))

    first, files = features()
    assert files == 1
    again, files = features(captions=[*reversed(CAPTIONS), CAPTIONS[0]])
    assert files == 1, "the same captions in another order, and one twice"
    assert torch.equal(again, first)
    more, files = features(captions=[*CAPTIONS, "a fourth"])
    assert files == 2, "other captions"
    torch.testing.assert_close(more, first, rtol=0, atol=1e-5)
    for number, name in enumerate(("norm.weight", "token_embedding.weight", "blocks.0.attn.proj.bias"), start=3):
        moved = replace(loaded, model=copy.deepcopy(loaded.model))
        moved.model.text_tower.get_parameter(name).data.view(-1)[::3] += 0.5
        other, files = features(moved)
        assert files == number, f"other weights: {name}"
        assert not torch.allclose(other, first, atol=1e-3)
    _, files = features(bf16=True)
    assert files == 6, "another precision"
    other_pool = replace(loaded.config, model=replace(loaded.config.model, text=replace(text, pool="last")))
    _, files = features(replace(loaded, config=other_pool))
    assert files == 7, "another tower"
    upper = type(loaded.tokenizer)(replace(loaded.tokenizer.config, lowercase=False), loaded.tokenizer.files)
    _, files = features(replace(loaded, tokenizer=upper))
    assert files == 8, "another tokenizer"
    assert not list(tmp_path.glob("*.tmp"))


def test_beyond_what_is_kept_the_tower_runs_in_every_step(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With room for two rows of float32."""
    width = loaded.model.text_tower.width
    assert text_features.KEPT_TEXT_FEATURES == 2 * 2**30
    monkeypatch.setattr(text_features, "KEPT_TEXT_FEATURES", 2 * 4 * width)
    assert compute_text_features(loaded, CAPTIONS[:2], in_fp32(tmp_path)) is not None
    assert compute_text_features(loaded, CAPTIONS, in_fp32(tmp_path)) is None
    assert "more than 2 distinct captions: the frozen text tower runs in every step" in capsys.readouterr().err


def test_features_that_cannot_be_kept_are_one_line_and_leave_nothing(loaded: LoadedModel, tmp_path: Path) -> None:
    """As on a disk that is full: where nothing can be written, and where what is written cannot be put in its place."""
    with pytest.raises(UserError, match=r"^run_dir=.*absent: cannot write there: No such file or directory \("):
        compute_text_features(loaded, CAPTIONS, in_fp32(tmp_path / "absent"))
    compute_text_features(loaded, CAPTIONS, in_fp32(tmp_path))
    (path,) = tmp_path.iterdir()
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=rf"^run_dir={tmp_path}: cannot write there: Is a directory \("):
        compute_text_features(loaded, CAPTIONS, in_fp32(tmp_path))
    assert list(tmp_path.iterdir()) == [path]


@torch.no_grad()
def test_a_caption_that_could_not_be_read_has_none(loaded: LoadedModel, tmp_path: Path) -> None:
    features = compute_text_features(loaded, CAPTIONS, in_fp32(tmp_path))
    assert features is not None
    found = features(torch.tensor([caption_id(text) for text in CAPTIONS]))
    assert found is not None
    assert torch.allclose(found, loaded.model.text_tower(loaded.tokenizer(CAPTIONS)), atol=1e-5)
    assert features(torch.tensor([caption_id("an owl"), caption_id("never read")])) is None
