"""A report of two models and two tasks with all that a page shows: the images lie in real shards, the numbers are made up."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

from flexiclip_eval import DatasetConfig, Row, TaskConfig
from flexiclip_eval.data.images import Record
from flexiclip_eval.report.page_data import Gallery
from flexiclip_eval.report.table import ModelInfo, Report
from flexiclip_eval.rows import TaskInfo, binomial_error
from flexiclip_eval.tradeoffs import CascadeCurve, CascadePoint, choose, parse_budget

from kit.evaluation import CATEGORIES, toys, write_shards

HOSTILE = "</script><script>document.title='broken'</script><img src=http://127.0.0.1:9/x onerror=alert(1)>"
"""As a caption, a class, a key and a model's folder."""

R5, RANK = "image_retrieval_recall@5", "image_retrieval_median_rank"

RECALLS = tuple(f"{side}_retrieval_recall@{k}" for side in ("image", "text") for k in (1, 5, 10))
LENGTHS = (3, 4, 5, 6, 10, 12, 15)
CLASSES = (*CATEGORIES, HOSTILE)


def recalls(model: int, seqhw: int) -> dict[str, float]:
    """A flexible model climbs slowly; one trained at 6 has a peak there."""
    level = (0.16 + 0.05 * math.log2(seqhw)) if model == 0 else 0.36 * math.exp(-((math.log2(seqhw / 6) * 1.3) ** 2))
    return {name: round(level * {"1": 0.4, "5": 1.0, "10": 1.5}[name.split("@")[1]], 4) for name in RECALLS}


def full_report(folder: Path) -> tuple[Report, Gallery]:
    """The report, and the gallery of its 23 images."""
    models = [
        ModelInfo("FlexiViT-128x4", "runs/flexible", {"run_dir": "runs/flexible"}, LENGTHS),
        ModelInfo("FlexiViT-128x4", f"runs/fixed{HOSTILE}", {"run_dir": "runs/fixed"}, (6,)),
    ]
    tasks = [
        TaskInfo("toys", "zeroshot_retrieval", dict.fromkeys(RECALLS, 0.02), captions=240),
        TaskInfo("toys", "zeroshot_classification", {"acc1": 1 / 7, "mean_per_class_recall": 1 / 7}, CLASSES, 0.3),
    ]
    bad = [{"dataset": "toys", "shard": "part-0.tar", "key": HOSTILE, "reason": "cut short"}]
    report = Report("flexiclip eval runs/flexible runs/fixed --suite toys", models=models, tasks=tasks, bad_samples=bad)
    for (number, model), task, seqhw in itertools.product(enumerate(models), tasks, LENGTHS):
        retrieval = task is tasks[0]
        hits = recalls(number, seqhw)
        metrics = hits if retrieval else {"acc1": hits[RECALLS[1]] + 0.2, "mean_per_class_recall": hits[RECALLS[1]] + 0.1}
        cost = seqhw**2 / 500 + seqhw**4 / 1e6
        row = Row(
            "toys",
            model.model,
            model.pretrained,
            task.task,
            metrics,
            "en",
            249,
            seqhw,
            seqhw**2,
            60 // seqhw,
            60,
            cost,
            9000 / seqhw,
        )
        row = replace(row, standard_errors={name: binomial_error(value, row.n) for name, value in metrics.items()})
        per_class = {name: min(1.0, (i + 1) / 8 + seqhw / 100 + number / 50) for i, name in enumerate(CLASSES)}
        report.add(row, task, {"found": _found(seqhw)} if retrieval else {"per_class": per_class, **_mistakes()})
    report.choices = choose(report.rows, budget=parse_budget("0.1 GFLOPs"))
    report.cascades = [_cascade(number, model) for number, model in enumerate(models)]
    gallery = Gallery()
    shards = write_shards(folder, toys(23), (9, 1, 13))
    config = DatasetConfig("toys", shards, (TaskConfig("retrieval"),), captions=("json:captions",))
    gallery.add(["toys"], config, [Record(str(i), (), {}, i) for i in range(23)])
    return report, gallery


def _mistakes() -> dict[str, object]:
    """Confusions between classes whose numbers differ by an even number, and twelve wrong images."""
    classes = range(len(CLASSES))
    pairs = [(i, j, 20 if i == j else 3 + i * j % 7) for i in classes for j in classes if (i + j) % 2 == 0]
    wrong = [{"image": i, "label": i % 7, "named": (i + 1) % 7, "rank": 2 + i % 3} for i in range(12)]
    return {"confusion": pairs, "mistakes": wrong}


def _found(seqhw: int) -> list[dict[str, object]]:
    """Captions 0, 2 and 4 found their image, the others did not."""
    found = []
    for i in range(6):
        ranked = [(i * 3 + j * seqhw) % 23 for j in range(5)]
        positives = [ranked[0]] if i % 2 == 0 else [22 - i] if 22 - i not in ranked else [max(set(range(23)) - set(ranked))]
        caption = HOSTILE if i == 1 else f"thing number {i} at {seqhw}"
        found.append({"caption": caption, "positives": positives, "ranked": ranked, "rank": 1 if i % 2 == 0 else 7 + i})
    return found


def _cascade(number: int, model: ModelInfo) -> CascadeCurve:
    points = []
    for k in (0, 5, 10, 20, 50, 249):
        share = min(1.0, k / 100)
        metrics = {
            name: (1 - share) * recalls(number, 3)[name] + share * recalls(number, 15)[name]
            for name in RECALLS
            if "image_" in name
        }
        gflops = 0.45 if k == 249 else 0.018 + share * 0.45
        points.append(CascadePoint(k, metrics, share, gflops, k * 0.45))
    return CascadeCurve("toys", "zeroshot_retrieval", model.model, model.pretrained, 3, 15, tuple(points))


def small_row(task: str, metrics: dict[str, float], seqhw: int) -> Row:
    """A row of a model of 60 px."""
    return Row("emoji", "FlexiViT-<b>", "runs/x", task, metrics, "en", 249, seqhw, seqhw**2, 60 // seqhw, 60, 0.5, 1234.5)


def small_report(peak: float = 0.4, trained: tuple[int, ...] = (3, 6, 15), lengths: tuple[int, ...] = (3, 6, 15)) -> Report:
    """A report of one model and one data set, made up: `peak` is the recall at length 1."""
    rows = [small_row("zeroshot_retrieval", dict.fromkeys(RECALLS, peak / s), s) for s in lengths]
    rows += [small_row("zeroshot_classification", {"acc1": 0.5, "mean_per_class_recall": 0.25}, s) for s in lengths]
    tasks = [
        TaskInfo("emoji", "zeroshot_retrieval", dict.fromkeys(RECALLS, 0.02), captions=240),
        TaskInfo("emoji", "zeroshot_classification", {"acc1": 0.1, "mean_per_class_recall": 0.1}, ("a", "b & c"), 0.3),
    ]
    bad = [{"dataset": "emoji", "shard": "part-0.tar", "key": "0007<script><!-- config -->", "reason": "cut short"}]
    model = ModelInfo("FlexiViT-<b>", "runs/x", {"run_dir": "runs/x"}, trained)
    return Report("flexiclip eval runs/x --suite emoji", rows, [model], tasks, bad, [{} for _ in rows])


def row(model: str, task: str, metrics: dict[str, float], seqhw: int, **more: object) -> Row:
    """A row of 50 images of 60 pixels; `more`: other values of its fields."""
    numbers = {"gflops": seqhw / 8, "images_per_s": 1000.0 / seqhw}
    return Row("set", "vit", model, task, metrics, "en", 50, seqhw, seqhw**2, 60 // seqhw, 60, **{**numbers, **more})  # type: ignore[arg-type]


def unique_report() -> Report:
    """Two models at two lengths on two tasks, where every number is its own."""
    models = [ModelInfo("vit", "a", {}, (3, 6)), ModelInfo("vit", "b", {}, (6,))]
    tasks = [
        TaskInfo("set", "zeroshot_retrieval", {R5: 0.1, RANK: 25.5}, captions=60),
        TaskInfo("set", "zeroshot_classification", {"acc1": 0.5}, ("x", "y", "z"), 0.4),
    ]
    found = Report("flexiclip eval a b", models=models, tasks=[])
    for m, model in enumerate("ab"):
        for seqhw in (3, 6):
            unique = m * 10 + seqhw
            metrics = {R5: unique / 100, RANK: float(unique)}
            examples = [{"caption": f"c{unique}", "positives": [unique], "ranked": [1], "rank": unique}]
            found.add(row(model, "zeroshot_retrieval", metrics, seqhw), tasks[0], {"found": examples})
            recall = {"x": unique / 50, "z": 0.123456}
            found.add(row(model, "zeroshot_classification", {"acc1": unique / 40}, seqhw), tasks[1], {"per_class": recall})
    found.choices = choose(found.rows, budget=parse_budget("0.5 GFLOPs"))
    points = (CascadePoint(0, {R5: 0.03}, 0.0, 0.375, 0.0), CascadePoint(5, {R5: 0.04}, 0.5, 0.75, 3.75))
    found.cascades = [CascadeCurve("set", "zeroshot_retrieval", "vit", "b", 3, 6, points)]
    return found
