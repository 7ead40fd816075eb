"""Metrics on a few embeddings whose values are worked out by hand, ties above all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from eval_tools import unit
from flexiclip_eval import DatasetConfig, TaskConfig
from flexiclip_eval.data.images import Record
from flexiclip_eval.embeddings.embed import _speed, _total, class_embeddings, unit_rows
from flexiclip_eval.tasks import TASKS
from flexiclip_eval.tasks.base import Context, Prepared
from flexiclip_eval.tasks.choice import choice_metrics, find_instances
from flexiclip_eval.tasks.classification import accuracies, class_hits, classify, head_rows, largest_class
from flexiclip_eval.tasks.linear_probe import probe
from flexiclip_eval.tasks.retrieval import merged_pairs, plain_pairs, retrieval_metrics
from flexiclip_eval.tasks.search import mean_rank
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from flexiclip.errors import UserError

NO_IMAGES = torch.empty(0, 4)


def prepared(kind: str, records: list[Record], vectors: dict[str, list[float]], **task: object) -> Prepared:
    """A task on these records, whose texts have these embeddings."""
    config = TaskConfig(kind, **task)  # type: ignore[arg-type]
    dataset = DatasetConfig("hand", "a.tar", (config,))

    def embed(texts: object) -> torch.Tensor:
        return unit_rows(torch.tensor([vectors[text] for text in texts]))  # type: ignore[attr-defined]

    return TASKS[kind](Context(dataset, config, records, 0, embed))


def clip_benchmark(scores: torch.Tensor, label: torch.Tensor) -> dict[str, float]:
    """What its zeroshot_classification.evaluate makes of logits: topk of the largest k, and the recalls of argmax."""
    classes = scores.shape[1]
    order = scores.topk(5 if classes >= 5 else 1, 1, True, True).indices
    found = {"acc1": (order[:, 0] == label).double().mean().item()}
    found |= {"acc5": (order == label[:, None]).any(1).double().mean().item()} if classes >= 5 else {}
    return found | {"mean_per_class_recall": balanced_accuracy_score(label, scores.argmax(1))}


@pytest.mark.parametrize("classes", [3, 5, 9, 40])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_classify_breaks_ties_as_clip_benchmark_does(classes: int, levels: int) -> None:
    """Scores of one, two or three values: nearly every label is tied with other classes, with one alone too."""
    rng = np.random.default_rng(classes * 10 + levels)
    class_z = torch.eye(classes)
    image_z = torch.from_numpy(rng.integers(0, levels, (200, classes)).astype(np.float32))
    label = torch.from_numpy(rng.integers(0, classes, 200))
    expected = clip_benchmark((100.0 * image_z) @ class_z.T, label)
    names = list(map(str, range(classes)))
    assert classify(image_z, class_z, label, names, "topk").metrics == pytest.approx(expected, abs=1e-12)
    chance = classify(image_z, class_z, label, names).metrics
    best = image_z.max(1).values
    mine = image_z[torch.arange(200), label]
    tied = (image_z == best[:, None]).sum(1)
    worth = torch.where(mine == best, 1 / tied.double(), torch.zeros(200, dtype=torch.float64))
    assert chance["acc1"] == pytest.approx(worth.mean().item())
    per_class = [worth[label == c].mean().item() for c in label.unique()]
    assert chance["mean_per_class_recall"] == pytest.approx(np.mean(per_class))


def test_class_hits_of_two_tied_classes() -> None:
    """The label shares the first place with one other class: worth a half, or what torch.topk says."""
    scores = torch.tensor([[0.0, 7, 7, 1, 2, 3], [0.0, 7, 7, 1, 2, 3], [9.0, 7, 7, 8, 8, 8], [9.0, 7, 7, 8, 8, 8]])
    label = torch.tensor([1, 2, 1, 2])
    assert class_hits(scores, label, "chance")[:, :2].tolist() == [[0.5, 1], [0.5, 1], [0, 0.5], [0, 0.5]]
    found = class_hits(scores, label, "topk")
    for row, (hits, number) in enumerate(zip(found.tolist(), label.tolist(), strict=True)):
        five = scores[row].topk(5).indices.tolist()
        assert hits[:2] == [float(five[0] == number), float(number in five)]
    assert found[:2, 0].sum() == 1
    assert found[2:, 1].sum() == 1


def test_accuracies_by_hand() -> None:
    """Class 0 has three images and finds two, class 2 finds its only one; class 1 has none and is in no mean."""
    hits = torch.tensor([[1.0, 1, 1], [1, 1, 1], [0, 1, 0], [1, 1, 1]], dtype=torch.float64)
    found = accuracies(hits, torch.tensor([0, 0, 0, 2]), ["a", "b", "c"], "lp_")
    assert found.metrics == pytest.approx({"lp_acc1": 3 / 4, "lp_mean_per_class_recall": (2 / 3 + 1) / 2})
    assert found.details == {"per_class": {"a": pytest.approx(2 / 3), "c": 1.0}}
    assert largest_class(torch.tensor([0, 0, 0, 2])) == 0.75


RECORDS = [Record(str(i), (), {"json:c": labels}, i) for i, labels in enumerate([("x",), ("x", "y"), ("y",), (), ("x",)])]
CORNERS = {"x": [1.0, 0, 0, 0], "y": [0, 1.0, 0, 0], "z": [0, 0, 1.0, 0], "w": [0, 0, 0, 1.0]}


def test_mean_average_precision_by_hand() -> None:
    """x ranks its images 1st, 3rd and 4th, y 1st and 3rd, w its only one 4th, and z has none, which counts as 0."""
    records = [*RECORDS[:3], replace(RECORDS[3], labels={"json:c": ("w",)}), RECORDS[4]]
    task = prepared("multilabel", records, CORNERS, label="json:c", classes=("x", "y", "z", "w"), templates=("{c}",))
    scores = torch.tensor([[0.9, 0.1, 0, 0.4], [0.5, 0.9, 0, 0.3], [0.8, 0.2, 0, 0.2], [0.0, 0.3, 0, 0.1], [0.4, 0.0, 0, 0.0]])
    found = task.measure(scores, NO_IMAGES)
    x, y, w = (1 + 2 / 3 + 3 / 4) / 3, (1 + 2 / 3) / 2, 1 / 4
    assert found.details["per_class"] == pytest.approx({"x": x, "y": y, "z": 0.0, "w": w}, abs=1e-6)
    assert found.metrics == pytest.approx({"mean_average_precision": (x + y + w) / 4}, abs=1e-6)
    assert task.info.chance == pytest.approx({"mean_average_precision": (3 / 5 + 2 / 5 + 1 / 5) / 4})


def test_equal_images_are_one_step_of_a_ranking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix product may give equal rows scores that differ in the last bit; here one that does so on purpose."""
    task = prepared("multilabel", RECORDS, CORNERS, label="json:c", classes=("x", "y"), templates=("{c}",))
    point = torch.full((5, 4), 0.5)
    product = torch.Tensor.__matmul__

    def uneven(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        found = product(left, right)
        rows, columns = (torch.arange(side) for side in found.shape)
        return found * (1 + (rows[:, None] + columns) * 1e-6)

    monkeypatch.setattr(torch.Tensor, "__matmul__", uneven)
    assert not torch.equal((point @ point.T)[0], (point @ point.T)[4])
    found = task.measure(point, NO_IMAGES)
    assert found.details["per_class"] == pytest.approx({"x": 3 / 5, "y": 2 / 5})
    records = [Record(str(i), tuple(texts), {}, i) for i, texts in enumerate(("a", "b", "c", "d", "efgh"))]
    retrieval = prepared("retrieval", records, {text: [1.0, 1, 1, 1] for text in "abcdefgh"})
    assert retrieval.measure(point, NO_IMAGES).metrics == pytest.approx(retrieval.info.chance)
    label = torch.tensor([0, 1, 2, 0, 1])
    assert classify(point, torch.full((3, 4), 0.5), label, ["a", "b", "c"]).metrics["acc1"] == pytest.approx(1 / 3)


def test_median_ranks_by_hand() -> None:
    """Captions 0 to 3 rank their image 1st, 2nd, 4th and 4th; images rank their caption 1st, 1st, 2nd and 4th."""
    scores = torch.tensor([[4.0, 3, 2, 1], [4, 3, 2, 1], [4, 3, 1, 2], [4, 3, 2, 1]])
    pairs = merged_pairs([["c0"], ["c1"], ["c2"], ["c3"]])
    metrics, ranks = retrieval_metrics(torch.eye(4), scores, pairs)
    assert ranks.tolist() == [1, 2, 4, 4]
    assert metrics["image_retrieval_median_rank"] == 3.0
    assert metrics["image_retrieval_recall@1"] == 0.25
    assert metrics["image_retrieval_recall@5"] == 1.0
    # columns: image 0 ties all captions (mean rank 2.5), 1 too, 2 has 2, 2, 1, 2 (its own last), 3 has 1, 1, 2, 1 (three tied)
    assert metrics["text_retrieval_median_rank"] == np.median([2.5, 2.5, 4, 3])
    assert metrics["text_retrieval_recall@1"] == pytest.approx((1 / 4 + 1 / 4 + 0 + 0) / 4)


def test_mean_rank_over_every_order() -> None:
    """Two above, then four tied of which one or three are right: the first right one is at 4.5 or 3.25."""
    assert mean_rank(torch.tensor([2]), torch.tensor([4]), torch.tensor([1])).item() == 2 + 2.5
    assert mean_rank(torch.tensor([2]), torch.tensor([4]), torch.tensor([3])).item() == 2 + 1.25
    assert mean_rank(torch.tensor([0]), torch.tensor([1]), torch.tensor([1])).item() == 1


def test_pairs_of_equal_captions() -> None:
    """Merged, a caption is found by any of its images; plain, each stands for its own."""
    captions = [["cat", "cat", "pet"], ["pet"]]
    merged, plain = merged_pairs(captions), plain_pairs(captions)
    assert (merged.captions, merged.image.tolist(), merged.caption.tolist()) == (["cat", "pet"], [0, 0, 1], [0, 1, 1])
    assert (plain.captions, plain.image.tolist(), plain.caption.tolist()) == (
        ["cat", "cat", "pet", "pet"],
        [0, 0, 0, 1],
        [0, 1, 2, 3],
    )
    image_z, text = torch.eye(2), {"cat": [1.0, 0], "pet": [0.0, 1]}
    rows = torch.tensor([text[name] for name in merged.captions]), torch.tensor([text[name] for name in plain.captions])
    assert retrieval_metrics(image_z, rows[0], merged)[0]["image_retrieval_recall@1"] == 1.0
    assert retrieval_metrics(image_z, rows[1], plain)[0]["image_retrieval_recall@1"] == 3 / 4


def test_choices_by_hand() -> None:
    """Of two pairs the first is right both ways, the second prefers one caption for both images."""
    image_z = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0.9, 0.1], [1, 0]])
    text_z = torch.tensor([[1.0, 0], [0, 1], [0.5, 0.5]])
    pairs = [([0, 1], [0, 1]), ([2, 3], [0, 1])]
    assert choice_metrics(image_z, text_z, pairs) == pytest.approx({"text_acc": 0.5, "image_acc": 1.0, "acc": 0.5})
    wrong_twice = [Record("s/0", ("right", "wrong", "wrong", "right"), {}, 0)]
    assert find_instances(wrong_twice, None, "choice") == ([([0], [0, 1])], ["right", "wrong"])
    alone = [([4], [0, 1, 2]), ([4], [1, 0])]
    assert choice_metrics(image_z, text_z, alone) == pytest.approx({"text_acc": 0.5, "acc": 0.5})


def test_class_embeddings_are_means_of_unit_rows() -> None:
    """A long prompt vector weighs no more than a short one; the mean has length 1."""
    table = {"a": [3.0, 0, 0, 0], "b": [0, 0.1, 0, 0], "c": [0, 0, 5.0, 0]}
    made = class_embeddings(lambda texts: unit_rows(torch.tensor([table[text] for text in texts])), [["a", "b"], ["c"]])
    torch.testing.assert_close(made, torch.tensor([[0.5**0.5, 0.5**0.5, 0, 0], [0, 0, 1, 0]]))


def test_head_rows_pick_logits_by_name() -> None:
    task = TaskConfig("classification", label="cls", classes=("b", "a"))
    context = Context(DatasetConfig("d", "a.tar", (task,)), task, (), 0, lambda _: NO_IMAGES, head=("a", "c", "b"))
    assert head_rows(context, ["b", "a"]).tolist() == [[0, 0, 1], [1, 0, 0]]
    with pytest.raises(UserError, match="its class 'd' is none of the 3"):
        head_rows(context, ["d"])


def test_a_probe_takes_the_smallest_of_the_best_strengths() -> None:
    """Two clouds that any C tells apart, so 0.1 is taken; its scores are scikit-learn's of the whole training split."""
    rng = np.random.default_rng(0)
    taught = np.arange(60) % 2
    training = unit(rng.normal(size=(60, 4)) * 0.05 + np.where(taught[:, None] == 0, [1, 0, 0, 0], [0, 1, 0, 0]))
    images = unit(rng.normal(size=(7, 4)))
    expected = LogisticRegression(C=0.1, max_iter=1000).fit(training, taught).decision_function(images)
    scores = probe(training, taught, images, 2, "d")
    assert np.allclose(scores[:, 1], expected, atol=1e-8)
    assert np.allclose(scores[:, 0], -expected, atol=1e-8)


def test_unit_rows_in_float32() -> None:
    rows = unit_rows(torch.tensor([[3.0, 4.0], [torch.nan, 1.0], [torch.inf, 1.0], [0.0, 0.0]], dtype=torch.bfloat16))
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, torch.tensor([[0.6, 0.8], [0, 0], [0, 0], [0, 0]]))


def test_speeds_are_of_the_median_batch_and_add_up_over_ranks() -> None:
    assert _speed([10, 10, 10, 5], [9.0, 1.0, 2.0, 5.0]) == 5.0  # of 10, 5 and 1; the first batch warms up
    assert _speed([10, 0, 10], [9.0, 1.0, 2.0]) == 5.0  # a rank without images runs on a blank one
    assert _speed([10], [1.0]) is None
    assert _total([5.0, 7.0]) == 12.0
    assert _total([5.0, None]) is None
