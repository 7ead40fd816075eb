"""Batches: the same for every number of ranks and workers, from any step on, whatever is broken."""

from __future__ import annotations

import gc
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.shards import good_sample, word_tokenizer, write_samples
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from flexiclip.config import DataConfig, SourceConfig
from flexiclip.data.batch import BatchSpec, RankSteps
from flexiclip.data.dataset import open_sources
from flexiclip.data.loader import iter_captions, train_loader
from flexiclip.errors import UserError


def joined(loader_of: Any, train: Any, world: int, **given: Any) -> list[dict[str, Any]]:
    """Each step's samples, captions and pixels over all ranks."""
    ranks = [list(loader_of(train, rank=rank, world=world, **given)) for rank in range(world)]
    steps = []
    for parts in zip(*ranks, strict=True):
        assert len({part.step for part in parts}) == 1
        steps.append(
            {
                "step": parts[0].step,
                "samples": [name for part in parts for name in part.samples],
                "captions": [text for part in parts for text in part.captions],
                "images": torch.cat([part.images for part in parts]),
                "ids": torch.cat([part.caption_ids for part in parts]),
                "bad": [error for part in parts for error in part.bad],
            }
        )
    return steps


def assert_equal(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> None:
    for a, b in zip(left, right, strict=True):
        assert (a["step"], a["samples"], a["captions"], a["bad"]) == (b["step"], b["samples"], b["captions"], b["bad"])
        assert torch.equal(a["images"], b["images"])
        assert torch.equal(a["ids"], b["ids"])


@pytest.mark.parametrize(("world", "workers"), [(1, 1), (1, 3), (2, 0), (2, 2), (3, 0), (3, 1)])
def test_every_world_sees_the_same_batches(uneven: str, loader_of: Any, world: int, workers: int) -> None:
    """Pixels included, so augmentation draws are equal too."""
    alone = joined(loader_of, uneven, 1, steps=5)
    assert_equal(joined(loader_of, uneven, world, workers=workers, steps=5), alone)


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_epoch_sees_each_sample_once(uneven: str, loader_of: Any, world: int, workers: int) -> None:
    """23 samples at a batch of 6: after 23 steps each has come exactly 6 times, and the first 23 positions hold each once."""
    steps = joined(loader_of, uneven, world, workers=workers, steps=23)
    names = [name for step in steps for name in step["samples"]]
    assert Counter(names[:23]).most_common(1)[0][1] == 1
    assert set(Counter(names).values()) == {6}
    assert len(set(names)) == 23


def test_resuming_equals_the_tail(uneven: str, loader_of: Any) -> None:
    whole = joined(loader_of, uneven, 1, steps=9)
    assert_equal(joined(loader_of, uneven, 1, steps=4, start_step=5, workers=2), whole[5:])


def test_a_view_changes_with_epoch_and_seed_alone(uneven: str, loader_of: Any) -> None:
    def views(**given: Any) -> dict[str, torch.Tensor]:
        (step,) = joined(loader_of, uneven, 1, steps=1, global_batch_size=23, **given)
        return dict(zip(step["samples"], step["images"], strict=True))

    first, again, second, other = views(), views(window_shards=4), views(start_step=1), views(seed=4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(not torch.equal(first[name], second[name]) for name in first)
    assert all(not torch.equal(first[name], other[name]) for name in first)


def test_a_batch_is_what_it_says(uneven: str, loader_of: Any) -> None:
    batch = next(iter(loader_of(uneven)))
    assert (batch.images.shape, batch.images.dtype) == ((6, 3, 16, 16), torch.uint8)
    assert batch.tokens.dtype == batch.caption_ids.dtype == torch.int64
    for name, caption in zip(batch.samples, batch.captions, strict=True):
        number = int(name.split("/s")[1])
        assert caption == f"caption number {number}"
        assert name.startswith("train-000")
    assert batch.tokens.shape == (6, 3)  # three words each, trimmed from eight
    assert next(iter(loader_of(uneven, tokenizer=word_tokenizer))).tokens.shape == (6, 8)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_samples_are_replaced_and_named(broken: str, loader_of: Any, workers: int) -> None:
    steps = joined(loader_of, broken, 1, workers=workers, steps=2)
    names = Counter(name.split("/")[1] for step in steps for name in step["samples"])
    assert sum(names.values()) == 12
    assert not names.keys() & {"s0002", "s0005", "s0007"}
    assert set(names) == {f"s{n:04d}" for n in range(12)} - {"s0002", "s0005", "s0007"}
    reasons = {error["key"]: error["reason"] for step in steps for error in step["bad"]}
    assert set(reasons) == {"s0002", "s0005", "s0007"}
    assert "truncated" in reasons["s0002"].lower()
    assert reasons["s0005"] == "empty caption"
    assert reasons["s0007"] == "no image: none of jpg, jpeg, png, webp"
    assert {error["shard"] for step in steps for error in step["bad"]} == {broken}
    assert_equal(joined(loader_of, broken, 3, workers=workers, steps=2), joined(loader_of, broken, 1, steps=2))


@pytest.mark.parametrize("workers", [0, 1])
def test_data_without_captions_is_the_users_mistake(uneven: str, loader_of: Any, workers: int) -> None:
    with pytest.raises(UserError, match=r"100 samples in a row.*no caption: none of json:caption") as caught:
        list(loader_of(uneven, captions=("json:caption",), workers=workers))
    assert "Traceback" not in str(caught.value)


def test_an_error_leaves_no_pass_to_the_garbage_collector(uneven: str, loader_of: Any) -> None:
    """torch's iterator, were it collected later in the worker of another loader, would print a traceback there."""
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(UserError, match="100 samples in a row"):
            list(loader_of(uneven, captions=("none",), workers=1))
        assert not any(isinstance(kept, _MultiProcessingDataLoaderIter) for kept in gc.get_objects())
    finally:
        gc.enable()


def test_a_batch_that_ranks_cannot_share(uneven: str, loader_of: Any) -> None:
    with pytest.raises(UserError, match="global_batch_size=7 does not divide by the 2 ranks"):
        loader_of(uneven, world=2, global_batch_size=7)


def test_a_weighted_mixture(tmp_path: Path, loader_of: Any) -> None:
    for name in "ab":
        write_samples(tmp_path / f"{name}.tar", [good_sample(n) for n in range(5)])
    mixture = (SourceConfig(str(tmp_path / "a.tar"), 3.0), SourceConfig(str(tmp_path / "b.tar"), 1.0))
    steps = joined(loader_of, mixture, 1, steps=4, global_batch_size=1024, image_size=(4, 4), workers=2)
    shards = Counter(name.split("/")[0] for step in steps for name in step["samples"])
    assert shards == {"a.tar": 3072, "b.tar": 1024}


def test_several_captions_are_drawn_evenly(tmp_path: Path, loader_of: Any) -> None:
    sample = {**good_sample(0), "json": b'{"names": ["one", "two", " "]}'}
    path = str(write_samples(tmp_path / "a.tar", [sample]))
    given = {"captions": ("txt", "json:names"), "global_batch_size": 300, "steps": 1, "image_size": (4, 4)}
    seen = Counter(next(iter(loader_of(path, **given))).captions)
    assert set(seen) == {"caption number 0", "one", "two"}
    assert min(seen.values()) > 70


def test_captions_that_cannot_be_read_are_left_out_and_the_rest_follow(broken: str) -> None:
    """The captions of images that are damaged or missing are captions all the same: a tokenizer learns from them."""
    captions = list(iter_captions(DataConfig(train=broken)))
    assert captions == [f"caption number {n}" for n in range(12) if n != 5]


def test_sources_are_opened_once_and_shared(uneven: str) -> None:
    config = DataConfig(train=uneven, workers=0)
    sources = open_sources(config, seed=3)
    assert sources.samples == 23
    assert sorted(iter_captions(config)) == sorted(f"caption number {n}" for n in range(23))
    steps = RankSteps(seed=3, global_batch_size=2, start_step=10**6, steps=1)
    loader = train_loader(config, BatchSpec((8, 8), "bicubic", word_tokenizer), steps, sources)
    assert [batch.step for batch in loader] == [10**6]


def test_what_workers_are_handed_survives_pickling(uneven: str, loader_of: Any) -> None:
    """Platforms that spawn their workers, rather than fork them, pickle the dataset."""
    loader = loader_of(uneven)
    revived = pickle.loads(pickle.dumps(loader.loader.dataset))
    for step, batch in enumerate(loader):
        assert revived[step].samples == batch.samples
        assert torch.equal(revived[step].images, batch.images)
