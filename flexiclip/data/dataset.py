"""Yields the training sample of a position: read, augmented, and replaced by another sample if it cannot be read.

The result depends only on (seed, position) and the shards. The caption and the augmentation are drawn from (seed,
epoch, sample), so a sample looks the same in an epoch on whichever rank, worker or batch it is read. An unreadable
sample is replaced by another one of the same source, drawn from (seed, epoch, sample, attempt), so every rank counts
the same samples and every batch is full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flexiclip.config import DataConfig, SourceConfig
from flexiclip.data.batch import TrainSample
from flexiclip.data.images import TrainTransform
from flexiclip.data.index import ShardIndex, index_shards
from flexiclip.data.order import Plan, PlannedSample, Source
from flexiclip.data.reading import Retries, prefetch, reads_in_parallel
from flexiclip.data.remote import expand_shards
from flexiclip.data.samples import BadSample, Labels, Sample, SampleStore
from flexiclip.data.worker_watch import Note, silent
from flexiclip.draws import Draw, Stream, below, stream
from flexiclip.errors import UserError

_MANY_DAMAGED = 3  # shards; fewer count as an accident even if there are only a few shards in all
MAX_BAD = 100  # substitutes in a row that may fail; more means that the recipe or the storage is wrong


@dataclass(frozen=True)
class TrainSources:
    """The opened training shards of a recipe, with one store per source, and the order over them.

    Open them once and share them.
    """

    stores: tuple[SampleStore, ...]
    plan: Plan
    damaged: tuple[BadSample, ...] = ()  # shards that are not used whole; their `key` is empty

    @property
    def samples(self) -> int:
        """The number of samples in an epoch."""
        return self.plan.samples

    @property
    def parallel(self) -> bool:
        """Whether a worker should read several samples at once: reading remote shards means waiting for the network."""
        return all(reads_in_parallel(url) for store in self.stores for url in store.urls)


def source_configs(train: str | Sequence[str | SourceConfig]) -> tuple[SourceConfig, ...]:
    """Return the sources of `data.train`: strings form one source, and a list with {shards, weight} is a weighted mixture."""
    entries = (train,) if isinstance(train, str) else train
    if not entries:
        raise UserError("data.train is empty: name the training shards, for example 'data.train=data/train-{0000..0003}.tar'")
    plain = tuple(entry for entry in entries if isinstance(entry, str))
    if len(plain) == len(entries):
        return (SourceConfig(shards=plain),)
    return tuple(SourceConfig(shards=entry) if isinstance(entry, str) else entry for entry in entries)


def open_sources(config: DataConfig, seed: int, labels: Labels | None = None) -> TrainSources:
    """Index the training shards and return them as sources. A damaged shard contributes the samples before the damage.

    `labels` is passed to SampleStore. Raises UserError if a shard is missing, cannot be reached or can only be
    streamed, and if too many shards are damaged (see `_check_damage`).
    """
    if config.sequential:
        raise UserError("data.sequential=true has no epoch and no index: give durations in steps or samples")
    retries = Retries(config.read_attempts, config.read_timeout_s)
    stores, sources = [], source_configs(config.train)
    for source in sources:
        urls = expand_shards(source.shards, allow_shell=config.allow_shell)
        if any(url.startswith("pipe:") for url in urls):
            raise UserError("a pipe: source cannot seek: set data.sequential=true")
        indices = index_shards(urls, config.index_cache, retries)
        stores.append(SampleStore(indices, config.image_keys, config.captions, retries, labels))
    damaged = _check_damage([index for store in stores for index in store.indices], config.max_bad_fraction)
    weighted = [Source(store.counts, source.weight) for store, source in zip(stores, sources, strict=True)]
    return TrainSources(tuple(stores), Plan(weighted, seed, config.window_shards), damaged)


def _check_damage(indices: Sequence[ShardIndex], most: float) -> tuple[BadSample, ...]:
    """Return the damaged shards, each with its reason.

    Raises UserError if no shard is left, or if at least three shards are damaged and they are more than the fraction
    `most` of all.
    """
    damaged = [index for index in indices if index.damage]
    if damaged and not any(map(len, indices)):
        raise UserError(f"data.train: no shard can be used; the first, {damaged[0].url}: {damaged[0].damage}")
    if len(damaged) >= _MANY_DAMAGED and len(damaged) > most * len(indices):
        raise UserError(
            f"data.train: {len(damaged)} of {len(indices)} shards are damaged, more than data.max_bad_fraction={most:g}; the "
            f"first, {damaged[0].url}: {damaged[0].damage}. flexiclip data check names all: write them again, or leave them out"
        )
    return tuple(BadSample(index.url, "", f"{index.damage} ({len(index)} samples before that are used)") for index in damaged)


class TrainDataset:
    """A map-style dataset over the positions of a Plan, which never end."""

    def __init__(self, sources: TrainSources, transform: TrainTransform, seed: int) -> None:
        self.sources, self.transform, self.seed = sources, transform, seed
        self.note: Note = silent  # called with what is about to be done
        self._windows: dict[int, tuple[int, int]] = {}  # source -> (epoch, window) last entered

    def __getitem__(self, position: int) -> TrainSample:
        """Return the sample at a position. Raises UserError if MAX_BAD samples in a row cannot be read."""
        planned = self.sources.plan[position]
        store = self.sources.stores[planned.source]
        self.note("reading", store.urls[planned.shard], store.key(planned.shard, planned.sample))
        self._enter(planned)
        number = store.number(planned.shard, planned.sample)
        drawn = stream(self.seed, Draw.AUGMENT, planned.source, planned.epoch, number)
        sample, bad = self._read(store, planned, number)
        self.note("augmenting", sample.shard, sample.key)
        return draw_view(sample, self.transform, drawn, bad)

    def _read(self, store: SampleStore, planned: PlannedSample, number: int) -> tuple[Sample, tuple[BadSample, ...]]:
        """Return a planned sample, or its substitute, and the unreadable samples that were met before it."""
        bad: list[BadSample] = []
        shard, sample = planned.shard, planned.sample
        while len(bad) < MAX_BAD:
            try:
                return store.read(shard, sample, self.transform.min_side, self.note), tuple(bad)
            except BadSample as error:
                bad.append(error)
            drawn = below(len(store), self.seed, Draw.SUBSTITUTE, planned.source, planned.epoch, number, len(bad))
            shard, sample = store.locate(drawn)
        raise UserError(
            f"data.train: {MAX_BAD} samples in a row cannot be used, the last one {bad[-1]}: run flexiclip data check"
        )

    def _enter(self, planned: PlannedSample) -> None:
        """Prefetch the shards of a window when the first of its samples is read."""
        if self._windows.get(planned.source) != (planned.epoch, planned.window):
            self._windows[planned.source] = (planned.epoch, planned.window)
            urls = self.sources.stores[planned.source].urls
            prefetch(urls[shard] for shard in self.sources.plan.window(planned))


def draw_view(sample: Sample, transform: TrainTransform, stream: Stream, bad: tuple[BadSample, ...] = ()) -> TrainSample:
    """Draw a caption and a view of the sample. The draws depend on `stream` alone."""
    # A caption is always drawn, so that the view does not depend on which captions are read.
    number = int(stream.random() * max(1, len(sample.captions)))
    caption = sample.captions[number] if sample.captions else ""
    return TrainSample(transform(sample.image, stream), caption, sample.name, bad, sample.labels)
