"""What counts as another order of the samples, and what does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from kit.train_shards import sample, write_shard
from test_step import ALONE

from flexiclip.config import DataConfig, SourceConfig
from flexiclip.data.dataset import open_sources
from flexiclip.train.checkpoint import Checkpoint, Facts
from flexiclip.train.ranks import data_order, say_if_changed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a.tar with six samples, b.tar and c.tar with four each."""
    place = tmp_path / "data"
    place.mkdir()
    for name, count in (("a", 6), ("b", 4), ("c", 4)):
        write_shard(place / f"{name}.tar", [sample(n) for n in range(count)])
    return place


def order(folder: Path, *sources: tuple[str, float], seed: int = 0) -> str:
    """Of sources that are (brace spec, weight)."""
    given = tuple(SourceConfig(str(folder / spec), weight) for spec, weight in sources)
    found = data_order(open_sources(DataConfig(train=given), seed))
    assert found is not None
    return found


def test_data_order_depends_on_names_counts_and_weights_and_not_on_the_folder(folder: Path, tmp_path: Path) -> None:
    mixed = ("{a,b}.tar", 2.0), ("c.tar", 1.0)
    before = order(folder, *mixed)
    assert order(folder, *mixed, seed=7) == before, "the seed is compared with the recipe"
    shutil.copytree(folder, tmp_path / "moved")
    assert order(tmp_path / "moved", *mixed) == before
    others = {
        "weights": order(folder, ("{a,b}.tar", 3.0), ("c.tar", 1.0)),
        "names": order(folder, ("{a,c}.tar", 2.0), ("b.tar", 1.0)),
        "sources": order(folder, ("{a,b,c}.tar", 1.0)),
    }
    write_shard(folder / "b.tar", [sample(n) for n in range(5)])
    others["counts"] = order(folder, *mixed)
    assert len({before, *others.values()}) == 5, others


def test_data_order_is_not_known_of_a_sequential_source() -> None:
    assert data_order(None) is None


@pytest.mark.parametrize(("kept", "said"), [("x", False), (None, False), ("y", True)])
def test_say_if_changed(kept: str | None, said: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint of an earlier version kept none."""
    say_if_changed("x", Checkpoint(Path("a"), "there", Facts(7, data_order=kept)), ALONE)
    assert ("the training shards are not those of there" in capsys.readouterr().err) is said
