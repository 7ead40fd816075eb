"""Whole evaluations: shards in, rows out, equal to the same numbers worked out sample by sample."""

from __future__ import annotations

import json
import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flexiclip_eval import EvalOptions, evaluate_suites, make_evaluators
from kit.evaluation import (
    CATEGORIES,
    Toy,
    encode_one_by_one,
    slow_median_rank,
    slow_recall,
    texts_one_by_one,
    toy_model,
    toys,
    unit,
    write_shards,
    write_suite,
)

from flexiclip.data.samples import Sample, SampleStore
from flexiclip.errors import UserError
from flexiclip.model_folder import LoadedModel

BROKEN = (2, 20)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return toy_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def suite(tmp_path: Path) -> str:
    return write_suite(tmp_path / "toys.yaml", write_shards(tmp_path / "data", toys(23, BROKEN), (9, 1, 13)))


def _good() -> list[Toy]:
    return [toy for toy in toys(23, BROKEN) if not toy.broken]


def _expected_retrieval(loaded: LoadedModel, seqhw: int) -> dict[str, float]:
    items = _good()
    captions = list(dict.fromkeys(text for toy in items for text in toy.captions))
    positive = np.array([[text in toy.captions for toy in items] for text in captions])
    scores = texts_one_by_one(loaded, captions) @ encode_one_by_one(loaded, items, seqhw).T
    return {
        **{f"image_retrieval_recall@{k}": slow_recall(scores, positive, k) for k in (1, 5, 10)},
        **{f"text_retrieval_recall@{k}": slow_recall(scores.T, positive.T, k) for k in (1, 5, 10)},
        "image_retrieval_median_rank": slow_median_rank(scores, positive),
        "text_retrieval_median_rank": slow_median_rank(scores.T, positive.T),
    }


def _expected_classification(loaded: LoadedModel, seqhw: int) -> dict[str, float]:
    items = _good()
    classes = sorted({toy.category for toy in items})
    rows = [unit(texts_one_by_one(loaded, [f"a photo of {c}", c]).mean(0, keepdims=True))[0] for c in classes]
    order = np.argsort(-(encode_one_by_one(loaded, items, seqhw) @ np.stack(rows).T), axis=1)
    label = np.array([classes.index(toy.category) for toy in items])
    right = order[:, 0] == label
    expected = {"acc1": right.mean(), "mean_per_class_recall": np.mean([right[label == c].mean() for c in set(label)])}
    return expected | ({"acc5": (order[:, :5] == label[:, None]).any(1).mean()} if len(classes) >= 5 else {})


def test_rows_equal_the_same_metrics_sample_by_sample(loaded: LoadedModel, suite: str) -> None:
    rows = evaluate_suites([("runs/toy", loaded)], [suite], options=EvalOptions(batch_size=4))
    assert [(row.task, row.seqhw) for row in rows] == [
        (task, seqhw) for task in ("zeroshot_retrieval", "zeroshot_classification") for seqhw in (2, 3, 6)
    ]
    for row in rows:
        expected = _expected_retrieval if row.task == "zeroshot_retrieval" else _expected_classification
        assert row.metrics == pytest.approx(expected(loaded, row.seqhw or 0), abs=1e-9)
        assert (row.dataset, row.model, row.pretrained, row.language, row.n) == ("toys", "FlexiViT-16x1", "runs/toy", "en", 21)
        assert (row.seq_len, row.patch_size, row.image_size) == ((row.seqhw or 0) ** 2, 24 // (row.seqhw or 1), 24)
        assert row.images_per_s is not None
        assert row.images_per_s > 0
    costs = [row.gflops or 0 for row in rows[:3]]
    assert 0 < costs[0] < costs[1] < costs[2]


def test_broken_images_are_named_and_not_counted(
    loaded: LoadedModel, suite: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "flexiclip.eval"):
        rows = evaluate_suites([("toy", loaded)], [suite], seqhw=[3], output=tmp_path / "out")
    assert {row.n for row in rows} == {21}
    named = [record.message for record in caplog.records if "bad sample" in record.message]
    assert len(named) == 2
    assert "0002" in named[0]
    assert "part-2.tar" in named[1]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "0002" in page
    assert "0020" in page


def test_the_loop_evaluator_reads_the_data_once_and_leaves_the_model_alone(loaded: LoadedModel, suite: str) -> None:
    rows = evaluate_suites([("toy", loaded)], [suite])
    evaluate = make_evaluators([suite], batch_size=5)
    loaded.model.train()
    loaded.model.text_tower.eval()  # as a locked tower would be
    state = torch.random.get_rng_state()
    first = evaluate(loaded)
    assert loaded.model.training
    assert loaded.model.image_tower.training
    assert not loaded.model.text_tower.training
    assert torch.equal(torch.random.get_rng_state(), state)
    names = {
        f"toys/{row.task.removeprefix('zeroshot_')}/{name}/seqhw={row.seqhw}": value
        for row in rows
        for name, value in row.metrics.items()
    }
    assert first == pytest.approx(names, abs=1e-9)
    shutil.rmtree(Path(suite).parent / "data")
    assert evaluate(loaded) == first
    loaded.model.eval()


@dataclass
class Foreign:
    """A model of another library: float images, one length, no config."""

    model: torch.nn.Module
    transform: Any
    tokenizer: Any
    config: None = None


def test_a_foreign_model_is_scored_at_its_one_length(suite: str, tmp_path: Path) -> None:
    import open_clip
    from open_clip.transform import image_transform

    class OneLength(open_clip.CLIP):
        def encode_image(self, images: torch.Tensor, seqhw: None = None, normalize: bool = False) -> torch.Tensor:
            assert seqhw is None
            return super().encode_image(images, normalize)

    tower = {"layers": 1, "width": 32, "heads": 2}
    torch.manual_seed(0)
    model = OneLength(
        16,
        open_clip.CLIPVisionCfg(layers=1, width=64, head_width=32, patch_size=8, image_size=24),
        open_clip.CLIPTextCfg(**tower, context_length=16),
    )
    foreign = Foreign(model.eval(), image_transform(24, is_train=False), open_clip.SimpleTokenizer(context_length=16))
    rows = evaluate_suites(
        [("open_clip:Tiny/none", foreign)], [suite], output=tmp_path / "out", options=EvalOptions(batch_size=6)
    )
    row = rows[0]
    assert (row.model, row.pretrained, row.seqhw, row.patch_size, row.gflops, row.n) == ("Tiny", "none", None, None, None, 21)
    items = _good()
    captions = list(dict.fromkeys(text for toy in items for text in toy.captions))
    with torch.no_grad():
        image_z = unit(torch.cat([model.encode_image(foreign.transform(toy.image)[None]) for toy in items]).numpy())
        text_z = unit(model.encode_text(foreign.tokenizer(captions)).numpy())
    positive = np.array([[text in toy.captions for toy in items] for text in captions])
    assert row.metrics["image_retrieval_recall@5"] == pytest.approx(slow_recall(text_z @ image_z.T, positive, 5), abs=1e-9)
    with pytest.raises(UserError, match="one fixed length"):
        evaluate_suites([("open_clip:Tiny", foreign)], [suite], seqhw=[3])


def test_speed_leaves_out_warm_up_and_decoding(loaded: LoadedModel, suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, encode, read = iter([0.6] + [0.02] * 99), loaded.model.encode_image, SampleStore.read

    def slow(images: torch.Tensor, seqhw: int) -> torch.Tensor:
        time.sleep(next(calls))
        return encode(images, seqhw)

    def slow_read(self: SampleStore, shard: int, sample: int, min_side: int | None = None) -> Sample:
        time.sleep(0.03)
        return read(self, shard, sample, min_side)

    monkeypatch.setattr(loaded.model, "encode_image", slow)
    monkeypatch.setattr(SampleStore, "read", slow_read)
    row = evaluate_suites([("toy", loaded)], [suite], seqhw=[3], options=EvalOptions(batch_size=5))[0]
    assert row.images_per_s is not None
    assert row.images_per_s <= 5 / 0.02  # at most 5 images in at least 20 ms
    assert row.images_per_s > 23 / (0.6 + 4 * 0.02)  # the whole time, first batch included, without even decoding


def test_classes_by_number_need_no_captions(loaded: LoadedModel, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "data", toys(12), (12,))
    by_name = evaluate_suites([("toy", loaded)], [write_suite(tmp_path / "a.yaml", shards, classes=CATEGORIES)], seqhw=[3])[1]
    file = tmp_path / "b.yaml"
    file.write_text(
        f"datasets: [{{name: b, shards: '{shards}', tasks: [{{kind: classification, label: cls, "
        f"templates: ['a photo of {{c}}', '{{c}}'], classes: [{', '.join(CATEGORIES)}]}}]}}]"
    )
    by_number = evaluate_suites([("toy", loaded)], [str(file)], seqhw=[3])[0]
    assert by_number.metrics == by_name.metrics
    assert by_number.n == 12


def test_mistakes_are_said_in_one_line(loaded: LoadedModel, suite: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"seqhw \[5, 7\] does not divide .*valid: \[1, 2, 3, 4, 6, 8, 12, 24\]"):
        evaluate_suites([("toy", loaded)], [suite], seqhw=[5, 6, 7])
    with pytest.raises(UserError, match="no suite"):
        make_evaluators([])
    all_broken = write_suite(tmp_path / "c.yaml", write_shards(tmp_path / "c", toys(3, (0, 1, 2)), (3,)))
    with pytest.raises(UserError, match="none of its 3 samples can be read"):
        evaluate_suites([("toy", loaded)], [all_broken], seqhw=[3])
    missing = write_suite(tmp_path / "d.yaml", str(tmp_path / "nowhere-{0..1}.tar"))
    with pytest.raises(UserError, match=r"nowhere-0\.tar"):
        evaluate_suites([("toy", loaded)], [missing], seqhw=[3])


def test_the_openmoji_suite_fits_what_the_builder_writes(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flexiclip.datasets.vendors import build_openmoji

    build, _ = build_openmoji(tmp_path / "openmoji", pixels=24, heldout=40, limit=300)
    monkeypatch.setenv("FLEXICLIP_DATA", str(tmp_path))
    retrieval, classification = evaluate_suites([("toy", loaded)], ["openmoji"], seqhw=[3], output=tmp_path / "out")
    assert retrieval.n == classification.n == build.heldout > 20
    about = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(build.heldout_categories) <= set(about["tasks"][1]["classes"])
    assert about["tasks"][1]["largest_class"] == pytest.approx(max(build.heldout_categories.values()) / build.heldout)
    assert about["bad_samples"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["noto", "fluent"])
def test_the_suites_of_other_styles_fit_what_the_builders_write(
    name: str, loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flexiclip.datasets.vendors import FLUENT, NOTO, build_vendor

    vendor = {"noto": NOTO, "fluent": FLUENT["3d"]}[name]
    build, _ = build_vendor(tmp_path / name, vendor, pixels=24, heldout=40, limit=300)
    monkeypatch.setenv("FLEXICLIP_DATA", str(tmp_path))
    rows = evaluate_suites([("toy", loaded)], [name], seqhw=[3])
    assert [row.dataset for row in rows] == [name, name, f"{name}-seen", f"{name}-seen"]
    assert rows[0].n == rows[1].n == build.heldout > 20
    assert 150 < rows[2].n == rows[3].n <= build.train_concepts


def test_models_have_the_names_that_the_user_gives(
    loaded: LoadedModel, suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In tables, in rows as a key of their own, and on the page; `model` and `pretrained` stay what they are."""
    models = [("mine=runs/toy", loaded), ("runs/other", loaded)]
    evaluate_suites(
        models, [suite], seqhw=[3], output=tmp_path / "out", options=EvalOptions(tables=("markdown", f"{tmp_path}/t.tex"))
    )
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(row["model"], row["pretrained"], row.get("label")) for row in rows[::2]] == [
        ("FlexiViT-16x1", "runs/toy", "mine"),
        ("FlexiViT-16x1", "runs/other", None),
    ]
    assert "label" not in rows[2]
    shown = capsys.readouterr().out.splitlines()
    named = [[line for line in shown if line.startswith(name)] for name in ("mine ", "FlexiViT-16x1 runs/other ")]
    assert len(named[0]) == len(named[1]) > 2, "a line in each part of both tables"
    assert shown[-4:] == [
        f"tables: {tmp_path}/out/results.md",
        f"tables: {tmp_path}/t.tex",
        f"rows: {tmp_path}/out/results.csv, {tmp_path}/out/results.json",
        f"report: {tmp_path}/out/report.html",
    ]
    assert "| mine " in (tmp_path / "out" / "results.md").read_text()
    assert "mine & 3 & 9 & 8 &" in (tmp_path / "t.tex").read_text()
    assert "<b>mine</b>" in (tmp_path / "out" / "report.html").read_text()
    flat = json.loads(next((tmp_path / "out" / "rows").glob("*retrieval*mine*")).read_text())
    assert flat.keys().isdisjoint({"label", "standard_errors"}), "the files for clip_benchmark have the keys that it has"
    with pytest.raises(UserError, match="two models have the label a"):
        evaluate_suites([("a=x", loaded), ("a=y", loaded)], [suite])
    evaluate_suites([("toy", loaded)], [suite], seqhw=[3])
    assert capsys.readouterr().out.splitlines()[-1].startswith("No results were kept: --output DIR keeps them")


@pytest.mark.parametrize(
    ("table", "message"),
    [("x.html", "give markdown, latex, or a file"), ("latex", "give a file such as results.tex, or --output")],
)
def test_a_table_of_no_kind_is_said_before_any_work(table: str, message: str, loaded: LoadedModel, suite: str) -> None:
    with pytest.raises(UserError, match=f"--table {table}: {message}"):
        evaluate_suites(["missing"], [suite], options=EvalOptions(tables=(table,)))


def test_standard_errors_are_stored_next_to_the_metrics(loaded: LoadedModel, suite: str, tmp_path: Path) -> None:
    """Of shares sqrt(p (1 - p) / n), with n queries; the keys and numbers that were there before stay."""
    rows = evaluate_suites([("toy", loaded)], [suite], seqhw=[3], output=tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    captions = len(dict.fromkeys(text for toy in _good() for text in toy.captions))
    for row, data in zip(rows, stored, strict=True):
        assert list(data)[:5] == ["dataset", "model", "pretrained", "task", "metrics"]
        assert list(data)[-1] == "standard_errors"
        assert data["metrics"] == row.metrics
        assert data["standard_errors"] == row.standard_errors
        assert row.standard_errors is not None
        for name, error in row.standard_errors.items():
            if name.endswith("_rank") or name == "mean_per_class_recall":
                assert error > 0
                continue
            n = captions if name.startswith("image_") else 21
            assert error == pytest.approx(np.sqrt(row.metrics[name] * (1 - row.metrics[name]) / n))
    header = (tmp_path / "out" / "results.csv").read_text().partition("\n")[0].split(",")
    assert header.index("acc1") < header.index("image_retrieval_recall@1_standard_error")
    assert "standard_errors" not in header


def test_captions_show_their_progress(
    loaded: LoadedModel, suite: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flexiclip import progress

    monkeypatch.setattr(progress, "EVERY", 0.0)
    evaluate_suites([("runs/toy", loaded)], [suite], seqhw=[3], options=EvalOptions(batch_size=10))
    lines = capsys.readouterr().err
    captions = len(dict.fromkeys(text for toy in _good() for text in toy.captions))
    assert f"runs/toy · toys: 10 of {captions} texts, " in lines
    assert " texts/s, " in lines
    assert "of 23 images, " in lines


def test_an_output_that_cannot_be_is_said_before_any_work(loaded: LoadedModel, suite: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--output .*file: cannot write there"):
        evaluate_suites(["missing"], [suite], output=tmp_path / "file")
