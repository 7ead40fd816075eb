"""Ranks and ties in a search: by hand, over every order, and for equal rows bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flexiclip_eval.data.images import Record
from flexiclip_eval.tasks.classification import classify
from flexiclip_eval.tasks.search import first_twins, hit_probability, mean_rank
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.evaluation import prepared, shuffled_recall

NO_IMAGES = torch.empty(0, 4)
RECORDS = [Record(str(i), (), {"json:c": labels}, i) for i, labels in enumerate([("x",), ("x", "y"), ("y",), (), ("x",)])]
CORNERS = {"x": [1.0, 0, 0, 0], "y": [0, 1.0, 0, 0], "z": [0, 0, 1.0, 0], "w": [0, 0, 0, 1.0]}


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


def test_mean_rank_over_every_order() -> None:
    """Two above, then four tied of which one or three are right: the first right one is at 4.5 or 3.25."""
    assert mean_rank(torch.tensor([2]), torch.tensor([4]), torch.tensor([1])).item() == 2 + 2.5
    assert mean_rank(torch.tensor([2]), torch.tensor([4]), torch.tensor([3])).item() == 2 + 1.25
    assert mean_rank(torch.tensor([0]), torch.tensor([1]), torch.tensor([1])).item() == 1


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_ties_are_worth_the_average_over_every_order(data: st.DataObject) -> None:
    items, k = 5, data.draw(st.integers(1, 6))
    scores = np.array(data.draw(st.lists(st.integers(0, 2), min_size=items, max_size=items)), dtype=float)[None]
    positive = np.array(data.draw(st.lists(st.booleans(), min_size=items, max_size=items).filter(any)))[None]
    best = scores[positive].max()
    above, tied = torch.tensor([int((scores > best).sum())]), torch.tensor([int((scores == best).sum())])
    mine = torch.tensor([int(((scores == best) & positive).sum())])
    assert hit_probability(above, tied, mine, k).item() == pytest.approx(shuffled_recall(scores, positive, k), abs=1e-12)


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
