"""The tiny recipe, its shards and tokenizer, and a function that trains it on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from kit.launch import Trained, flexiclip_main, run_ranks
from kit.train_shards import SAMPLES, sample, write_uneven

Fit = Callable[..., Trained]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """96 samples in shards of 37, 11 and 48: eight steps of 12."""
    return write_uneven(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentencepiece model of the samples' captions."""
    from flexiclip.data.tokenizers import train_sentencepiece

    captions = [sample(number)["txt"].decode() for number in range(SAMPLES)]
    return train_sentencepiece(captions, tmp_path_factory.mktemp("tokenizer") / "words.model", 120, lowercase=True)


@pytest.fixture(scope="session")
def recipe(data: str, tokenizer_file: Path) -> list[str]:
    """recipes/debug.yaml on our shards, with a batch that 1, 2 and 3 ranks can share; the arguments of `flexiclip train`."""
    given = {
        "data.train": data,
        "data.workers": 0,
        "tokenizer.path": tokenizer_file,
        "train.global_batch_size": 12,
        "train.threads": 1,
        "train.log_samples": "true",
        # Adam divides a gradient that is zero but for rounding (a key's bias has one) by itself; eps keeps such weights equal.
        "optimizer.eps": 1e-5,
    }
    return ["debug", *(f"{key}={value}" for key, value in given.items())]


@pytest.fixture(scope="session")
def fit(recipe: list[str], tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """fit(world, *overrides, folder=None) trains the recipe on so many ranks, to the end."""

    def train(world: int, *overrides: str, folder: Path | None = None) -> Trained:
        folder = folder or tmp_path_factory.mktemp("runs") / "run"
        log = folder.with_name("log")
        codes = run_ranks(world, log, flexiclip_main, "train", *recipe, f"run_dir={folder}", *overrides)
        said = "".join(f"--- rank {rank}\n" + Path(f"{log}.{rank}").read_text()[-2000:] for rank in range(world))
        assert codes == [0] * world, said
        return Trained(folder)

    return train


@pytest.fixture(scope="session")
def reference(fit: Fit) -> Trained:
    """20 steps on one rank under plain torch: what every other engine and number of ranks must repeat."""
    return fit(1)
