"""Tasks beyond accuracy and recall, against scikit-learn, CLIP_benchmark's own functions and definitions written down slowly."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from clip_benchmark.metrics.zeroshot_classification import average_precision_per_class
from flexiclip_eval import TaskConfig
from flexiclip_eval.data.images import Record
from flexiclip_eval.data.labels import resolve_many
from flexiclip_eval.data.shards import json_label, member_label
from flexiclip_eval.tasks import rerank as rerank_module
from flexiclip_eval.tasks import search
from flexiclip_eval.tasks.base import found_examples
from flexiclip_eval.tasks.choice import choice_chance, choice_metrics, find_instances
from flexiclip_eval.tasks.classification import average_precision
from flexiclip_eval.tasks.rerank import rerank
from flexiclip_eval.tasks.retrieval import merged_pairs, retrieval_metrics
from flexiclip_eval.tasks.search import first_twins
from kit.evaluation import slow_recall, unit
from sklearn.metrics import average_precision_score

from flexiclip.errors import UserError


def _unit(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(unit(rng.normal(size=shape)).astype(np.float32))


def _record(number: int, captions: tuple[str, ...] = (), **labels: Any) -> Record:
    return Record(f"s/{number}", captions, labels, number)


def test_average_precision_equals_scikit_learn_and_clip_benchmark() -> None:
    rng = np.random.default_rng(0)
    scores, member = torch.from_numpy(rng.normal(size=(101, 7)).astype(np.float32)), torch.from_numpy(rng.random((101, 7)) < 0.2)
    got = average_precision(scores, member)
    assert got.numpy() == pytest.approx(average_precision_score(member.numpy(), scores.numpy(), average=None), abs=1e-12)
    assert got.numpy() == pytest.approx(average_precision_per_class(scores, member).numpy(), abs=1e-6)  # theirs sums in float32
    coarse = scores.round()  # many ties
    expected = average_precision_score(member.numpy(), coarse.numpy(), average=None)
    assert average_precision(coarse, member).numpy() == pytest.approx(expected, abs=1e-12)
    knows_nothing = average_precision(torch.zeros(101, 7), member)
    assert knows_nothing.numpy() == pytest.approx(member.double().mean(0).numpy(), abs=1e-12)
    assert average_precision(scores[:, :1], torch.zeros(101, 1, dtype=torch.bool)).item() == 0.0  # as CLIP_benchmark counts it


def test_labels_of_many_classes() -> None:
    vector = io.BytesIO()
    np.save(vector, np.array([0, 1, 0, 1], dtype=np.int64))
    assert member_label("npy", vector.getvalue()) == (1, 3)
    assert member_label("npy", b"no array") is None
    pickled = io.BytesIO()
    np.save(pickled, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert member_label("npy", pickled.getvalue()) is None
    forged = io.BytesIO()
    np.lib.format.write_array_header_1_0(forged, {"descr": "<f8", "fortran_order": False, "shape": (2**40,)})
    assert member_label("npy", forged.getvalue() + bytes(64)) is None  # of 8 TB, which numpy.load would ask for
    assert json_label(["cat", 2]) == ("cat", 2)
    assert json_label(["cat", None]) is None
    assert json_label([]) == ()
    task = TaskConfig("multilabel", label="npy", classes=("a", "b", "c", "d"))
    classes, _, member = resolve_many(task, [_record(0, npy=(1, 3)), _record(1, npy=()), _record(2, npy=("c",))])
    assert classes == ["a", "b", "c", "d"]
    assert member.int().tolist() == [[0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]]
    with pytest.raises(UserError, match="the label 9 of s/0 is not among its 4 classes"):
        resolve_many(task, [_record(0, npy=(9,))])


def test_choices_as_in_sugar_crepe() -> None:
    records = [_record(i, (f"right {i}", f"wrong {i}")) for i in range(31)]
    instances, captions = find_instances(records, None, "choice")
    rng = np.random.default_rng(1)
    image_z, text_z = _unit(rng, 31, 5), _unit(rng, len(captions), 5)
    where = {text: i for i, text in enumerate(captions)}
    better = [float(image_z[i] @ text_z[where[f"right {i}"]] > image_z[i] @ text_z[where[f"wrong {i}"]]) for i in range(31)]
    assert choice_metrics(image_z, text_z, instances) == pytest.approx({"text_acc": np.mean(better), "acc": np.mean(better)})
    point = torch.ones(62, 5) / 5**0.5
    assert choice_metrics(point, point, instances) == pytest.approx({"text_acc": 0.5, "acc": 0.5})
    assert choice_chance(instances) == pytest.approx({"text_acc": 0.5, "acc": 0.5})


def test_choices_as_in_winoground() -> None:
    both = [(i, j) for i in range(40) for j in (0, 1)]
    records = [_record(2 * i + j, (f"caption {i} {j}", f"caption {i} {1 - j}"), id=f"pair {i}") for i, j in both]
    instances, captions = find_instances(records, "id", "choice")
    rng = np.random.default_rng(2)
    image_z, text_z = _unit(rng, 80, 5), _unit(rng, 80, 5)
    assert captions == [f"caption {i} {j}" for i, j in both]
    s = np.einsum("iad,ibd->iab", image_z.reshape(40, 2, 5).double().numpy(), text_z.reshape(40, 2, 5).double().numpy())
    text = (s[:, 0, 0] > s[:, 0, 1]) & (s[:, 1, 1] > s[:, 1, 0])  # Winoground's own three definitions
    image = (s[:, 0, 0] > s[:, 1, 0]) & (s[:, 1, 1] > s[:, 0, 1])
    expected = {"text_acc": text.mean(), "image_acc": image.mean(), "acc": (text & image).mean()}
    assert choice_metrics(image_z, text_z, instances) == pytest.approx(expected, abs=1e-12)
    assert choice_chance(instances) == pytest.approx({"text_acc": 1 / 4, "image_acc": 1 / 4, "acc": 1 / 6})


def test_a_pair_that_lost_an_image_is_left_out() -> None:
    """It would be scored as one image among captions, which is easier, or end the evaluation of all the others."""
    pairs = [_record(2 * i + j, (f"caption {i} {j}",), id=i) for i in range(3) for j in (0, 1)]
    left = [record for record in pairs if record.sample != "s/3"]
    instances, captions = find_instances(left, "id", "choice", unread=1)
    assert [images for images, _ in instances] == [[0, 1], [3, 4]]
    assert captions == ["caption 0 0", "caption 0 1", "caption 2 0", "caption 2 1"]
    with pytest.raises(UserError, match="a choice needs a wrong one"):
        find_instances(left, "id", "choice")  # nothing was unreadable: the suite is wrong


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([_record(0, ("alone",))], "a choice needs a wrong one"),
        ([_record(0)], "s/0 has no caption"),
        ([_record(0, ("a", "b"), id=None)], "s/0 has no id"),
        ([_record(i, (f"c{i}",), id=1) for i in range(3)], "has 3 images and 3 captions"),
    ],
)
def test_an_instance_without_a_choice_is_one_line(records: list[Record], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_instances(records, "id" if "id" in records[0].labels else None, "choice")


def test_equal_rows_are_found_bit_by_bit() -> None:
    rows = torch.randn(40, 6)
    assert first_twins(rows) is None
    rows[[7, 30]], rows[12] = rows[3].clone(), rows[9].clone()
    expected = torch.arange(40)
    expected[[7, 30]], expected[12] = 3, 9
    twins = first_twins(rows)
    assert twins is not None
    assert torch.equal(twins, expected)
    collapsed = first_twins(torch.ones(5, 3))
    assert collapsed is not None
    assert collapsed.tolist() == [0] * 5


def test_a_cascade_equals_re_ranking_by_sorts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    pairs = merged_pairs([[f"c{rng.integers(0, 50)}" for _ in range(rng.integers(1, 4))] for _ in range(61)])
    long_z, text_z = _unit(rng, 61, 6), _unit(rng, len(pairs.captions), 6)
    short_z = torch.nn.functional.normalize(long_z + 0.5 * _unit(rng, 61, 6), dim=1)
    monkeypatch.setattr(search, "CHUNK", 61 * 7)  # blocks of 7 captions
    found = rerank_module.rerank(text_z, short_z, long_z, pairs.by_caption)
    assert [each.shortlist for each in found] == [0, 5, 10, 20, 50, 61]
    positive = np.zeros((len(pairs.captions), 61), dtype=bool)
    positive[pairs.caption.numpy(), pairs.image.numpy()] = True
    short, long = (text_z @ short_z.T).numpy(), (text_z @ long_z.T).numpy()
    for each in found:
        final, listed = short.copy(), np.argsort(-short, axis=1)[:, : each.shortlist]
        np.put_along_axis(final, listed, np.take_along_axis(long, listed, 1) + 10, 1)
        for k in (1, 5, 10):
            assert each.metrics[f"image_retrieval_recall@{k}"] == pytest.approx(slow_recall(final, positive, k), abs=1e-12)
        assert each.reranked == pytest.approx(len(np.unique(listed)) / 61)
    for each, alone_z in ((found[0], short_z), (found[-1], long_z)):  # the ends are the rows of the two lengths
        alone = retrieval_metrics(alone_z, text_z, pairs)[0]
        assert each.metrics == {name: alone[name] for name in each.metrics}
    tiny = merged_pairs([["a"], ["b"]])
    assert [each.shortlist for each in rerank(text_z[:2], short_z[:2], long_z[:2], tiny.by_caption)] == [0, 2]


def test_examples_are_half_wrong_and_name_what_was_found() -> None:
    rng = np.random.default_rng(4)
    pairs = merged_pairs([[f"c{i}", f"d{i % 30}"] for i in range(60)])
    image_z, text_z = _unit(rng, 60, 8), _unit(rng, len(pairs.captions), 8)
    text_z[:40] = image_z[[int(pairs.by_caption.of(c, c + 1)[1][0]) for c in range(40)]]  # these find their image
    ranks = retrieval_metrics(image_z, text_z, pairs)[1]
    scores = search.texts_to_images(text_z, image_z)
    examples = found_examples(scores, pairs.by_caption, ranks, pairs.captions)
    assert len(examples) == 24
    assert sum(example["rank"] > 1 for example in examples) == 12
    assert examples == found_examples(scores, pairs.by_caption, ranks, pairs.captions)
    for example in examples:
        order = np.argsort(-(text_z[pairs.captions.index(example["caption"])] @ image_z.T).numpy())
        assert example["ranked"] == order[:5].tolist()
        assert example["rank"] == 1 + min(order.tolist().index(i) for i in example["positives"])
