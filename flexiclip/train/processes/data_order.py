"""A fingerprint of what the order of the training samples depends on besides the seed, compared over ranks and over lives.

Every rank reads the shards' indices itself. A rank that sees other shards, or other counts, would silently follow another
plan: some samples would come twice and others not at all.
"""

from __future__ import annotations

import hashlib
import json
import socket

from flexiclip.data.dataset import TrainSources
from flexiclip.data.shards import shard_name
from flexiclip.errors import UserError
from flexiclip.train.checkpoints.checkpoint import Checkpoint
from flexiclip.train.processes.ranks import Ranks


def data_order(sources: TrainSources | None) -> str | None:
    """A hash of the shards' names and sample counts and of the sources' weights; None for a sequential source.

    The shards' folder does not enter: data may be moved.
    """
    if sources is None:
        return None
    digest = hashlib.sha256()
    for store, source in zip(sources.stores, sources.plan.sources, strict=True):
        names = [shard_name(url) for url in store.urls]
        digest.update(json.dumps([names, source.counts.tolist(), source.weight]).encode())
    return digest.hexdigest()


def check_ranks_agree(order: str | None, ranks: Ranks) -> None:
    """Raises UserError on every rank, naming those that see other training data than the main rank. Collective."""
    said = ranks.collect([(order, socket.gethostname())])
    others = [f"{rank} (on {host})" for rank, (each, host) in enumerate(said) if each != said[0][0]]
    if others:
        raise UserError(
            f"data.train: rank {', '.join(others)} sees other shards or sample counts than rank 0 (on {said[0][1]}): "
            "give every host the same shards, and run flexiclip data index on each"
        )


def say_if_changed(order: str | None, checkpoint: Checkpoint, ranks: Ranks) -> None:
    """Tell that a run that goes on does so in another order."""
    if checkpoint.facts.data_order not in (None, order):
        ranks.say(
            f"the training shards are not those of {checkpoint.where} (other names, counts or weights): "
            f"from step {checkpoint.step} on, the order of the samples is another one"
        )
