"""Mistakes of a later model are found before the first one is scored, and the message names the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from flexiclip_eval import EvalOptions, evaluate_suites
from flexiclip_eval.checks import outline
from flexiclip_eval.models.protocol import choose_lengths, geometry
from flexiclip_eval.models.sources import open_model
from kit.evaluation import toy_model, toys, write_shards, write_suite

from flexiclip.errors import UserError
from flexiclip.model_folder import LoadedModel, build_model, save_model


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedModel:
    return toy_model(tmp_path)


@pytest.fixture
def suite(tmp_path: Path) -> str:
    return write_suite(tmp_path / "toys.yaml", write_shards(tmp_path / "data", toys(9), (9,)))


@pytest.fixture
def refused(
    tmp_path: Path, loaded: LoadedModel, suite: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """refused(MODEL, ...): the message of an evaluation of a good model and this one, of which nothing was scored."""
    from flexiclip_eval import run

    save_model(tmp_path / "good", loaded)

    def evaluate(*models: str, options: EvalOptions | None = None, seqhw: list[int] | None = None) -> str:
        scored: list[object] = []
        monkeypatch.setattr(run, "score_tasks", lambda *arguments: scored.append(arguments) or iter(()))
        with pytest.raises(UserError) as caught:
            evaluate_suites(
                [str(tmp_path / "good"), *models], [suite], seqhw=seqhw, output=tmp_path / "out", options=options or EvalOptions()
            )
        assert scored == []
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    return evaluate


def test_names_and_lengths_are_judged_first(tmp_path: Path, loaded: LoadedModel, refused: Callable[..., str]) -> None:
    save_model(tmp_path / "other", loaded)
    other = str(tmp_path / "other")
    assert refused("missing").startswith("missing is not a model: there is no such file or folder")
    assert refused(other, seqhw=[3, 5]).startswith(f"{tmp_path / 'good'}: seqhw [5] does not divide the image of 24 pixels")
    assert refused(f"{other}+exit3").startswith(f"{other}+exit3: the image tower cannot be left after block 3 of 1")
    assert (
        refused(f"{other}+pi", options=EvalOptions(cascade=(2, 9)))
        == f"{tmp_path / 'good'}: --cascade 2:9: both must be evaluated; --seqhw is 2,3,6"
    )
    wide = EvalOptions(widths=(4, 99))
    assert refused(other, options=wide) == f"--widths 4,99: the embeddings of {tmp_path / 'good'} have 12 columns"


def test_a_model_whose_length_does_not_divide_its_image_is_named(tmp_path: Path, refused: Callable[..., str]) -> None:
    """The good model has images of 24 pixels, which 6 divides; those of the other one have 20."""
    config = toy_model(tmp_path).config
    image = replace(config.model.image, image_size=20, base_patch_size=5, base_grid=4)
    config = replace(config, model=replace(config.model, image=image), patch=replace(config.patch, seqhw=(2, 4, 5)))
    save_model(tmp_path / "twenty", build_model(config))
    message = refused(str(tmp_path / "twenty"), seqhw=[6])
    assert message == f"{tmp_path / 'twenty'}: seqhw [6] does not divide the image of 20 pixels; valid: [1, 2, 4, 5, 10, 20]"


def test_names_of_open_clip_are_judged_first(refused: Callable[..., str]) -> None:
    assert (
        refused("open_clip:ViT-S-32-alt+pi")
        == "open_clip:ViT-S-32-alt+pi: name the weights too, NAME/PRETRAINED, a tag or a file"
    )
    assert refused("open_clip:ViT-B32/openai").startswith(
        "open_clip:ViT-B32/openai: open_clip knows no model 'ViT-B32'; did you mean "
    )
    wrong = refused("open_clip:ViT-B-32/openia")
    assert wrong.startswith(
        "open_clip:ViT-B-32/openia: open_clip cannot load it: 'openia' is neither a file nor a tag of ViT-B-32"
    )
    assert "; did you mean openai? its tags are openai, " in wrong
    assert "laion2b_s34b_b79k" in wrong
    assert refused("open_clip:ViT-S-32-alt/x.pt").endswith(
        "'x.pt' is neither a file nor a tag of ViT-S-32-alt; it has no published weights"
    )


def test_a_model_without_a_text_tower_is_named_first(tmp_path: Path, loaded: LoadedModel, refused: Callable[..., str]) -> None:
    config = replace(loaded.config, model=replace(loaded.config.model, text=None))
    save_model(tmp_path / "tower", build_model(config))
    assert refused(str(tmp_path / "tower")).startswith(f"{tmp_path / 'tower'}: the model is an image tower alone")


def test_an_outline_has_the_lengths_and_sizes_of_the_model(tmp_path: Path, loaded: LoadedModel) -> None:
    save_model(tmp_path / "m", loaded)
    for text in (str(tmp_path / "m"), f"{tmp_path / 'm'}+pi"):
        drawn, opened = outline(text), open_model(text, "cpu")
        assert drawn is not None
        assert choose_lengths(drawn, None) == choose_lengths(opened, None)
        assert [geometry(drawn, length) for length in (2, 3, 6)] == [geometry(opened, length) for length in (2, 3, 6)]
    vit = outline("open_clip:ViT-B-32/openai")
    assert vit is not None
    assert (choose_lengths(vit, None), geometry(vit, 7).patch_size, geometry(vit, 7).image_size) == ([7], 32, 224)
    flexed = outline("open_clip:ViT-B-32/openai+pi")
    assert flexed is not None
    assert choose_lengths(flexed, [7, 14]) == [7, 14]
    assert outline("open_clip:RN50/openai") is None, "not a ViT"


def test_a_model_that_fails_when_it_is_opened_leaves_the_results_of_the_others(
    tmp_path: Path, loaded: LoadedModel, suite: str
) -> None:
    """What only the weights show is found when the model's turn comes."""
    save_model(tmp_path / "damaged", loaded)
    weights = tmp_path / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(UserError, match="damaged"):
        evaluate_suites([("toy", loaded), str(tmp_path / "damaged")], [suite], seqhw=[3], output=tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["pretrained"] for row in rows} == {"toy"}
    assert (tmp_path / "out" / "report.html").is_file()
