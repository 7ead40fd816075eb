"""Batches from shards that can only be read from front to back (`data.sequential=true`).

These are compressed tar files, pipes and servers without byte ranges. webdataset's own pipeline reads them: shards are
drawn with replacement, streamed, grouped into samples and shuffled in a buffer. Every rank and worker draws its own
shards without end, so all ranks get the same number of batches. There is no epoch and no exact resume: a run that
restarts at step s draws fresh shards from (seed, s). Every sample or shard that cannot be read is named in the batch's
`bad`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, cast

from torch.utils.data import IterableDataset, get_worker_info

from flexiclip.config import DataConfig
from flexiclip.data.batch import Batch, Collate, Item, RankSteps, shared
from flexiclip.data.dataset import MAX_BAD, make_item, source_configs
from flexiclip.data.images import TrainTransform
from flexiclip.data.index import split_name
from flexiclip.data.reading import open_stream
from flexiclip.data.remote import PIPE, SHELL, expand_shards
from flexiclip.data.samples import BadSample, Labels, Sample, build_sample, read_captions
from flexiclip.data.worker_watch import Note, Notes, silent
from flexiclip.draws import Draw, below, stream
from flexiclip.errors import RunError, UserError

_SHUFFLE = 1000  # samples in the shuffle buffer of each worker and source, still encoded
_BLOCK = 512  # bytes of a tar header
_log = logging.getLogger(__name__)

_Raw = dict[str, Any]  # webdataset's sample: __url__, __key__ and extension -> bytes


class SequentialDataset(IterableDataset[Batch | UserError | RunError]):
    """The batches of one rank's steps, which the workers produce in turn."""

    def __init__(
        self, config: DataConfig, labels: Labels | None, transform: TrainTransform, collate: Collate, steps: RankSteps
    ) -> None:
        self.config, self.labels, self.transform, self.collate, self.steps = config, labels, transform, collate, steps
        self._notes: Notes | None = None
        self.note: Note = silent  # called with what is about to be done
        sources = source_configs(config.train)
        self.urls = [expand_shards(source.shards, allow_shell=config.allow_shell) for source in sources]
        largest = max(source.weight for source in sources)
        self.weights = [source.weight / largest for source in sources]  # relative to the largest, so that their sum is finite
        if steps.rank == 0:
            _log.info("data.sequential: a resumed run draws fresh shards, so it does not repeat the uninterrupted one exactly")

    def watched_by(self, notes: Notes) -> None:
        """From now on, write down in `notes` what is being done."""
        self._notes = self.note = notes

    def __iter__(self) -> Iterator[Batch | UserError | RunError]:
        """Yield the batches of this worker's steps, or the error that ends them."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        items = self._items(worker)
        try:
            for step in self.steps.numbers[worker::workers]:
                yield shared(self._batch(step, items))
        except UserError as error:  # yielded as a value, because torch would hide its text in a worker's traceback
            yield error

    def _batch(self, step: int, items: Iterator[Item]) -> Batch:
        """Return the batch of a step.

        A stream has no sample before the batch, so mixup mixes the first image with the last one.
        """
        if self._notes is not None:
            self._notes.step = step
        drawn = [next(items) for _ in range(self.steps.size)]
        self.note("tokenising", "", "")
        batch = self.collate(step, drawn, before=drawn[-1])
        self.note("idle", "", "")
        return batch

    def _items(self, worker: int) -> Iterator[Item]:
        """Yield items drawn from the sources by their weights, without end."""
        place = (self.steps.rank, worker, self.steps.start_step)
        drawn = stream(self.steps.seed, Draw.SEQUENTIAL, *place)
        choice = random.Random(below(2**63, self.steps.seed, Draw.SEQUENTIAL, *place, 1))  # noqa: S311
        readers = [_Reader(self.config.allow_shell, self.note) for _ in self.urls]
        streams = [self._stream(reader, urls, choice) for reader, urls in zip(readers, self.urls, strict=True)]
        while True:
            (source,) = choice.choices(range(len(streams)), self.weights)
            sample = next(streams[source])
            self.note("augmenting", sample.shard, sample.key)
            yield make_item(sample, self.transform, drawn, readers[source].take_bad())

    def _stream(self, reader: _Reader, urls: Sequence[str], choice: random.Random) -> Iterator[Sample]:
        """Yield the shuffled samples of one source, without end."""
        import webdataset

        seed = choice.getrandbits(63)
        shards = webdataset.ResampledShards(urls, deterministic=True, worker_seed=lambda: seed)
        raw = webdataset.filters.shuffle(_SHUFFLE, rng=random.Random(seed))(reader.samples(shards))  # noqa: S311
        images, captions, min_side, labels = self.config.image_keys, self.config.captions, self.transform.min_side, self.labels
        return reader.keep(raw, lambda url, key, members: build_sample(url, key, members, images, captions, min_side, labels))


def stream_captions(config: DataConfig) -> Iterator[str]:
    """Yield every readable caption of the shards once, in order."""
    for source in source_configs(config.train):
        reader = _Reader(config.allow_shell)
        raw = reader.samples({"url": url} for url in expand_shards(source.shards, allow_shell=config.allow_shell))
        for captions in reader.keep(raw, lambda url, key, members: read_captions(url, key, members, config.captions)):
            yield from captions


class _Reader:
    """webdataset's stages from shard names to samples, with a record of everything that was skipped."""

    def __init__(self, allow_shell: bool, note: Note = silent) -> None:
        self.allow_shell, self.note = allow_shell, note
        self.bad: list[BadSample] = []
        self.shard = ""  # the shard that is being read
        self.in_a_row = 0

    def take_bad(self) -> tuple[BadSample, ...]:
        """Return the bad samples and shards that were met since the last call."""
        bad, self.bad = self.bad, []
        return tuple(bad)

    def samples(self, shards: Any) -> Iterator[_Raw]:
        """Yield the samples of a stream of {"url": shard}, with their members still encoded."""
        from webdataset.tariterators import group_by_keys, tar_file_expander

        # webdataset would make samples of dotfiles; split_name leaves them out, as the index does.
        files = tar_file_expander(
            self._open(shards), handler=self._handle, select_files=lambda name: split_name(name) is not None
        )
        return cast("Iterator[_Raw]", group_by_keys(files, handler=self._handle))

    def keep(self, raw: Iterator[_Raw], build: Callable[[str, str, _Raw], Any]) -> Iterator[Any]:
        """Yield build(shard, key, members) of every sample for which it does not raise BadSample."""
        self.note("reading", self.shard, "")
        for members in raw:
            self.note("decoding", members["__url__"], members["__key__"])
            try:
                built = build(members["__url__"], members["__key__"], members)
            except BadSample as error:
                self._note(error)
                continue
            self.in_a_row = 0
            yield built
            self.note("reading", self.shard, "")

    def _open(self, shards: Any) -> Iterator[dict[str, Any]]:
        """Open one shard after the other, and record those that cannot be opened or end early."""
        for shard in shards:
            self.shard = shard["url"]
            self.note("reading", self.shard, "")
            try:
                stream = _Watched(_open(self.shard, self.allow_shell))
            except (UserError, OSError) as error:
                self._note(BadSample(self.shard, "", str(error)))
                continue
            with stream.inner:
                yield {"url": self.shard, "stream": stream}
                if stream.ended_early():
                    self._note(BadSample(self.shard, "", "the shard is damaged or truncated: the samples before that were used"))

    def _handle(self, error: Exception) -> bool:
        """Record an error of webdataset, and tell it to go on."""
        reason = error.args[0] if error.args else ""  # webdataset appends its stream objects to args
        self._note(BadSample(self.shard, "", f"{type(error).__name__}: {reason}"))
        return True

    def _note(self, bad: BadSample) -> None:
        """Record a bad sample or shard. Raises UserError if too many in a row are bad."""
        self.bad.append(bad)
        self.in_a_row += 1
        if self.in_a_row > MAX_BAD:
            raise UserError(f"data.train: {MAX_BAD} samples or shards in a row cannot be used, the last one {bad}")


class _Watched:
    """A stream that remembers its first and last bytes.

    They show whether the tar file is whole, because tarfile stops silently at a broken header, as if the shard had
    ended.
    """

    def __init__(self, inner: IO[bytes]) -> None:
        self.inner = inner
        self.head = self.tail = b""

    def read(self, size: int = -1) -> bytes:
        """Read like a file."""
        data = self.inner.read(size)
        if len(self.head) < _BLOCK:
            self.head += data[: _BLOCK - len(self.head)]
        self.tail = (self.tail + data[-_BLOCK:])[-_BLOCK:]
        return data

    def ended_early(self) -> bool:
        """Whether a plain tar file has content left, or lacks the zeros that end one.

        Returns False for a compressed file, for which this cannot be told.
        """
        if self.head[257:262] != b"ustar":
            return False
        while data := self.inner.read(2**20):
            if data.strip(b"\0"):
                return True
            self.tail = (self.tail + data)[-_BLOCK:]
        return bool(self.tail.strip(b"\0"))


def _open(url: str, allow_shell: bool) -> IO[bytes]:
    """Open a shard or a `pipe:` command as a stream."""
    if not url.startswith(PIPE):  # not with webdataset's gopen, which runs curl, gsutil or ais depending on the URL's scheme
        return open_stream(url)
    if not allow_shell:
        raise UserError(SHELL.format(url))
    from webdataset.gopen import gopen

    return cast("IO[bytes]", gopen(url, "rb"))
