"""From the files of evaluations to records and the page: figures that are known beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.paper import records
from scripts.paper.outcomes import LENGTHS, SUITES, Outcomes, at_equal_cost
from scripts.paper.page import write_page
from scripts.paper.studies import STUDIES
from scripts.paper.studies.scale import crossing, on_front
from scripts.paper.study import Evaluation, Measured
from scripts.paper.trainings import FULL, QUICK

MACHINE = {"commit": "abc", "torch": "2", "processor": "a computer"}


def _rows(evaluation: Evaluation, level: float) -> list[dict[str, Any]]:
    """Scores that grow with the length: level + seqhw / 100."""
    sets, metrics = SUITES[evaluation.suite]
    widths = [32, 64, 128, 256] if any("widths" in option for option in evaluation.options) else [None]
    return [
        {
            "dataset": name,
            "seqhw": n,
            "gflops": n * n / 100,
            "images_per_s": 1000 / n,
            "metrics": dict.fromkeys(metrics, level + n / 100),
            **({} if width is None else {"width": width}),
        }
        for name in sets
        for n in evaluation.lengths
        for width in widths
    ]


def _analysis(level: float) -> dict[str, Any]:
    square = [[1.0, level], [level, 1.0]]
    return {
        "cka": {"same_layer_mean": [level, level]},
        "attention": {"correlation": square},
        "tokens": {"same_place": square, "elsewhere": [[0.0, 0.1], [0.1, 0.0]]},
        "ensembles": {"tasks": [{"mean_gain": -0.02}]},
        "cue-conflict": {"lengths": {str(n): {"nearer": 0.5} for n in LENGTHS}},
    }


def write_outcomes(folder: Path, levels: dict[str, float]) -> Outcomes:
    """What the evaluations of every study would leave. levels: of a model, else 0.1."""
    for evaluation in {each for study in STUDIES for each in study.evaluations}:
        place = folder / evaluation.name
        place.mkdir(parents=True)
        level = levels.get(evaluation.model, 0.1)
        if evaluation.command == "analyze":
            (place / "analysis.json").write_text(json.dumps({"analyses": _analysis(level)}))
        else:
            (place / "results.json").write_text(json.dumps(_rows(evaluation, level)))
    return Outcomes(folder)


def test_quality_is_the_mean_over_sets_and_metrics_in_points(tmp_path: Path) -> None:
    place = tmp_path / "eval" / "flexible.retrieval"
    place.mkdir(parents=True)
    rows = _rows(Evaluation("flexible"), 0.0)
    rows[0]["metrics"] = {"image_retrieval_recall@5": 0.5, "text_retrieval_recall@5": 0.7}
    (place / "results.json").write_text(json.dumps(rows))
    seen = Outcomes(tmp_path)
    assert seen.quality("flexible", 3) == pytest.approx(100 * (0.5 + 0.7 + 0.03 + 0.03) / 4)
    assert seen.by_tokens("flexible")[1:] == [(n * n, pytest.approx(n)) for n in LENGTHS[1:]]
    assert [cost for cost, _ in seen.by_cost("flexible")] == [n * n / 100 for n in LENGTHS]


def test_every_study_measures_what_it_claims_and_draws(tmp_path: Path) -> None:
    seen = write_outcomes(tmp_path, {"flexible": 0.2})
    for study in STUDIES:
        measured = study.measure(seen)
        assert {claim.figure for claim in study.claims} <= set(measured.figures), study.name
        assert {plot.key for plot in study.plots} == set(measured.curves), study.name


def test_figures_follow_from_the_rows(tmp_path: Path) -> None:
    seen = write_outcomes(tmp_path, {"flexible": 0.2, "fixed_6+pi": 0.25, "fixed_6+bilinear": 0.05, "distilled": 0.4})
    figures = {key: value for study in STUDIES for key, value in study.measure(seen).figures.items()}
    assert figures["flexible_minus_fixed_at_6"] == pytest.approx(-5)
    assert figures["flexible_minus_fixed_at_3"] == pytest.approx(10)
    assert figures["over_bilinear_at_larger_patches"] == pytest.approx(20)
    assert figures["over_the_best_other_at_larger_patches"] == pytest.approx(15)
    assert figures["over_training"] == pytest.approx(20)
    assert figures["clipa_minus_uniform"] == pytest.approx(-10)
    assert figures["patch_over_stride"] == pytest.approx(10)
    assert figures["96_over_48_at_equal_flops"] == pytest.approx(10)
    assert figures["one_length_over_ensembles"] == pytest.approx(2)
    assert figures["cka_gap"] == pytest.approx(-0.05)


def test_equal_cost_is_read_between_points_and_not_beyond_them() -> None:
    assert at_equal_cost([(2.0, 5.0), (10.0, 9.0)], [(1.0, 1.0), (4.0, 3.0)]) == [(5.0, pytest.approx(2.0))]


def test_a_wider_model_wins_from_a_cost_on() -> None:
    narrow = [(1.0, 10.0), (4.0, 20.0)]
    assert crossing([(2.0, 9.0), (5.0, 21.0), (9.0, 25.0)], narrow) == 5.0
    assert crossing([(2.0, 11.0), (5.0, 21.0)], narrow) == 2.0
    assert crossing([(2.0, 11.0), (5.0, 19.0)], narrow) is None
    assert on_front({"narrow": narrow, "wide": [(3.0, 9.0), (5.0, 21.0)]}) == {"narrow": 2, "wide": 1}


def test_seeds_gather_and_another_budget_drops_them(tmp_path: Path) -> None:
    for seed, value in ((2, 2.0), (1, 1.0), (2, 3.0)):
        records.add(tmp_path, "s", FULL, seed, Measured({"a": value}, {"p": {"x": [(1.0, value)]}}), MACHINE)
    record = records.read(tmp_path, "s")
    assert record is not None
    assert record.figures("a") == [1.0, 3.0]
    assert record.curves("p") == ({"x": [(1.0, 2.0)]}, {"x": [(1.0, 3.0)]})
    records.add(tmp_path, "s", QUICK, 7, Measured({"a": 5.0}, {}), MACHINE)
    record = records.read(tmp_path, "s")
    assert record is not None
    assert list(record.seeds) == ["7"]


def test_the_page_has_every_claim_with_its_verdict_plot_and_command(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        seen = write_outcomes(tmp_path / f"seed-{seed}", {"flexible": 0.2 + 0.001 * seed})
        for study in STUDIES:
            records.add(tmp_path / "paper", study.name, FULL, seed, study.measure(seen), MACHINE)
    page = tmp_path / "docs" / "paper.md"
    write_page(STUDIES, tmp_path / "paper", page)
    text = page.read_text()
    for study in STUDIES:
        assert f"## {study.title}\n" in text
        for claim in study.claims:
            (line,) = [each for each in text.splitlines() if each.startswith(f"| {claim.text} | {claim.section} |")]
            assert f"`scripts/paper.sh {study.name}`" in line
            assert any(words in line for words in ("holds", "does not hold", "within the noise"))
        for plot in study.plots:
            assert (page.parent / "images" / f"paper_{plot.key}.png").stat().st_size > 5_000
    assert "+10.2 ± 0.1 points | > 0 | holds" in text


def test_the_page_in_docs_is_that_of_the_records_in_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Word for word: nobody writes into it by hand. (Pictures are drawn in the test before.)"""
    docs = Path(__file__).parents[2] / "docs" / "explanation"
    drawn: list[str] = []
    monkeypatch.setattr("scripts.paper.page.draw_lines", lambda series, axes, path, ranges: drawn.append(path.name))
    write_page(STUDIES, docs / "paper", tmp_path / "paper.md")
    assert (tmp_path / "paper.md").read_text() == (docs / "paper.md").read_text()
    assert drawn
    assert set(drawn) == {path.name for path in (docs / "images").glob("paper_*.png")}
