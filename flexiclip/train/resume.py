"""Resuming: which checkpoint a run goes on from, whether the recipe allows it, and how the files get to every rank.

Only the main rank looks for the checkpoint and decides; the others receive its decision. The first rank of each node fetches a
remote checkpoint for its node. This file also checks that all ranks were started with one recipe, and prepares the run folder.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from flexiclip.config import Config, TrainConfig, dump, from_dict, to_dict
from flexiclip.config.explain import changeable
from flexiclip.config.yaml_text import read_yaml
from flexiclip.errors import UserError
from flexiclip.files import clear_left, write_whole, writing
from flexiclip.schedules import RunSchedule
from flexiclip.train.checkpoint import Checkpoint, Facts, read_state
from flexiclip.train.ranks import Ranks, RunContext
from flexiclip.train.remote_store import open_store
from flexiclip.train.run_lock import RunLock
from flexiclip.train.stores import LocalStore, Store


@dataclass(frozen=True)
class Found:
    """The location of a complete checkpoint, and its facts."""

    root: str  # folder or URL of its store
    name: str
    facts: Facts


def run_store(train: TrainConfig, run: Path) -> Store:
    """Return the store of a run's checkpoints. Raises UserError if fsspec cannot open its URL."""
    return open_store(train.checkpoint_dir or str(run / "checkpoints"), run / ".saving")


def find_checkpoint(train: TrainConfig, store: Store) -> Found | None:
    """Return the checkpoint that `train.resume` names: auto (the latest, if there is one), never, or a folder or URL.

    Raises UserError if it cannot be read, or if `never` meets an earlier run in train.checkpoint_dir.
    """
    resume, name = train.resume, store.latest()
    if resume == "never":
        if name is not None and train.checkpoint_dir is not None:  # checkpoints in the run folder are moved aside with it
            raise UserError(
                f"train.resume=never starts a new run, but train.checkpoint_dir={store} holds {name} of an earlier run: "
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


def fetch_checkpoint(found: Found, context: RunContext) -> Checkpoint:
    """Open a checkpoint, and first fetch its files if they are remote. Raises UserError if it is incomplete. Collective."""
    store, fetched, ranks = open_store(found.root, Path()), _fetched(context) / found.name, context.ranks
    if ranks.local_rank == 0:
        shutil.rmtree(fetched, ignore_errors=True)
    ranks.first_result(ranks.local_rank == 0, lambda: store.open(found.name, fetched).step)
    return store.open(found.name, fetched)


def forget_fetched(context: RunContext) -> None:
    """Remove fetched files after every rank has read them. Collective."""
    context.ranks.barrier()
    if context.ranks.local_rank == 0 and (folder := _fetched(context)).exists():
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another node's files are still there
            folder.parent.rmdir()


def _fetched(context: RunContext) -> Path:
    """Return this node's own folder, the same for all of its ranks, even if all nodes share one disk and one host name."""
    return context.folder / ".fetched" / f"node-of-rank-{context.ranks.rank - context.ranks.local_rank}"


_LOOKS = 1000
"""Number of finished steps at which two schedules are compared."""

# Keys that may differ between ranks. The folder of the shards may differ too: check_ranks_agree in ranks.py compares the shards.
OWN = ("data.train", "data.workers", "data.prefetch", "data.index_cache", "train.threads")


def check_one_recipe(config: Config, ranks: Ranks) -> None:
    """Raise UserError on every rank if one was started with another recipe than rank 0. Collective.

    It must be the first collective. Ranks with different recipes would wait for each other in different places, or silently train
    a mixture of the recipes.
    """
    own = {key: value for key, value in _flat(to_dict(config)).items() if not _is_under(key, OWN)}
    started = ranks.collect([(own, socket.gethostname())])
    others = [rank for rank, (recipe, _) in enumerate(started) if recipe != started[0][0]]
    if not others:
        return
    (main, main_host), (other, host) = started[0], started[others[0]]
    key = next(key for key in sorted(main.keys() | other.keys()) if main.get(key) != other.get(key))
    more = f" and {len(others) - 1} more ranks have another recipe" if len(others) > 1 else ""
    raise UserError(
        f"rank {others[0]} (on {host}) was started with {key}={other.get(key)}, rank 0 (on {main_host}) with "
        f"{main.get(key)}{more}: start every rank with the same command"
    )


Schedules = Callable[[Config], RunSchedule]
"""A function from a recipe to the schedule of its run."""


def enter_run_folder(
    config: Config, store: Store, schedule_of: Schedules, lock: RunLock, say: Callable[[str], None]
) -> Found | None:
    """Check, claim and prepare the run folder, and return the checkpoint to go on from. Only one rank calls it.

    Mistakes are found before anything is written. say: prints a line.

    Raises UserError if the folder cannot be used, if another process trains there, or if it holds another run (check_same_run).
    """
    run = Path(config.run_dir)
    if run.exists() and not run.is_dir():
        raise UserError(f"run_dir={run} is a file: name a folder")
    _find(config, store, schedule_of)
    with writing(f"run_dir={run}"):
        run.mkdir(parents=True, exist_ok=True)
        lock.take(LocalStore(run), "run_dir", say)
    if config.train.checkpoint_dir is not None:
        with writing(f"train.checkpoint_dir={store}"):
            store.check_writable()
            lock.take(store, "train.checkpoint_dir", say)
    found, note = _find(config, store, schedule_of)  # once more, because only now no other process writes there
    with writing(f"run_dir={run}"):
        prepare_run_folder(config, lock, say)
    if note is not None:
        say(note)
    return found


def _find(config: Config, store: Store, schedule_of: Schedules) -> tuple[Found | None, str | None]:
    """Return the checkpoint to go on from, and a line to print about it, if there is one.

    Raises UserError if the checkpoint belongs to a run with another recipe.
    """
    run, found = Path(config.run_dir), find_checkpoint(config.train, store)
    if found is None or config.train.resume != "auto":
        return found, None
    written = run / "config.yaml"
    recipe = found.facts.recipe
    if recipe is None and written.is_file():
        data = read_yaml(written.read_text(encoding="utf-8"), str(written))
        recipe = {**data} if isinstance(data, dict) else None
    if recipe is None:
        return found, None
    where = str(run) if written.is_file() else f"{store}"
    check_same_run(config, recipe, where)
    return found, longer(config, recipe, schedule_of, found.facts.step, where)


def check_same_run(config: Config, recipe: Mapping[str, object], where: str) -> None:
    """Raise UserError that names a differing key if `recipe`, that of the run at `where`, describes another run than `config`.

    Keys that the schema declares with resume=True may differ. train.steps has its own rule, in `longer`. This is called only if
    there is a checkpoint, so that a first start that failed can be corrected and repeated.
    """
    old, new, free = _flat(_completed(recipe)), _flat(to_dict(config)), changeable()
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key) and not _is_under(key, free)]
    if changed:
        key = changed[0]
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UserError(
            f"{where} holds a run with {key}={old.get(key)}, not {new.get(key)}{more}: "
            "give another run_dir, or train.resume=never to start a new run (the old one is moved aside)"
        )


def longer(config: Config, recipe: Mapping[str, object], schedule_of: Schedules, step: int, where: str) -> str | None:
    """Return a line to print if train.steps is larger than in `recipe`, which was trained up to `step`. None if it is not.

    Finished steps stay as they are, and later ones follow the schedule of the new length. Raises UserError if the run would
    become shorter.
    """
    try:
        before = from_dict(Config, recipe).train.steps
    except UserError:
        return None
    if before == config.train.steps:
        return None
    past, now = schedule_of(replace(config, train=replace(config.train, steps=before))), schedule_of(config)
    old, new = past.horizon.steps, now.horizon.steps
    if new < old:
        raise UserError(
            f"{where} holds a run with train.steps={before}, and {config.train.steps} is less: a run may only be made longer"
        )
    if new == old or not step:
        return None
    looked_at = range(0, step, max(1, step // _LOOKS))
    same = {
        "learning rates": all(past.lr(s) == now.lr(s) for s in looked_at),
        "lengths": all(past.seqhw(s) == now.seqhw(s) for s in looked_at),
    }
    changed = " and ".join(what for what, unchanged in same.items() if not unchanged)
    rule = (
        f"the {changed} from here on are those of a run of {new} steps, which has others before"
        if changed
        else f"learning rates and lengths are those of a run that had {new} steps from its start"
    )
    return f"train.steps has grown from {old} to {new} at step {step}: {rule}"


def _completed(recipe: Mapping[str, object]) -> object:
    """Return the recipe with the defaults of keys that are newer than it, so that a run can go on under a newer version."""
    try:
        return to_dict(from_dict(Config, recipe))
    except UserError:  # a key that no longer exists, or now takes other values
        return recipe


def prepare_run_folder(config: Config, lock: RunLock, say: Callable[[str], None]) -> None:
    """Write config.yaml into a folder that `lock` has claimed. With resume=never, first move an existing run aside."""
    run = Path(config.run_dir)
    if config.train.resume == "never" and (run / "config.yaml").exists():
        number = 1
        while (old := run.with_name(f"{run.name}.old-{number}")).exists():
            number += 1
        run.rename(old)
        run.mkdir()
        lock.forget(LocalStore(old))
        lock.take(LocalStore(run), "run_dir", say)
    for written in ("config.yaml", "*.jsonl"):  # by a start that was killed meanwhile
        clear_left(run, written)
    write_whole(run / "config.yaml", dump(config))


def _is_under(key: str, names: tuple[str, ...]) -> bool:
    """Whether a dotted key is one of the names, or is in a section that is one of them."""
    return any(key == name or key.startswith(name + ".") for name in names)


def _flat(data: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(data, Mapping) or not data:
        return {prefix: data}
    return {name: v for key, value in data.items() for name, v in _flat(value, f"{prefix}.{key}".lstrip(".")).items()}
