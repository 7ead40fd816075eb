"""What the order of the samples depends on besides the seed: every part of it, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_step import ALONE
from train_shards import sample, write_shard

from flexiclip.config import Config, from_dict
from flexiclip.data.dataset import open_sources
from flexiclip.train.checkpoints.checkpoint import Checkpoint, Facts
from flexiclip.train.processes.data_order import data_order, say_if_changed


def order(
    folder: Path, first: tuple[str, int] = ("a.tar", 4), second: tuple[str, int] = ("b.tar", 5), weight: float = 1.0
) -> str:
    """Of two sources of a shard each, by name and number of samples."""
    folder.mkdir()
    for name, count in (first, second):
        write_shard(folder / name, [sample(n) for n in range(count)])
    train = [{"shards": f"{folder / first[0]}", "weight": weight}, {"shards": f"{folder / second[0]}"}]
    found = data_order(open_sources(from_dict(Config, {"data": {"train": train}}).data, 0, None))
    assert found is not None
    return found


def test_data_order_is_that_of_names_counts_and_weights_wherever_the_shards_lie(tmp_path: Path) -> None:
    plain = order(tmp_path / "0")
    assert order(tmp_path / "1") == plain
    others = [
        order(tmp_path / "2", first=("c.tar", 4)),
        order(tmp_path / "3", second=("b.tar", 6)),
        order(tmp_path / "4", first=("a.tar", 5), second=("b.tar", 4)),
        order(tmp_path / "5", weight=2.0),
        order(tmp_path / "6", first=("b.tar", 5), second=("a.tar", 4)),
    ]
    assert len({plain, *others}) == 6
    assert data_order(None) is None


@pytest.mark.parametrize(("kept", "said"), [("x", False), (None, False), ("y", True)])
def test_say_if_changed(kept: str | None, said: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint of an earlier version kept none."""
    say_if_changed("x", Checkpoint(Path("a"), "there", Facts(7, data_order=kept)), ALONE)
    assert ("the training shards are not those of there" in capsys.readouterr().err) is said
