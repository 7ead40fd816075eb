"""Each key of the section `data` that says what is read of a sample changes the batch."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from kit.overrides import load_last
from kit.train_shards import sample, write_shard
from PIL import Image
from test_model_keys import CLASSIFY
from torch import Tensor

from flexiclip.data.batch import BatchSpec, RankSteps
from flexiclip.data.dataset import open_sources
from flexiclip.data.loader import train_loader
from flexiclip.model_folder import build_model
from flexiclip.train.setup import data_of, labels_of


def jpeg(number: int) -> dict[str, Any]:
    """A sample as a JPEG of 480 pixels, with a second caption and a class."""
    pixels = np.random.default_rng(number).integers(0, 256, (15, 15, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((480, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    made = sample(number)
    return {"__key__": made["__key__"], "jpg": buffer.getvalue(), "png": made["png"], "txt": made["txt"], "alt": b"another one"}


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("jpegs")
    for shard in range(4):
        write_shard(folder / f"{shard}.tar", [{**jpeg(6 * shard + n), "cls": b"red"} for n in range(6)])
    return f"data.train={folder}/*.tar"


DATA: dict[str, list[str]] = {
    "seed": ["seed=3"],
    "data.image_keys": ["data.image_keys=[png]"],
    "data.captions": ["data.captions=[alt]"],
    "data.window_shards": ["data.window_shards=1"],
    "data.crop_scale": ["data.crop_scale=[0.1,0.2]"],
    "data.crop_ratio": ["data.crop_ratio=[0.2,0.3]"],
    "data.flip": ["data.flip=true"],
    "data.scaled_decoding": ["data.scaled_decoding=false"],
    "data.sequential": ["data.sequential=true"],
    "model.preprocess.interpolation": ["model.preprocess.interpolation=bilinear"],
}


def first_batch(recipe: list[str], *overrides: str) -> list[Any]:
    config = load_last([*recipe, *overrides])
    loaded = build_model(config)
    sources = None if config.data.sequential else open_sources(data_of(config.data, config.model), config.seed, labels_of(config))
    spec = BatchSpec(
        image_size=(48, 48),
        interpolation=config.model.preprocess.interpolation,
        tokenizer=None if config.model.text is None else loaded.model.text_tower.trimming(loaded.tokenizer),
        labels=labels_of(config),
    )
    steps = RankSteps(seed=config.seed, global_batch_size=12, start_step=0, steps=1)
    batch = next(iter(train_loader(data_of(config.data, config.model), spec, steps, sources)))
    return [batch.images, batch.captions, batch.samples, batch.shares]


def same(one: list[Any], other: list[Any]) -> bool:
    return all(torch.equal(a, b) if isinstance(a, Tensor) else list(a) == list(b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def read(recipe: list[str], jpegs: str) -> list[Any]:
    return first_batch(recipe, jpegs)


def test_the_same_recipe_reads_the_same_batch(recipe: list[str], jpegs: str, read: list[Any]) -> None:
    assert same(first_batch(recipe, jpegs), read)


@pytest.mark.parametrize("key", DATA)
def test_a_key_of_the_data_changes_what_is_read(recipe: list[str], jpegs: str, read: list[Any], key: str) -> None:
    assert not same(first_batch(recipe, jpegs, *DATA[key]), read)


def test_mixup_mixes_images_and_their_shares(recipe: list[str], jpegs: str) -> None:
    classify = [*CLASSIFY, "model.classes=[red,green]", jpegs]
    plain, mixed = first_batch(recipe, *classify), first_batch(recipe, *classify, "data.mixup=5")
    assert plain[2] == mixed[2]
    kept = float(mixed[3].max())
    assert 0.5 <= kept < 1
    expected = kept * plain[0].float() + (1 - kept) * plain[0].float().roll(1, 0)
    assert (mixed[0].float() - expected)[1:].abs().max() <= 0.5 + 1e-3
