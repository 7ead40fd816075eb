"""Labels of samples, and mixtures of images and labels, against formulas written out here; ranks and workers change nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shardkit import good_sample, write_samples

from flexiclip.config import DataConfig
from flexiclip.data.batch import Batch, BatchSpec, Mixup, RankSteps
from flexiclip.data.loader import train_loader
from flexiclip.data.samples import BadSample, Labels, class_names
from flexiclip.errors import UserError

NAMES = ("cat", "dog", "7", "bird")
BATCH, SAMPLES = 6, 18


@pytest.mark.parametrize(
    ("spec", "members", "found"),
    [
        ("cls", {"cls": b"1\n"}, (1,)),
        ("cls", {"cls": b"bird"}, (3,)),
        ("cls", {"cls": b"7"}, (2,)),  # a name before a number
        ("cls", {"cls": b"\xef\xbb\xbfbird\r\n"}, (3,)),
        ("cls", {"cls": b"\xef\xbb\xbf1"}, (1,)),
        ("json:kind", {"json": b'{"kind": "dog"}'}, (1,)),
        ("json:kind", {"json": b'\xef\xbb\xbf{"kind": "dog"}'}, (1,)),
        ("json:kind.of", {"json": b'{"kind": {"of": [3, "cat", 0]}}'}, (3, 0)),
    ],
)
def test_a_label_is_a_name_or_a_number(spec: str, members: dict[str, bytes], found: tuple[int, ...]) -> None:
    assert Labels(spec, NAMES).read("a.tar", "k", members) == found


@pytest.mark.parametrize(
    ("spec", "members", "reason"),
    [
        ("cls", {"txt": b"cat"}, "no label: it has no cls"),
        ("cls", {"cls": b"4"}, "label '4' is none of the 4 classes"),
        ("cls", {"cls": b"-1"}, "label '-1' is none of the 4 classes"),
        ("cls", {"cls": b"9" * 5000}, "is none of the 4 classes"),
        ("cls", {"cls": b"\xff"}, "cls is not UTF-8"),
        ("json:kind", {"json": b'{"kind": null}'}, "no label: json:kind is empty"),
        ("json:kind", {"json": b'{"kind": ["cat", "cow"]}'}, "label 'cow' is none of"),
        ("json:kind", {"json": b'{"kind": true}'}, "label 'True' is none of"),
    ],
)
def test_what_is_no_label_makes_a_bad_sample(spec: str, members: dict[str, bytes], reason: str) -> None:
    with pytest.raises(BadSample, match=r"a\.tar") as caught:
        Labels(spec, NAMES).read("a.tar", "k", members)
    assert reason in caught.value.reason


def test_class_names(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a cat\n\n dog \n", encoding="utf-8")
    assert class_names(str(tmp_path / "names.txt")) == ("a cat", "dog")
    (tmp_path / "names.txt").write_bytes("\ufeffa cat\r\n\r\ndog\u2028s\r\n".encode())
    assert class_names(str(tmp_path / "names.txt")) == ("a cat", "dog\u2028s")
    assert class_names(3) == ("0", "1", "2")
    for wrong, said in ((("x", "y", "x"), "'x' twice"), (1, "1 classes; expected 2"), (str(tmp_path / "no"), "is no file")):
        with pytest.raises(UserError, match=said):
            class_names(wrong)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sample n is of class n % 4, and every fourth of another one too."""

    def labelled(number: int) -> dict[str, Any]:
        kinds = [NAMES[number % 4]] + (["dog"] if number % 4 == 0 else [])
        return {**good_sample(number), "json": json.dumps({"kind": kinds}).encode()}

    return str(write_samples(tmp_path_factory.mktemp("labelled") / "a.tar", [labelled(n) for n in range(SAMPLES)]))


def batches(shard: str, rank: int = 0, world: int = 1, **data: Any) -> list[Batch]:
    config = DataConfig(train=shard, captions=(), **{"workers": 0, **data})
    spec = BatchSpec((16, 16), "bicubic", labels=Labels("json:kind", NAMES))
    steps = RankSteps(seed=3, global_batch_size=BATCH, start_step=0, steps=4, rank=rank, world=world)
    return list(train_loader(config, spec, steps))


def dense(batch: Batch) -> np.ndarray:
    """[b, C]: how much of each class an image is of."""
    table = np.zeros((len(batch.samples), len(NAMES)))
    for row, (labels, shares) in enumerate(zip(batch.labels.tolist(), batch.shares.tolist(), strict=True)):
        for label, share in zip(labels, shares, strict=True):
            table[row, label] += share
    return table


def test_labels_reach_the_batch(shard: str) -> None:
    for batch in batches(shard):
        assert batch.tokens.shape == (BATCH, 0)
        for name, row in zip(batch.samples, dense(batch), strict=True):
            number = int(name[-4:])
            assert row.tolist() == [1.0 * (c == number % 4 or (c == 1 and number % 4 == 0)) for c in range(4)]


@pytest.mark.parametrize("workers", [0, 2])
def test_mixtures_are_those_of_the_formula(shard: str, workers: int) -> None:
    """a x_i + (1 - a) x_(i-1) round the global batch, images and classes, with one a a step (big_vision's get_mixup)."""
    plain, mixed = batches(shard), batches(shard, mixup=0.5, workers=workers)
    kept = [Mixup(0.5, seed=3).kept(step) for step in range(4)]
    assert len(set(kept)) == 4
    assert all(0.5 <= a <= 1 for a in kept)
    for a, one, other in zip(kept, plain, mixed, strict=True):
        images = one.images.numpy().astype(np.float64)
        expected = a * images + (1 - a) * np.roll(images, 1, axis=0)
        assert np.abs(other.images.numpy() - expected).max() <= 0.5 + 1e-3
        np.testing.assert_allclose(dense(other), a * dense(one) + (1 - a) * np.roll(dense(one), 1, axis=0), atol=1e-6)
        assert other.samples == one.samples


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_mix_as_one_does(shard: str, world: int) -> None:
    alone = batches(shard, mixup=0.5)
    ranks = [batches(shard, rank, world, mixup=0.5) for rank in range(world)]
    for step, whole in enumerate(alone):
        assert torch.equal(torch.cat([batches_[step].images for batches_ in ranks]), whole.images)
        np.testing.assert_array_equal(np.concatenate([dense(batches_[step]) for batches_ in ranks]), dense(whole))


def test_the_distribution_is_betas() -> None:
    """Of the larger of x and 1 - x for x from Beta(0.2, 0.2): its mean is 0.5 + E|x - 0.5|, from scipy's density."""
    from scipy import integrate, stats

    mean = integrate.quad(lambda x: 2 * x * stats.beta(0.2, 0.2).pdf(x), 0.5, 1)[0]
    drawn = [Mixup(0.2, seed=0).kept(step) for step in range(2000)]
    assert np.mean(drawn) == pytest.approx(mean, abs=4 * np.std(drawn) / 2000**0.5)
