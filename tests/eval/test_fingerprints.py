"""What kept embeddings are known by: each thing that changes a number changes the name of the file, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_tools import Foreign, toys, write_shards, write_suite
from flexiclip_eval import EvalOptions, evaluate_suites
from flexiclip_eval.data.images import ImageBlock, transform_fingerprint
from flexiclip_eval.embeddings.store import EmbeddingStore, model_fingerprint
from flexiclip_eval.suites.dataset import DatasetConfig
from flexiclip_eval.suites.load import load_datasets
from open_clip.transform import image_transform
from torch import nn


class Pixels(nn.Module):
    """A foreign model whose embeddings are normalised means of the image's quarters; its text is the tokens themselves."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.heads = heads

    def encode_image(self, images: torch.Tensor, seqhw: None = None) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(self.norm(images), self.heads).flatten(1)

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.float()


def tokens(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[float(len(text) * (i + 1) % 7 + ord(text[i % len(text)]) % 5) for i in range(12)] for text in texts])


def brighter(by: float) -> Callable[[Any], torch.Tensor]:
    """Functions that say the same of themselves."""
    plain = image_transform(24, is_train=False)
    return lambda image: plain(image) + by


@pytest.fixture
def suite(tmp_path: Path) -> str:
    return write_suite(tmp_path / "toys.yaml", write_shards(tmp_path / "data", toys(9), (9,)))


def test_embeddings_of_another_transform_are_not_served(suite: str, tmp_path: Path) -> None:
    """The weights of a foreign model do not know how its images are prepared."""
    kept, model = tmp_path / "kept", Pixels().eval()
    dark, light = (brighter(by) for by in (0.0, 3.0))
    assert repr(dark).partition(" at ")[0] == repr(light).partition(" at ")[0]
    for transform in (dark, light, image_transform(24, is_train=False, mean=(0.1,) * 3), image_transform(32, is_train=False)):
        loaded = Foreign(model, transform, tokens)
        plain = evaluate_suites([("m", loaded)], [suite])
        before = len(list(kept.glob("images-*")))
        there = evaluate_suites([("m", loaded)], [suite], options=EvalOptions(embeddings=kept))
        assert [row.metrics for row in there] == [row.metrics for row in plain]
        assert len(list(kept.glob("images-*"))) == before + 1
        assert evaluate_suites([("m", loaded)], [suite], options=EvalOptions(embeddings=kept)) == there


def test_transform_fingerprint_knows_what_pictures_become() -> None:
    transforms = [
        image_transform(24, is_train=False),
        image_transform(25, is_train=False),
        image_transform(24, is_train=False, mean=(0.5, 0.5, 0.5)),
        image_transform(24, is_train=False, std=(0.5, 0.5, 0.5)),
        image_transform(24, is_train=False, resize_mode="squash", interpolation="bicubic"),
        image_transform(24, is_train=False, interpolation="bilinear"),
        brighter(0.0),
        brighter(0.01),
        lambda image: brighter(0.0)(image).half(),
    ]
    assert len({transform_fingerprint(transform) for transform in transforms}) == len(transforms)
    assert transform_fingerprint(image_transform(24, is_train=False)) == transform_fingerprint(transforms[0])
    assert transform_fingerprint(brighter(0.01)) == transform_fingerprint(transforms[7])


def changed_statistics(model: Pixels) -> None:
    assert model.norm.running_mean is not None
    model.norm.running_mean[1] += 0.5


def counted_batches(model: Pixels) -> None:
    assert model.norm.num_batches_tracked is not None
    model.norm.num_batches_tracked += 1


def changed_weight(model: Pixels) -> None:
    model.norm.weight.data[2] *= 2


def renamed(model: Pixels) -> None:
    model.other = model.norm
    del model.norm


def other_heads(model: Pixels) -> None:
    model.heads = 3


def other_epsilon(model: Pixels) -> None:
    model.norm.eps = 0.1


def other_type(model: Pixels) -> None:
    model.half()


@pytest.mark.parametrize(
    "change", [changed_statistics, counted_batches, changed_weight, renamed, other_heads, other_epsilon, other_type]
)
def test_model_fingerprint_knows_weights_buffers_and_settings(change: Callable[[Pixels], None]) -> None:
    known = model_fingerprint(Foreign(Pixels(), None, None))
    assert model_fingerprint(Foreign(Pixels().train(), None, None)) == known == model_fingerprint(Foreign(Pixels().eval(), 1, 2))
    model = Pixels()
    change(model)
    assert model_fingerprint(Foreign(model, None, None)) != known


def test_embeddings_of_other_statistics_are_not_served(suite: str, tmp_path: Path) -> None:
    model = Pixels().eval()
    loaded = Foreign(model, image_transform(24, is_train=False), tokens)
    evaluate_suites([("m", loaded)], [suite], options=EvalOptions(embeddings=tmp_path / "kept"))
    model.norm.running_mean[:] = torch.tensor([1.0, -1.0, 0.3])  # type: ignore[index]
    there = evaluate_suites([("m", loaded)], [suite], options=EvalOptions(embeddings=tmp_path / "kept"))
    assert [row.metrics for row in there] == [row.metrics for row in evaluate_suites([("m", loaded)], [suite])]


def test_image_block_fingerprint_knows_samples_captions_and_labels(suite: str, tmp_path: Path) -> None:
    (config,) = load_datasets([suite])
    transform = image_transform(24, is_train=False)

    def fingerprint(config: DatasetConfig) -> str:
        return ImageBlock(config, transform, workers=1, cache_bytes=0).fingerprint

    known = fingerprint(config)
    assert fingerprint(replace(config, name="other", language="de")) == known
    other_labels = tuple(replace(task, label="cls") if task.label else task for task in config.tasks)
    for changed in (
        replace(config, captions=("json:choice",)),
        replace(config, image_keys=("png",)),
        replace(config, tasks=other_labels),
        replace(config, tasks=config.tasks[:1]),
    ):
        assert fingerprint(changed) != known


def test_a_store_keeps_texts_by_their_tokens_and_model(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, Foreign(Pixels(), None, None))
    one, two = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[1, 2], [3, 4], [5, 6]])
    store.write_texts(one, torch.ones(2, 4))
    found = store.read_texts(one)
    assert found is not None
    assert torch.equal(found, torch.ones(2, 4))
    assert store.read_texts(two) is None  # the same numbers in another shape
    assert store.read_texts(one.int()) is None
    assert EmbeddingStore(tmp_path, Foreign(Pixels(3), None, None)).read_texts(one) is None
