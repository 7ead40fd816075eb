"""What replaces a sample that cannot be read, what is read ahead, and how long either goes on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.shards import good_sample, write_samples

from flexiclip.config import DataConfig, SourceConfig
from flexiclip.data.dataset import MAX_BAD, TrainDataset, open_sources
from flexiclip.data.images import TrainTransform
from flexiclip.data.reading import prefetch, reopen
from flexiclip.data.remote import expand_shards
from flexiclip.errors import UserError

SUBSTITUTE = 5  # the purpose of the draw
SEED = 3


def dataset_of(config: DataConfig) -> TrainDataset:
    return TrainDataset(open_sources(config, SEED), TrainTransform((4, 4), (1.0, 1.0), (1.0, 1.0), False, "bilinear"), SEED)


def test_a_substitute_is_drawn_from_seed_source_epoch_sample_and_attempt(tmp_path: Path) -> None:
    """By hand, over two sources and several epochs of each: half of all samples are bad, so that second attempts are met."""
    kept = {}
    for source, name in enumerate("ab"):
        samples = [good_sample(n) for n in range(12)]
        for n in range(source, 12, 2):
            samples[n]["txt"] = b""
        kept[source] = {n for n in range(12) if n % 2 != source}
        write_samples(tmp_path / f"{name}.tar", samples)
    config = DataConfig(train=tuple(SourceConfig(str(tmp_path / f"{name}.tar")) for name in "ab"))
    dataset = dataset_of(config)
    attempts, met = [], set()
    for position in range(100):
        place, item = dataset.sources.plan[position], dataset[position]
        number, attempt = place.sample, 0
        while number not in kept[place.source]:
            attempt += 1
            key = (SEED, SUBSTITUTE, place.source, place.epoch, place.sample, attempt)
            number = int(np.random.PCG64(np.random.SeedSequence(key)).random_raw()) % 12
        assert item.name == f"{'ab'[place.source]}.tar/s{number:04d}"
        assert len(item.bad) == attempt
        attempts.append(attempt)
        met.add((place.source, place.epoch))
    assert max(attempts) > 2
    assert len(met) > 6


def test_a_view_does_not_depend_on_whether_captions_are_read(uneven: str, loader_of: Any) -> None:
    with_captions, without = (next(iter(loader_of(uneven, captions=captions, flip=True))) for captions in (("txt",), ()))
    assert torch.equal(with_captions.images, without.images)
    assert without.captions == [""] * 6


def test_the_settings_of_the_views_reach_the_loader(uneven: str, loader_of: Any) -> None:
    def transform(**given: Any) -> TrainTransform:
        found: TrainTransform = loader_of(uneven, **given).loader.dataset.dataset.transform
        return found

    size = {"image_size": (16, 24), "interpolation": "bicubic"}
    assert transform(**size) == TrainTransform((16, 24), (0.4, 1.0), (0.75, 4 / 3), False, "bicubic", True)
    given = {"crop_scale": (0.2, 0.3), "crop_ratio": (0.5, 0.6), "flip": True, "scaled_decoding": False}
    assert transform(**size, **given) == TrainTransform((16, 24), (0.2, 0.3), (0.5, 0.6), True, "bicubic", False)


def test_a_hundred_bad_samples_in_a_row_are_too_many(tmp_path: Path) -> None:
    """The one that was wanted and 99 substitutes; where one of those can be read, all are named and training goes on."""
    write_samples(tmp_path / "a.tar", [{**good_sample(n), "txt": b""} for n in range(3)])
    dataset = dataset_of(DataConfig(train=str(tmp_path / "a.tar")))
    read: list[str] = []
    dataset.note = lambda stage, shard="", key="": read.append(key) if stage == "decoding" else None
    with pytest.raises(UserError, match=r"100 samples in a row cannot be used, the last one .*a\.tar: s000\d: empty caption"):
        dataset[0]
    assert len(read) == MAX_BAD == 100


def test_a_window_is_read_ahead_when_it_is_entered(uneven: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is asked for all shards of the window, before its first sample is read, once each time."""
    dataset = dataset_of(DataConfig(train=uneven, window_shards=2))
    reopen()
    asked: list[str] = []

    def advise(descriptor: int, offset: int, length: int, advice: int) -> None:
        assert (offset, length, advice) == (0, 0, os.POSIX_FADV_WILLNEED)
        asked.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    shards = expand_shards(uneven)
    entered: Any = None
    for position in range(2 * 23):
        place = dataset.sources.plan[position]
        before = len(asked)
        dataset[position]
        window = (place.epoch, place.window)
        expected = [shards[shard] for shard in dataset.sources.plan.window(place)] if window != entered else []
        assert sorted(asked[before:]) == sorted(expected)
        entered = window
    assert len(asked) == 8


def test_what_would_fill_a_quarter_of_the_memory_is_not_read_ahead(uneven: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda descriptor, *_: asked.append(descriptor))
    shards = expand_shards(uneven)
    total = sum(map(os.path.getsize, shards))
    for pages, count in ((4 * total - 4, 0), (4 * total, 4)):
        asked.clear()
        monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": pages, "SC_PAGE_SIZE": 1}.__getitem__)
        prefetch([*shards, "http://127.0.0.1:9/x.tar", "/no/such.tar"])
        assert len(asked) == count
