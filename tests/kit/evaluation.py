"""A small data set in real shards, a small real model, and metrics written down a second time, slowly, from their definitions."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flexiclip_eval import DatasetConfig, TaskConfig
from flexiclip_eval.data.images import Record
from flexiclip_eval.embeddings.embed import unit_rows
from flexiclip_eval.tasks import TASKS
from flexiclip_eval.tasks.base import Context, Prepared
from PIL import Image

from flexiclip.config import Config, from_dict
from flexiclip.data.tokenizers import train_sentencepiece
from flexiclip.model_folder import LoadedModel, build_model
from flexiclip.models.clip import FlexiCLIP
from flexiclip.models.text import build_text_tower

CATEGORIES = ("animals", "flags", "food", "objects", "people", "symbols")


@dataclass
class Foreign:
    """A model of another library as the harness takes it."""

    model: Any
    transform: Any
    tokenizer: Any
    config: None = None


@dataclass(frozen=True)
class Toy:
    """One sample: its image, captions and category; broken: the image's bytes are cut."""

    image: Image.Image
    captions: tuple[str, ...]
    category: str
    broken: bool = False


def toys(count: int, broken: Sequence[int] = ()) -> list[Toy]:
    """Images of coloured noise. Every third has two captions, and samples 4 and 5 share one."""
    rng = np.random.default_rng(0)
    items = []
    for i in range(count):
        image = Image.fromarray(rng.integers(0, 256, (20 + i % 3, 24, 3), dtype=np.uint8))
        captions = [f"a thing number {i}"] if i not in (4, 5) else ["the same thing"]
        if i % 3 == 0:
            captions.append(f"item {i} seen from afar")
        items.append(Toy(image, tuple(captions), CATEGORIES[(i * i) % 6], i in broken))
    return items


def write_shards(folder: Path, items: Sequence[Toy], sizes: Sequence[int]) -> str:
    """Shards of the given sizes; returns the glob that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    numbered = iter(enumerate(items))
    for shard, size in enumerate(sizes):
        with tarfile.open(folder / f"part-{shard}.tar", "w") as tar:
            for number, toy in itertools.islice(numbered, size):
                png = io.BytesIO()
                toy.image.save(png, "PNG")
                data = png.getvalue()[:60] if toy.broken else png.getvalue()
                two = [toy.category, CATEGORIES[number % 6]]
                choice = [toy.captions[0], f"no thing number {number}"]
                about = {"captions": toy.captions, "category": toy.category, "categories": two, "choice": choice}
                meta = json.dumps(about).encode()
                cls = str(CATEGORIES.index(toy.category)).encode()
                for name, content in ((f"{number:04d}.png", data), (f"{number:04d}.json", meta), (f"{number:04d}.cls", cls)):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    assert next(numbered, None) is None, "sizes must cover the items"
    return str(folder / "part-*.tar")


def write_suite(path: Path, shards: str, **task: Any) -> str:
    """A suite with retrieval and classification on the toys."""
    classify = {"kind": "classification", "label": "json:category", "templates": ["a photo of {c}", "{c}"], **task}
    dataset = {"name": "toys", "shards": shards, "captions": "json:captions", "tasks": [{"kind": "retrieval"}, classify]}
    path.write_text(json.dumps({"datasets": [dataset]}), encoding="utf-8")
    return str(path)


def write_wider_suite(path: Path, shards: str, train: str) -> str:
    """A suite with the other tasks on the toys."""
    multilabel = {"kind": "multilabel", "label": "json:categories", "classes": CATEGORIES}
    tasks = [multilabel, {"kind": "choice"}, {"kind": "linear_probe", "label": "json:category"}]
    dataset = {"name": "wider", "shards": shards, "train": train, "captions": "json:choice", "tasks": tasks}
    path.write_text(json.dumps({"datasets": [dataset]}), encoding="utf-8")
    return str(path)


def toy_model(folder: Path) -> LoadedModel:
    """An untrained FlexiCLIP of 24-pixel images, made for patch sizes 12, 8 and 4, with a tokenizer of the toys' words."""
    words = [*(caption for toy in toys(30) for caption in toy.captions), *CATEGORIES, "a photo of a thing"]
    file = train_sentencepiece(words, folder / "toys.model", vocab_size=60, lowercase=True)
    small = {"width": 16, "depth": 1, "heads": 2}
    image = {**small, "image_size": 24, "base_patch_size": 8, "base_grid": 3}
    data = {
        "model": {"image": image, "text": small, "embed_dim": 12},
        "tokenizer": {"path": str(file), "context_length": 16},
        "patch": {"seqhw": [2, 3, 6]},
    }
    return build_model(from_dict(Config, data))


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1, float64."""
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def encode_one_by_one(loaded: LoadedModel, items: Sequence[Toy], seqhw: int) -> np.ndarray:
    """Unit rows of the images, each alone through the public transform."""
    with torch.no_grad():
        rows = [loaded.model.encode_image(loaded.transform(toy.image)[None], seqhw=seqhw)[0] for toy in items]
    return unit(torch.stack(rows).numpy())


def texts_one_by_one(loaded: LoadedModel, texts: Sequence[str]) -> np.ndarray:
    """Unit rows of the texts, each alone."""
    with torch.no_grad():
        return unit(torch.stack([loaded.model.encode_text(loaded.tokenizer([text]))[0] for text in texts]).numpy())


def slow_recall(scores: np.ndarray, positive: np.ndarray, k: int) -> float:
    """Share of the rows of `scores` [Q, G] whose k best items hold one of `positive` [Q, G], by a full sort."""
    order = np.argsort(-scores, axis=1)[:, :k]
    return float(np.mean([positive[q, order[q]].any() for q in range(len(scores))]))


def slow_median_rank(scores: np.ndarray, positive: np.ndarray) -> float:
    """Median over the rows of `scores` [Q, G] of the place, from 1, of the first of `positive` [Q, G], by a full sort."""
    order = np.argsort(-scores, axis=1)
    return float(np.median([1 + np.flatnonzero(positive[q, order[q]])[0] for q in range(len(scores))]))


def shuffled_recall(scores: np.ndarray, positive: np.ndarray, k: int) -> float:
    """slow_recall averaged over EVERY order of the items: what ties are worth when they are broken at random."""
    orders = list(itertools.permutations(range(scores.shape[1])))
    total = 0.0
    for order in orders:
        ranked = np.take_along_axis(positive[:, order], np.argsort(-scores[:, order], axis=1, kind="stable"), axis=1)
        total += float(ranked[:, :k].any(axis=1).mean())
    return total / len(orders)


def small_model(pool: str) -> FlexiCLIP:
    """Two blocks, images of 24 pixels, and weights large enough for attention that is not even."""
    torch.manual_seed(0)
    image = {"width": 16, "depth": 2, "heads": 2, "image_size": 24, "base_patch_size": 8, "base_grid": 3, "pool": pool}
    config = from_dict(Config, {"model": {"image": image, "text": None, "embed_dim": 12}, "patch": {"seqhw": [2, 3, 6]}})
    model = FlexiCLIP(config.model, build_text_tower(None)).eval()
    with torch.no_grad():
        for name, parameter in model.image_tower.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if "attn" in name or "map" in name else 0.05))
    return model


def prepared(kind: str, records: list[Record], vectors: dict[str, list[float]], **task: object) -> Prepared:
    """A task on these records, whose texts have these embeddings."""
    config = TaskConfig(kind, **task)  # type: ignore[arg-type]
    dataset = DatasetConfig("hand", "a.tar", (config,))

    def embed(texts: object) -> torch.Tensor:
        return unit_rows(torch.tensor([vectors[text] for text in texts]))  # type: ignore[attr-defined]

    return TASKS[kind](Context(dataset, config, records, 0, embed))
