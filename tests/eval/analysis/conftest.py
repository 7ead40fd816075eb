"""A model, a suite and a folder of cues for the tests of the analyses."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit.evaluation import CATEGORIES, toy_model, toys, write_shards, write_suite

from flexiclip.model_folder import save_model

BROKEN = (2, 20)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, `toys.yaml` (23 images, two of them broken) and `cues`, images of two categories' names."""
    folder = tmp_path_factory.mktemp("analyze")
    save_model(folder / "model", toy_model(folder))
    write_suite(folder / "toys.yaml", write_shards(folder / "data", toys(23, BROKEN), (9, 1, 13)))
    for i, toy in enumerate(toys(12)):
        shape, texture = CATEGORIES[i % 3], CATEGORIES[(i + 1 + i % 2) % 6]
        (folder / "cues" / shape).mkdir(parents=True, exist_ok=True)
        toy.image.save(folder / "cues" / shape / f"{shape}{i}-{texture}1.png")
    return folder
