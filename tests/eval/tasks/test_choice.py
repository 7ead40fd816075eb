"""Choices between captions and images by hand, and as in SugarCrepe and Winoground."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flexiclip_eval.data.images import Record
from flexiclip_eval.tasks.choice import choice_chance, choice_metrics, find_instances
from kit.evaluation import unit

from flexiclip.errors import UserError


def _unit(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(unit(rng.normal(size=shape)).astype(np.float32))


def _record(number: int, captions: tuple[str, ...] = (), **labels: Any) -> Record:
    return Record(f"s/{number}", captions, labels, number)


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
