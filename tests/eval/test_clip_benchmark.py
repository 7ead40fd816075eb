"""The same open_clip model on the same shards, scored by CLIP_benchmark's loaders and functions and by the harness: equal.

CLIP_benchmark averages recalls in float32, so those are compared after rounding ours to float32; accuracies as they are.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import webdataset
from clip_benchmark.datasets.builder import build_wds_dataset, image_captions_collate_fn
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from flexiclip_eval import EvalOptions, evaluate_suites
from kit.evaluation import Foreign, toy_model
from open_clip.transform import image_transform
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

from flexiclip.model_folder import LoadedModel

CLASSES = ["cat", "dog", "red car", "tree", "house", "cloud", "stone"]
TEMPLATES = ["a photo of a {c}.", "a drawing of {c}", "{c}"]
BATCH = 8


class _OneLength(open_clip.CLIP):
    def encode_image(self, images: torch.Tensor, seqhw: None = None, normalize: bool = False) -> torch.Tensor:
        return super().encode_image(images, normalize)


def classification_by_clip_benchmark(model: Any, loader: Any, tokenizer: Any) -> dict[str, float]:
    """What its zeroshot_classification.evaluate does on a CPU, by its own classifier, loop and loader.

    Its `accuracy` alone is written again: CLIP_benchmark 1.6 calls float() there on an array of one element, which NumPy refuses
    since 2.4 (docs/guides/evaluation.md).
    """
    classifier = zeroshot_classification.zero_shot_classifier(model, tokenizer, CLASSES, TEMPLATES, "cpu", amp=False)
    logits, target = zeroshot_classification.run_classification(model, classifier, loader, "cpu", amp=False)
    order = logits.topk(5, 1, True, True).indices
    first, five = ((order[:, :k] == target[:, None]).any(1).sum().item() / len(target) for k in (1, 5))
    return {"acc1": first, "acc5": five, "mean_per_class_recall": balanced_accuracy_score(target, logits.argmax(axis=1))}


@pytest.fixture(scope="module")
def foreign() -> Foreign:
    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(layers=2, width=64, head_width=32, patch_size=8, image_size=32)
    model = _OneLength(24, vision, open_clip.CLIPTextCfg(layers=2, width=48, heads=3, context_length=16))
    return Foreign(model.eval(), image_transform(32, is_train=False), open_clip.SimpleTokenizer(context_length=16))


def _write(root: Path, count: int, sizes: tuple[int, ...], member: str, *, shared_captions: bool = True) -> Path:
    """CLIP_benchmark's layout. Captions: one to three an image, with `shared_captions` some equal to those of other images.

    Equal captions tie, and ties are ordered by the last bit of a product: where two harnesses batch alike, as ours and theirs do
    with one model object, but not from one processor to the next where a model is run through two code paths.
    """
    (root / "test").mkdir(parents=True)
    (root / "test" / "nshards.txt").write_text(str(len(sizes)))
    rng, number = np.random.default_rng(5), 0
    for shard, size in enumerate(sizes):
        with webdataset.TarWriter(str(root / "test" / f"{shard}.tar")) as tar:
            for _ in range(size):
                image = Image.fromarray(rng.integers(0, 256, (34 + number % 3, 40, 3), dtype=np.uint8))
                captions = [f"thing {number}", f"a {CLASSES[number % 7]}", f"number {number % 5}"]
                if not shared_captions:
                    captions = [f"{CLASSES[number % 7]} {CLASSES[number // 7]} {noun}" for noun in CLASSES[:3]]
                captions = captions[: 1 + number % 3]
                value = "\n".join(captions) if member == "txt" else str((number * number + 1) % 7)
                tar.write({"__key__": f"s{number:04d}", "png": image, member: value})
                number += 1
    assert number == count
    (root / "classnames.txt").write_text("\n".join(CLASSES))
    (root / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES))
    if member == "txt":
        (root / "dataset_type.txt").write_text("retrieval")
    return root


def _suite(folder: Path, root: Path) -> str:
    """Only the root: the task, classes and templates come from its files."""
    (folder / "suite.yaml").write_text(json.dumps({"datasets": [{"name": "wds/toys", "root": str(root)}]}))
    return str(folder / "suite.yaml")


def _loader(root: Path, foreign: Any, retrieval: bool) -> Any:
    dataset = build_wds_dataset("toys", foreign.transform, split="test", data_dir=str(root))
    batched = dataset.batched(BATCH, collation_fn=image_captions_collate_fn) if retrieval else dataset.batched(BATCH)
    loader = webdataset.WebLoader(batched, batch_size=None)
    loader.dataset = dataset
    return loader


def test_retrieval_equals_clip_benchmark(foreign: Foreign, tmp_path: Path) -> None:
    root = _write(tmp_path / "toys", 53, (17, 1, 35), "txt")
    suite = _suite(tmp_path, root)
    (row,) = evaluate_suites([("open_clip:Tiny", foreign)], [suite], options=EvalOptions(batch_size=BATCH))
    theirs = zeroshot_retrieval.evaluate(
        foreign.model, _loader(root, foreign, True), foreign.tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10]
    )
    assert len(theirs) == 6
    assert {name: float(np.float32(row.metrics[name])) for name in theirs} == theirs


def test_classification_equals_clip_benchmark(foreign: Foreign, tmp_path: Path) -> None:
    root = _write(tmp_path / "toys", 53, (17, 1, 35), "cls")
    suite = _suite(tmp_path, root)
    (row,) = evaluate_suites([("open_clip:Tiny", foreign)], [suite], options=EvalOptions(batch_size=BATCH))
    loader = _loader(root, foreign, False)
    theirs = classification_by_clip_benchmark(foreign.model, loader, foreign.tokenizer)
    assert row.metrics == theirs


def test_our_model_and_tokenizer_go_into_clip_benchmark_as_they_are(tmp_path: Path) -> None:
    loaded = toy_model(tmp_path)
    default = _default_length(loaded)

    labelled = _write(tmp_path / "labelled", 23, (23,), "cls")
    rows = evaluate_suites([("toy", loaded)], [_suite(tmp_path, labelled)], options=EvalOptions(batch_size=BATCH))
    loader = _loader(labelled, loaded, False)
    theirs = classification_by_clip_benchmark(loaded.model, loader, loaded.tokenizer)
    assert next(row.metrics for row in rows if row.seqhw == default) == pytest.approx(theirs, abs=1e-9)

    captioned = _write(tmp_path / "captioned", 23, (23,), "txt", shared_captions=False)
    rows = evaluate_suites([("toy", loaded)], [_suite(tmp_path, captioned)], options=EvalOptions(batch_size=BATCH))
    loader = _loader(captioned, loaded, True)
    theirs = zeroshot_retrieval.evaluate(loaded.model, loader, loaded.tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])
    ours = next(row.metrics for row in rows if row.seqhw == default)
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, abs=1e-6)


def _default_length(loaded: LoadedModel) -> int:
    """The length of a caller who names none."""
    images = torch.randn(1, 3, 24, 24)
    with torch.no_grad():
        plain = loaded.model.encode_image(images)
        (default,) = [s for s in loaded.config.patch.seqhw if torch.equal(plain, loaded.model.encode_image(images, seqhw=s))]
    return default


def test_clip_benchmark_build_reads_our_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import csv
    import sys

    from clip_benchmark.cli import main

    loaded = toy_model(tmp_path)
    suite = _suite(tmp_path, _write(tmp_path / "toys", 23, (23,), "txt"))
    rows = evaluate_suites([("toy", loaded)], [suite], output=tmp_path / "out", options=EvalOptions(batch_size=BATCH))
    table = tmp_path / "benchmark.csv"
    monkeypatch.setattr(sys, "argv", ["clip_benchmark", "build", os.fspath(tmp_path / "out" / "rows"), "--output", str(table)])
    main()
    with table.open(newline="") as file:
        built = {int(line["seqhw"]): line for line in csv.DictReader(file)}
    assert {row.seqhw for row in rows} == set(built)
    for row in rows:
        assert row.seqhw is not None
        line = built[row.seqhw]
        assert (line["dataset"], line["task"], line["model_fullname"]) == ("wds/toys", row.task, f"{row.model} toy")
        assert float(line["image_retrieval_recall@5"]) == row.metrics["image_retrieval_recall@5"]
        assert float(line["gflops"]) == row.gflops
