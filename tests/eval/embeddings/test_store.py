"""Embeddings that are kept, and the sweep: nothing is decoded twice, and speeds are measured while nothing else is at work.

Each thing that changes a number changes the name of the file, and nothing else does.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flexiclip_eval import EvalOptions, evaluate_suites
from flexiclip_eval.data.images import ImageBlock
from flexiclip_eval.embeddings.store import EmbeddingStore, model_fingerprint
from flexiclip_eval.suites.load import load_datasets
from kit.evaluation import Foreign, toy_model, toys, write_shards, write_suite
from open_clip.transform import image_transform
from torch import nn

from flexiclip.data.samples import Sample, SampleStore
from flexiclip.errors import UserError
from flexiclip.model_folder import LoadedModel, load_model, save_model


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return toy_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def suite(tmp_path: Path) -> str:
    return write_suite(tmp_path / "toys.yaml", write_shards(tmp_path / "data", toys(23, (2, 20)), (9, 1, 13)))


class _Counter:
    """Counts what is decoded and encoded, and hands it on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, loaded: LoadedModel) -> None:
        self.decoded = self.images = self.texts = 0
        read, image, text = SampleStore.read, loaded.model.encode_image, loaded.model.encode_text

        def counted_read(store: SampleStore, shard: int, sample: int, min_side: int | None = None) -> Sample:
            self.decoded += 1
            return read(store, shard, sample, min_side)

        def counted_image(images: torch.Tensor, seqhw: int) -> torch.Tensor:
            self.images += 1
            return image(images, seqhw)

        def counted_text(tokens: torch.Tensor) -> torch.Tensor:
            self.texts += 1
            return text(tokens)

        monkeypatch.setattr(SampleStore, "read", counted_read)
        monkeypatch.setattr(loaded.model, "encode_image", counted_image)
        monkeypatch.setattr(loaded.model, "encode_text", counted_text)


def test_a_second_evaluation_decodes_and_encodes_nothing(
    loaded: LoadedModel, suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = evaluate_suites([("toy", loaded)], [suite], options=EvalOptions(batch_size=5))
    count = _Counter(monkeypatch, loaded)
    first = evaluate_suites([("toy", loaded)], [suite], options=EvalOptions(batch_size=5, embeddings=tmp_path / "kept"))
    assert [row.metrics for row in first] == [row.metrics for row in plain]
    assert count.decoded == 23
    seen = (count.decoded, count.images, count.texts)
    second = evaluate_suites([("toy", loaded)], [suite], options=EvalOptions(batch_size=5, embeddings=tmp_path / "kept"))
    assert second == first  # images/s and n too
    assert (count.decoded, count.images, count.texts) == seen
    more = evaluate_suites(
        [("toy", loaded)], [suite], seqhw=[3, 4], options=EvalOptions(batch_size=5, embeddings=tmp_path / "kept")
    )
    assert count.decoded == 2 * 23  # for seqhw 4
    assert count.images - seen[1] == (seen[1] // 3)  # and nothing for seqhw 3
    assert [row for row in more if row.seqhw == 3] == [row for row in first if row.seqhw == 3]
    encoded = count.images
    evaluate_suites(
        [("toy", loaded)], [suite], output=tmp_path / "out", options=EvalOptions(batch_size=5, embeddings=tmp_path / "kept")
    )
    assert count.images == encoded  # the page reads the images that it shows, which encodes nothing
    about = (tmp_path / "out" / "report.json").read_text()
    assert "0002" in about
    assert "0020" in about


def test_what_is_damaged_or_another_is_computed_again(
    loaded: LoadedModel, suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = tmp_path / "kept"
    first = evaluate_suites([("toy", loaded)], [suite], seqhw=[3], options=EvalOptions(embeddings=kept))
    count = _Counter(monkeypatch, loaded)
    (file,) = kept.glob("images-*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    for damaged in (bytes(data), bytes(data[: len(data) // 2]), b""):
        file.write_bytes(damaged)
        before = count.decoded
        with caplog.at_level(logging.WARNING, "flexiclip.eval"):
            again = evaluate_suites([("toy", loaded)], [suite], seqhw=[3], options=EvalOptions(embeddings=kept))
        assert count.decoded == before + 23
        assert [row.metrics for row in again] == [row.metrics for row in first]
    said = [record.message for record in caplog.records if "is computed again" in record.message]
    assert len(said) == 3
    assert all(file.name in line for line in said)
    before = count.decoded
    write_shards(tmp_path / "data", toys(22), (9, 1, 12))
    assert evaluate_suites([("toy", loaded)], [suite], seqhw=[3], options=EvalOptions(embeddings=kept))[0].n == 22
    assert count.decoded == before + 22
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--embeddings .*file: cannot write there"):
        evaluate_suites([("toy", loaded)], [suite], seqhw=[3], options=EvalOptions(embeddings=tmp_path / "file"))


def test_a_model_is_known_by_its_weights_and_settings_not_by_its_place(loaded: LoadedModel, tmp_path: Path) -> None:
    known = model_fingerprint(loaded)
    for place in ("here", "there"):
        save_model(tmp_path / place, loaded)
        assert model_fingerprint(load_model(tmp_path / place)) == known
    other = load_model(tmp_path / "here")
    with torch.no_grad():
        other.model.image_tower.norm.bias[0] += 1e-3
    assert model_fingerprint(other) != known
    image = dataclasses.replace(loaded.config.model.image, activation="gelu")
    config = dataclasses.replace(loaded.config, model=dataclasses.replace(loaded.config.model, image=image))
    assert model_fingerprint(dataclasses.replace(loaded, config=config)) != known


def test_on_a_cpu_no_image_is_read_while_one_is_encoded(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding and encoding would share the cores: slower than in turn, and no speed could be believed."""
    suite = write_suite(tmp_path / "toys.yaml", write_shards(tmp_path / "data", toys(28), (28,)))
    read, encode, size = SampleStore.read, loaded.model.encode_image, 4
    begun, during = 0, []

    def counted(store: SampleStore, shard: int, sample: int, min_side: int | None = None) -> Sample:
        nonlocal begun
        begun += 1
        return read(store, shard, sample, min_side)

    def slow(images: torch.Tensor, seqhw: int) -> torch.Tensor:
        time.sleep(0.05)  # a reader at work would get on
        during.append(begun - size * (len(during) + 1))
        return encode(images, seqhw)

    monkeypatch.setattr(SampleStore, "read", counted)
    monkeypatch.setattr(loaded.model, "encode_image", slow)
    evaluate_suites([("toy", loaded)], [suite], seqhw=[3], options=EvalOptions(batch_size=size, workers=1))
    assert during == [0] * 7


def test_batches_are_decoded_ahead_where_that_is_asked_for(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: while a batch is at work, the next one is read."""
    suite = write_suite(tmp_path / "toys.yaml", write_shards(tmp_path / "data", toys(12), (12,)))
    block = ImageBlock(load_datasets([suite])[0], loaded.transform, workers=1, cache_bytes=0)
    read, reading = SampleStore.read, threading.Semaphore(0)

    def counted(store: SampleStore, shard: int, sample: int, min_side: int | None = None) -> Sample:
        reading.release()
        return read(store, shard, sample, min_side)

    monkeypatch.setattr(SampleStore, "read", counted)
    batches = block.batches(4, ahead=1)
    next(batches)
    for _ in range(8):
        assert reading.acquire(timeout=60), "the next batch is not read while this one is at work"
    assert not reading.acquire(timeout=0.05)
    assert [len(batch) for batch in batches] == [4, 4]


def _spoil(tar: Path, key: str) -> None:
    """Damage an image where it lies: every name, size and time stays."""
    times = tar.stat()
    with tarfile.open(tar) as opened:
        member = opened.getmember(f"{key}.png")
    with tar.open("r+b") as file:
        file.seek(member.offset_data + 8)
        file.write(bytes(member.size - 8))
    os.utime(tar, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_lengths_of_different_samples_never_stand_side_by_side(
    loaded: LoadedModel, suite: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def lines(seqhw: list[int]) -> tuple[list[tuple[int | None, int]], int]:
        """((seqhw, n) of the rows, how often it was said that all is computed again)."""
        caplog.clear()
        with caplog.at_level(logging.WARNING, "flexiclip.eval"):
            rows = evaluate_suites([("toy", loaded)], [suite], seqhw=seqhw, options=EvalOptions(batch_size=5, embeddings=kept))
        said = [record for record in caplog.records if "data set toys is computed again" in record.message]
        return [(row.seqhw, row.n) for row in rows[: len(seqhw)]], len(said)

    kept = tmp_path / "kept"
    assert lines([3]) == ([(3, 21)], 0)
    _spoil(tmp_path / "data" / "part-2.tar", "0011")
    assert lines([3]) == ([(3, 21)], 0)  # from what is kept
    assert lines([3, 6]) == ([(3, 20), (6, 20)], 1)  # the pass for 6 misses a sample
    assert lines([3, 6]) == ([(3, 20), (6, 20)], 0)
    expected = evaluate_suites([("toy", loaded)], [suite], seqhw=[3, 6], options=EvalOptions(batch_size=5))
    rows = evaluate_suites([("toy", loaded)], [suite], seqhw=[3, 6], options=EvalOptions(batch_size=5, embeddings=kept))
    assert [row.metrics for row in rows] == [row.metrics for row in expected]
    _spoil(tmp_path / "data" / "part-2.tar", "0012")
    assert lines([2]) == ([(2, 19)], 0)
    assert lines([2, 3]) == ([(2, 19), (3, 19)], 1)  # both are kept, of different samples


def test_a_label_that_is_corrected_is_read_anew(
    loaded: LoadedModel, suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headers, sizes and offsets of the tar stay as they were; the kept embeddings hold the labels of their pass."""
    kept = tmp_path / "kept"
    evaluate_suites([("toy", loaded)], [suite], seqhw=[3], options=EvalOptions(embeddings=kept))
    tar = tmp_path / "data" / "part-0.tar"
    content = tar.read_bytes()
    assert b'"animals"' in content
    tar.write_bytes(content.replace(b'"animals"', b'"objects"'))  # of the same length
    os.utime(tar, ns=(tar.stat().st_atime_ns, tar.stat().st_mtime_ns + 1))
    plain = evaluate_suites([("toy", loaded)], [suite], seqhw=[3])
    count = _Counter(monkeypatch, loaded)
    after = evaluate_suites([("toy", loaded)], [suite], seqhw=[3], options=EvalOptions(embeddings=kept))
    assert count.decoded == 23
    assert [row.metrics for row in after] == [row.metrics for row in plain]


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
def small_suite(tmp_path: Path) -> str:
    return write_suite(tmp_path / "toys.yaml", write_shards(tmp_path / "data", toys(9), (9,)))


def test_embeddings_of_another_transform_are_not_served(small_suite: str, tmp_path: Path) -> None:
    """The weights of a foreign model do not know how its images are prepared."""
    kept, model = tmp_path / "kept", Pixels().eval()
    dark, light = (brighter(by) for by in (0.0, 3.0))
    assert repr(dark).partition(" at ")[0] == repr(light).partition(" at ")[0]
    for transform in (dark, light, image_transform(24, is_train=False, mean=(0.1,) * 3), image_transform(32, is_train=False)):
        loaded = Foreign(model, transform, tokens)
        plain = evaluate_suites([("m", loaded)], [small_suite])
        before = len(list(kept.glob("images-*")))
        there = evaluate_suites([("m", loaded)], [small_suite], options=EvalOptions(embeddings=kept))
        assert [row.metrics for row in there] == [row.metrics for row in plain]
        assert len(list(kept.glob("images-*"))) == before + 1
        assert evaluate_suites([("m", loaded)], [small_suite], options=EvalOptions(embeddings=kept)) == there


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


def test_embeddings_of_other_statistics_are_not_served(small_suite: str, tmp_path: Path) -> None:
    model = Pixels().eval()
    loaded = Foreign(model, image_transform(24, is_train=False), tokens)
    evaluate_suites([("m", loaded)], [small_suite], options=EvalOptions(embeddings=tmp_path / "kept"))
    model.norm.running_mean[:] = torch.tensor([1.0, -1.0, 0.3])  # type: ignore[index]
    there = evaluate_suites([("m", loaded)], [small_suite], options=EvalOptions(embeddings=tmp_path / "kept"))
    assert [row.metrics for row in there] == [row.metrics for row in evaluate_suites([("m", loaded)], [small_suite])]


def test_a_store_keeps_texts_by_their_tokens_and_model(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, Foreign(Pixels(), None, None))
    one, two = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[1, 2], [3, 4], [5, 6]])
    kept, new = torch.ones(2, 4), torch.zeros(2, 4)
    assert torch.equal(store.texts(one, lambda: kept), kept)
    assert torch.equal(store.texts(one, lambda: new), kept)
    assert torch.equal(store.texts(two, lambda: new), new)  # the same numbers in another shape
    assert torch.equal(store.texts(one.int(), lambda: new), new)
    assert torch.equal(EmbeddingStore(tmp_path, Foreign(Pixels(3), None, None)).texts(one, lambda: new), new)
