"""What a classification got wrong: the confusions against scikit-learn's matrix, and the images that are shown."""

from __future__ import annotations

import numpy as np
import torch
from flexiclip_eval.tasks.classification import classify
from flexiclip_eval.tasks.mistakes import MATRIX, PAIRS, describe_mistakes
from sklearn.metrics import confusion_matrix


def test_confusions_are_the_matrix_of_scikit_learn() -> None:
    draw = torch.Generator().manual_seed(0)
    label, named = (torch.randint(0, 6, (500,), generator=draw) for _ in range(2))
    found = describe_mistakes(named, label, torch.ones(500), 6)
    matrix = np.zeros((6, 6), dtype=int)
    for own, other, count in found["confusion"]:
        matrix[own, other] = count
    assert (matrix == confusion_matrix(label, named, labels=range(6))).all()


def test_of_many_classes_the_most_frequent_confusions_are_kept() -> None:
    classes = MATRIX + 1
    label = torch.arange(classes).repeat_interleave(classes)
    named = torch.arange(classes).repeat(classes)
    often = torch.tensor([[3, 4]] * 5 + [[7, 1]] * 9)
    label, named = torch.cat([label, often[:, 0]]), torch.cat([named, often[:, 1]])
    found = describe_mistakes(named, label, torch.ones(len(label)), classes)["confusion"]
    assert found[:2] == [(7, 1, 10), (3, 4, 6)]
    assert len(found) == PAIRS
    assert all(own != other for own, other, _ in found)


def test_wrong_images_are_spread_and_say_both_classes_and_the_rank() -> None:
    """Images are unit rows of two dimensions, and the classes are at 0, 90 and 180 degrees."""
    class_z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    angles = torch.deg2rad(torch.tensor([10.0, 80.0, 100.0, 170.0]))
    image_z = torch.stack([angles.cos(), angles.sin()], dim=1)
    details = classify(image_z, class_z, torch.tensor([0, 0, 2, 0]), ["a", "b", "c"]).details
    assert details["mistakes"] == [
        {"image": 1, "label": 0, "named": 1, "rank": 2},
        {"image": 2, "label": 2, "named": 1, "rank": 2},
        {"image": 3, "label": 0, "named": 2, "rank": 3},
    ]
    assert details["confusion"] == [(0, 0, 1), (0, 1, 1), (0, 2, 1), (2, 1, 1)]
    many = describe_mistakes(torch.ones(480, dtype=torch.int64), torch.zeros(480, dtype=torch.int64), torch.ones(480), 2)
    assert [mistake["image"] for mistake in many["mistakes"]] == list(range(0, 480, 20))
    none = describe_mistakes(torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), torch.ones(3), 2)
    assert none == {"confusion": [(0, 0, 3)], "mistakes": []}
