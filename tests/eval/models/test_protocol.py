"""Which lengths a model is scored at, also next to other models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flexiclip_eval import evaluate_suites
from flexiclip_eval.models.protocol import (
    ForeignModel,
    Geometry,
    choose_lengths,
    geometry,
    is_fixed,
    model_names,
    trained_lengths,
)
from kit.evaluation import Foreign, toy_model, toys, write_shards, write_suite

from flexiclip.errors import UserError
from flexiclip.model_folder import LoadedModel


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return toy_model(tmp_path_factory.mktemp("model"))


class AtThree(torch.nn.Module):
    """A model at the length 3 alone, whatever it is asked for."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def encode_image(self, images: torch.Tensor, seqhw: int | None = None) -> torch.Tensor:
        return self.inner.encode_image(images, seqhw=3)

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.inner.encode_text(tokens)


def test_a_model_of_one_length_keeps_it_beside_others(loaded: LoadedModel, tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "toys.yaml", write_shards(tmp_path / "data", toys(9), (9,)))
    lengths = {3: Geometry(24, 8, 0.5)}
    fixed = ForeignModel(AtThree(loaded.model), loaded.transform.__call__, loaded.tokenizer, lengths, (3,), None, "fixed")  # type: ignore[arg-type]
    plain = Foreign(AtThree(loaded.model), loaded.transform.__call__, loaded.tokenizer)
    rows = evaluate_suites([("ours", loaded), ("fixed", fixed), ("plain", plain)], [suite], seqhw=[2, 6])
    retrieval = [(row.pretrained, row.seqhw) for row in rows if row.task == "zeroshot_retrieval"]
    assert retrieval == [("ours", 2), ("ours", 6), ("fixed", 3), ("plain", None)]
    assert [(row.patch_size, row.gflops) for row in rows if row.pretrained == "fixed"] == [(8, 0.5)] * 2
    own = evaluate_suites([("ours", loaded)], [suite], seqhw=[3])
    assert [row.metrics for row in rows if row.pretrained in ("fixed", "plain")] == [row.metrics for row in own] * 2
    for model in (fixed, plain):
        with pytest.raises(UserError, match="--seqhw 2,6: this model has one fixed length"):
            evaluate_suites([("alone", model)], [suite], seqhw=[2, 6])


def test_choose_lengths_and_what_is_said_of_them(loaded: LoadedModel) -> None:
    assert choose_lengths(loaded, None) == [2, 3, 6]
    assert choose_lengths(loaded, [6, 2, 6]) == [2, 6]
    lengths: dict[int | None, Geometry] = {s: Geometry(24, 24 // s, float(s)) for s in (2, 3, 4)}
    foreign = ForeignModel(None, None, None, lengths, (2, 4), None, "arch", (4,))  # type: ignore[arg-type]
    assert (choose_lengths(foreign, None), choose_lengths(foreign, [3, 2])) == ([2, 4], [2, 3])
    assert (is_fixed(foreign), trained_lengths(foreign)) == (False, (4,))
    assert trained_lengths(replace(foreign, trained=None)) == (2, 4)
    assert geometry(foreign, 3) == Geometry(24, 8, 3.0)
    with pytest.raises(UserError, match="--seqhw 5: this model runs at 2,3,4"):
        choose_lengths(foreign, [5])
    assert model_names(foreign, "open_clip:ViT-B-16/openai") == ("ViT-B-16", "openai")
    assert model_names(foreign, "out/m/") == ("arch", "out/m/")
    assert model_names(replace(foreign, name=None), "out/m/") == ("m", "out/m/")
    assert model_names(loaded, "runs/x") == ("FlexiViT-16x1", "runs/x")
