"""`flexiclip analyze` on toys: whole runs, and what they say against the same worked out sample by sample."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flexiclip_eval.analysis import cue_conflict, tokens
from flexiclip_eval.analysis.cka import layer_cka
from flexiclip_eval.analysis.run import ANALYSES, AnalysisOptions, analyze, chosen
from flexiclip_eval.analysis.subject import Sample, Subject, draw_sample, subject_lengths
from flexiclip_eval.suites.load import load_datasets
from kit.evaluation import CATEGORIES, Foreign, encode_one_by_one, slow_recall, texts_one_by_one, toy_model, toys, unit

from flexiclip.cli import run
from flexiclip.config import TokenizerConfig
from flexiclip.data.tokenizers import AbsentTokenizer
from flexiclip.errors import UserError
from flexiclip.model_folder import LoadedModel, load_model, save_model

BROKEN = (2, 20)
LENGTHS = [2, 3, 6]


@pytest.fixture(scope="module")
def found(place: Path) -> Path:
    """What the command leaves for all analyses."""
    out = place / "out"
    arguments = ["analyze", str(place / "model"), "--suite", str(place / "toys.yaml"), "--output", str(out), "--device", "cpu"]
    assert run([*arguments, "--cue-conflict", str(place / "cues"), "--maps", "2", "--batch-size", "8"]) == 0
    return out


def numbers(found: Path, name: str) -> dict:
    return json.loads((found / "analysis.json").read_text())["analyses"][name]


def loaded(place: Path) -> LoadedModel:
    return load_model(str(place / "model"))


def subject_of(place: Path, count: int, batch_size: int) -> Subject:
    """The first readable images of the toys at two lengths, with the folder of cues."""
    model = loaded(place)
    sample = draw_sample(load_datasets([str(place / "toys.yaml")]), model.transform, 23)
    part = Sample(sample.images[:count], sample.texts[:count], [])
    options = AnalysisOptions(batch_size=batch_size, workers=1, maps=1, cue_conflict=place / "cues")
    return Subject(model, (2, 3), (), part, options)


def test_all_is_written_and_nothing_is_loaded_by_the_page(found: Path) -> None:
    about = json.loads((found / "analysis.json").read_text())
    assert list(about["analyses"]) == ["cka", "attention", "tokens", "ensembles", "cue-conflict"]
    assert [length["seqhw"] for length in about["lengths"]] == LENGTHS
    assert about["images"] == 21
    assert len(about["bad_samples"]) == 2
    pictures = {path.stem for path in found.glob("*.png")}
    assert pictures == {"cka", "attention", "tokens", "ensembles_0", "ensembles_1", "cue_conflict"}
    page = (found / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sum(source.startswith("data:image/png;base64,") for source in sources) == 6
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert "<!-- " not in page
    assert "<script" not in page
    assert all(each["sentence"] in page for each in about["analyses"].values())


def test_cka_is_one_on_the_diagonal_and_symmetric(found: Path) -> None:
    cka = numbers(found, "cka")
    matrix = np.array(cka["matrix"])
    assert cka["layers"] == ["stem", "block 1", "pooled"]
    assert matrix.shape == (9, 9)
    np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-5)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-5)
    for layer in range(3):
        across = [matrix[i * 3 + layer, j * 3 + layer] for i in range(3) for j in range(3) if i != j]
        assert cka["same_layer_mean"][layer] == pytest.approx(np.mean(across), abs=1e-5)


def test_a_last_minibatch_of_fewer_than_four_images_is_left_out_of_cka(place: Path) -> None:
    whole = layer_cka(subject_of(place, 6, 6))
    torch.testing.assert_close(layer_cka(subject_of(place, 9, 6)), whole)
    assert not torch.allclose(layer_cka(subject_of(place, 10, 6)), whole, atol=1e-3), "a rest of four counts"


def test_maps_and_tokens_are_those_of_the_sample(found: Path) -> None:
    attention = numbers(found, "attention")
    assert len(attention["images"]) == len(numbers(found, "tokens")["seed_maps"]) == 2, "--maps"
    captions = {caption for toy in toys(23) for caption in toy.captions}
    assert all(image["text"] in captions for image in attention["images"])
    for image in attention["images"]:
        assert {n: np.shape(heat) for n, heat in image["maps"].items()} == {"2": (2, 2), "3": (3, 3), "6": (6, 6)}
        assert all(np.sum(heat) == pytest.approx(1, abs=1e-5) for heat in image["maps"].values())
    tokens = numbers(found, "tokens")
    np.testing.assert_allclose(np.diag(tokens["same_place"]), 1, atol=1e-5)
    assert tokens["seed"] == {"length": 3, "place": [0.5, 0.5]}
    assert tokens["seed_maps"][0]["3"][1][1] == pytest.approx(1, abs=1e-5)


def test_an_ensemble_is_the_mean_of_its_lengths(found: Path, place: Path) -> None:
    items = [toy for toy in toys(23, BROKEN) if not toy.broken]
    model = loaded(place)
    captions = list(dict.fromkeys(text for toy in items for text in toy.captions))
    positive = np.array([[text in toy.captions for toy in items] for text in captions])
    texts = texts_one_by_one(model, captions)
    rows = {length: encode_one_by_one(model, items, length) for length in LENGTHS}
    retrieval = numbers(found, "ensembles")["tasks"][0]
    assert (retrieval["task"], retrieval["metric"]) == ("zeroshot_retrieval", "image_retrieval_recall@5")
    for length in LENGTHS:  # an ensemble of one
        assert retrieval["singles"][str(length)] == pytest.approx(slow_recall(texts @ rows[length].T, positive, 5), abs=1e-9)
    gflops = numbers(found, "ensembles")["gflops"]
    about = json.loads((found / "analysis.json").read_text())
    assert gflops == {str(length["seqhw"]): length["gflops"] for length in about["lengths"]}
    for ensemble in retrieval["ensembles"]:
        mean = np.mean([rows[length] for length in ensemble["lengths"]], axis=0)
        assert ensemble["embeddings"] == pytest.approx(slow_recall(texts @ unit(mean).T, positive, 5), abs=1e-9)
        assert ensemble["similarities"] == pytest.approx(slow_recall(texts @ mean.T, positive, 5), abs=1e-9)
        assert ensemble["gflops"] == pytest.approx(sum(gflops[str(length)] for length in ensemble["lengths"]))
        assert ensemble["gain"] == pytest.approx(ensemble["embeddings"] - ensemble["single"])
    assert retrieval["mean_gain"] == pytest.approx(np.mean([e["gain"] for e in retrieval["ensembles"]]))
    assert [e["lengths"] for e in retrieval["ensembles"]] == [[2, 3], [2, 6], [3, 6], [2, 3, 6]]


def test_cue_conflicts_are_answered_by_the_nearest_prompt(found: Path, place: Path) -> None:
    model = loaded(place)
    items = toys(12)
    cues = [(CATEGORIES[i % 3], CATEGORIES[(i + 1 + i % 2) % 6]) for i in range(12)]
    kept = [i for i, (shape, texture) in enumerate(cues) if shape != texture]
    classes = sorted({name for i in kept for name in cues[i]})
    prompts = texts_one_by_one(model, [f"a photo of a {name}." for name in classes])
    for length in LENGTHS:
        scores = encode_one_by_one(model, items, length) @ prompts.T
        answers = {i: classes[int(scores[i].argmax())] for i in kept}
        shape, texture = (sum(answers[i] == cues[i][cue] for i in kept) for cue in (0, 1))
        nearer = [scores[i, classes.index(cues[i][0])] > scores[i, classes.index(cues[i][1])] for i in kept]
        bias = numbers(found, "cue-conflict")["lengths"][str(length)]
        assert bias["nearer"] == pytest.approx(np.mean(nearer))
        assert bias["images"] == len(kept)
        assert (bias["shape"], bias["texture"]) == (pytest.approx(shape / len(kept)), pytest.approx(texture / len(kept)))
        assert bias["bias"] == (pytest.approx(shape / (shape + texture)) if shape + texture else None)


def test_tokens_are_averaged_over_images_and_not_over_batches(place: Path) -> None:
    whole, parts = (tokens.analyze(subject_of(place, 9, size)).numbers for size in (9, 4))
    for name in ("same_place", "elsewhere"):
        np.testing.assert_allclose(parts[name], whole[name], rtol=0, atol=2e-6)


def test_ensembles_are_scored_on_all_images_whatever_is_drawn(found: Path, place: Path) -> None:
    options = AnalysisOptions(only=["ensembles"], images=5)
    task = analyze(str(place / "model"), [str(place / "toys.yaml")], place / "few", options)["ensembles"].numbers["tasks"][0]
    assert json.loads((place / "few" / "analysis.json").read_text())["images"] <= 5
    assert task["images"] == 21
    assert task["mean_gain"] == pytest.approx(numbers(found, "ensembles")["tasks"][0]["mean_gain"])


def test_what_is_finished_is_written_before_the_next(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Subject) -> None:
        raise UserError("no tokens today")

    monkeypatch.setitem(ANALYSES, "tokens", fail)
    options = AnalysisOptions(only=["cka", "tokens"])
    with pytest.raises(UserError, match="no tokens today"):
        analyze(str(place / "model"), [str(place / "toys.yaml")], tmp_path, options)
    cka = numbers(tmp_path, "cka")
    assert list(json.loads((tmp_path / "analysis.json").read_text())["analyses"]) == ["cka"]
    assert cka["sentence"] in (tmp_path / "report.html").read_text()


def test_the_prompts_of_the_cues_are_the_folders_templates(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(place / "cues", tmp_path / "cues")
    (tmp_path / "cues" / "zeroshot_classification_templates.txt").write_text("{c}\nthe shape of {c}\n")
    asked, real = [], cue_conflict.class_embeddings

    def recorded(embed: object, prompts: Sequence[Sequence[str]]) -> torch.Tensor:
        asked.extend(prompts)
        return real(embed, prompts)  # type: ignore[arg-type]

    monkeypatch.setattr(cue_conflict, "class_embeddings", recorded)
    subject = subject_of(place, 4, 4)
    subject = replace(subject, options=replace(subject.options, cue_conflict=tmp_path / "cues"))
    classes = cue_conflict.analyze(subject).numbers["classes"]
    assert asked == [[name, f"the shape of {name}"] for name in classes]


def test_a_fixed_model_is_compared_at_other_lengths_by_a_suffix(place: Path, tmp_path: Path) -> None:
    model = toy_model(tmp_path)
    save_model(tmp_path / "fixed", replace(model, config=replace(model.config, patch=replace(model.config.patch, seqhw=(3,)))))
    suite, fixed = str(place / "toys.yaml"), str(tmp_path / "fixed")
    options = AnalysisOptions(only=["tokens"], images=4, maps=1)
    with pytest.raises(UserError, match=r"there is only seqhw=3; .*MODEL\+pi"):
        analyze(fixed, [suite], tmp_path / "out", options)
    analyze(f"{fixed}+pi", [suite], tmp_path / "out", replace(options, seqhw=[2, 3]))
    assert numbers(tmp_path / "out", "tokens")["lengths"] == [2, 3]
    with pytest.raises(UserError, match=r"write theirs\+pi"):
        subject_lengths(Foreign(torch.nn.Linear(1, 1), None, None), "theirs", None)


def test_cue_conflict_runs_where_there_is_a_folder_for_it() -> None:
    assert chosen(AnalysisOptions()) == ["cka", "attention", "tokens", "ensembles"]
    assert chosen(AnalysisOptions(cue_conflict=Path("cues"))) == [*chosen(AnalysisOptions()), "cue-conflict"]
    assert chosen(AnalysisOptions(only=["tokens", "cka"])) == ["cka", "tokens"]


def test_analyze_names_mistakes_in_one_line(place: Path, tmp_path: Path) -> None:
    suite, model = str(place / "toys.yaml"), str(place / "model")
    for only, message in (
        (["ensemble"], r"--only ensemble: did you mean ensembles\? the analyses are cka, attention"),
        (["cue-conflict"], "--only cue-conflict: give --cue-conflict DIR"),
    ):
        with pytest.raises(UserError, match=message):
            chosen(AnalysisOptions(only=only))
    with pytest.raises(UserError, match="only seqhw=3; name more with --seqhw"):
        analyze(model, [suite], tmp_path / "out", AnalysisOptions(seqhw=[3]))
    with pytest.raises(UserError, match="CKA needs minibatches of at least 4 images, not 2"):
        analyze(model, [suite], tmp_path / "out", AnalysisOptions(only=["cka"], batch_size=2))
    textless = replace(loaded(place), tokenizer=AbsentTokenizer(TokenizerConfig(), {}))
    sample = draw_sample(load_datasets([suite]), textless.transform, 4)
    subject = Subject(textless, (2, 3), (), sample, AnalysisOptions(cue_conflict=place / "cues"))
    with pytest.raises(UserError, match="the model is an image tower alone"):
        cue_conflict.analyze(subject)
