"""Which checkpoint a run goes on from, and how its files get to every rank.

The main rank alone looks and decides; the others are told. A remote checkpoint is fetched once a node, by the node's first rank.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from flexiclip.config import Config
from flexiclip.errors import UserError
from flexiclip.train.checkpoints.checkpoint import Checkpoint, Facts, read_state
from flexiclip.train.checkpoints.opening import open_store
from flexiclip.train.checkpoints.stores import Store
from flexiclip.train.processes.ranks import Ranks

T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """A complete checkpoint where it lies."""

    root: str  # of its store
    name: str
    facts: Facts


def run_store(config: Config, run: Path) -> Store:
    """Where the checkpoints of a run lie. Raises UserError for a URL that nothing can open."""
    return open_store(config.train.checkpoint_dir or str(run / "checkpoints"), run / ".saving")


def find_checkpoint(config: Config, store: Store) -> Found | None:
    """The checkpoint that `train.resume` names: auto (latest, if there is one), never, or a folder or URL. Raises UserError."""
    resume, name = config.train.resume, store.latest()
    if resume == "never":
        if name is not None and config.train.checkpoint_dir is not None:  # those in the run folder are moved aside with it
            raise UserError(
                f"train.resume=never starts anew, but train.checkpoint_dir={store} holds {name} of an earlier run: "
                "name another place, or remove that one"
            )
        return None
    if resume != "auto":
        parent, _, name = resume.rstrip("/").rpartition("/")
        store = open_store(parent or ("/" if resume.startswith("/") else "."), Path())
    if name is None:
        return None
    facts, _ = read_state(store.state(name), f"{store}/{name}")
    return Found(str(store), name, facts)


def fetch_checkpoint(found: Found, run: Path, ranks: Ranks) -> Checkpoint:
    """Open it, after fetching its files when they lie elsewhere. Raises UserError when it is not whole. Collective."""
    store, fetched = open_store(found.root, Path()), _fetched(run, ranks) / found.name
    if ranks.local_rank == 0:
        shutil.rmtree(fetched, ignore_errors=True)
    shared(ranks, ranks.local_rank == 0, lambda: store.open(found.name, fetched))
    return store.open(found.name, fetched)


def forget_fetched(run: Path, ranks: Ranks) -> None:
    """Remove fetched files when every rank has read them. Collective."""
    ranks.barrier()
    if ranks.local_rank == 0 and (folder := _fetched(run, ranks)).exists():
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another node's are still there
            folder.parent.rmdir()


def shared(ranks: Ranks, works: bool, work: Callable[[], T]) -> T:
    """Run `work` where `works` is true; returns the first result on every rank. Collective.

    A UserError of one rank is raised on all, so that nobody waits for a rank that has left.
    """
    outcome: list[tuple[T | None, str | None]] = []
    if works:
        try:
            outcome = [(work(), None)]
        except UserError as error:
            outcome = [(None, str(error))]
    outcomes = ranks.collect(outcome)
    for _, said in outcomes:
        if said is not None:
            raise UserError(said)
    result: T = outcomes[0][0]
    return result


def _fetched(run: Path, ranks: Ranks) -> Path:
    """A folder of this node's own, known to each of its ranks, also where all nodes share one disk and one host name."""
    return run / ".fetched" / f"node-of-rank-{ranks.rank - ranks.local_rank}"
