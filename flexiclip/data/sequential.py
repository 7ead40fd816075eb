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
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, TypeVar

from torch.utils.data import IterableDataset, get_worker_info

from flexiclip.config import DataConfig
from flexiclip.data.batch import Batch, BatchOrError, Collate, RankSteps, TrainSample, shared
from flexiclip.data.dataset import MAX_BAD, draw_view, source_configs
from flexiclip.data.images import TrainTransform
from flexiclip.data.index import split_name
from flexiclip.data.remote import PIPE, SHELL, expand_shards, filesystem, is_remote, local_path
from flexiclip.data.samples import BadSample, Labels, Members, Sample, build_sample
from flexiclip.data.tar_walk import BLOCK
from flexiclip.data.worker_watch import Note, Notes, silent
from flexiclip.draws import Draw, below, stream
from flexiclip.errors import UserError

T = TypeVar("T")
_SHUFFLE = 1000  # samples in the shuffle buffer of each worker and source, still encoded
_log = logging.getLogger(__name__)


class SequentialDataset(IterableDataset[BatchOrError]):
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

    def __iter__(self) -> Iterator[BatchOrError]:
        """Yield the batches of this worker's steps, or the error that ends them."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        samples = self._samples(worker)
        try:
            for step in self.steps.numbers[worker::workers]:
                yield shared(self._batch(step, samples))
        except UserError as error:
            yield error

    def _batch(self, step: int, samples: Iterator[TrainSample]) -> Batch:
        """Return the batch of a step.

        A stream has no sample before the batch, so mixup mixes the first image with the last one.
        """
        if self._notes is not None:
            self._notes.step = step
        drawn = [next(samples) for _ in range(self.steps.size)]
        self.note("tokenising", "", "")
        batch = self.collate(step, drawn, before=drawn[-1])
        self.note("idle", "", "")
        return batch

    def _samples(self, worker: int) -> Iterator[TrainSample]:
        """Yield samples drawn from the sources by their weights, without end."""
        key = (self.steps.rank, worker, self.steps.start_step)
        drawn = stream(self.steps.seed, Draw.SEQUENTIAL, *key)
        rng = random.Random(below(2**63, self.steps.seed, Draw.SEQUENTIAL, *key, 1))  # noqa: S311
        readers = [_Reader(self.config.allow_shell, self.note) for _ in self.urls]
        streams = [self._stream(reader, urls, rng) for reader, urls in zip(readers, self.urls, strict=True)]
        while True:
            (source,) = rng.choices(range(len(streams)), self.weights)
            sample = next(streams[source])
            self.note("augmenting", sample.shard, sample.key)
            yield draw_view(sample, self.transform, drawn, readers[source].take_bad())

    def _stream(self, reader: _Reader, urls: Sequence[str], rng: random.Random) -> Iterator[Sample]:
        """Yield the shuffled samples of one source, without end."""
        import webdataset

        seed = rng.getrandbits(63)
        shards = webdataset.ResampledShards(urls, deterministic=True, worker_seed=lambda: seed)
        shuffled = webdataset.filters.shuffle(_SHUFFLE, rng=random.Random(seed))(reader.members(shards))  # noqa: S311
        images, captions, min_side, labels = self.config.image_keys, self.config.captions, self.transform.min_side, self.labels
        return reader.built(shuffled, lambda members: build_sample(members, images, captions, min_side, labels))


def stream_captions(config: DataConfig) -> Iterator[str]:
    """Yield every readable caption of the shards once, in order."""
    for source in source_configs(config.train):
        reader = _Reader(config.allow_shell)
        shards = ({"url": url} for url in expand_shards(source.shards, allow_shell=config.allow_shell))
        for captions in reader.built(reader.members(shards), lambda members: members.captions(config.captions)):
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

    def members(self, shards: Iterable[dict[str, str]]) -> Iterator[Members]:
        """Yield the members of each sample in a stream of {"url": shard}."""
        from webdataset.tariterators import group_by_keys, tar_file_expander

        # webdataset would make samples of dotfiles; split_name leaves them out, as the index does.
        files = tar_file_expander(
            self._open(shards), handler=self._handle, select_files=lambda name: split_name(name) is not None
        )
        for sample in group_by_keys(files, handler=self._handle):
            yield Members(sample["__url__"], sample["__key__"], sample)

    def built(self, samples: Iterable[Members], build: Callable[[Members], T]) -> Iterator[T]:
        """Yield build(members) of every sample for which it does not raise BadSample."""
        self.note("reading", self.shard, "")
        for members in samples:
            self.note("decoding", members.shard, members.key)
            try:
                built = build(members)
            except BadSample as error:
                self._skip(error)
                continue
            self.in_a_row = 0
            yield built
            self.note("reading", self.shard, "")

    def _open(self, shards: Iterable[dict[str, str]]) -> Iterator[dict[str, object]]:
        """Open one shard after the other, and record those that cannot be opened or end early."""
        for shard in shards:
            self.shard = shard["url"]
            self.note("reading", self.shard, "")
            try:
                stream = _Watched(_open(self.shard, self.allow_shell))
            except (UserError, OSError) as error:
                self._skip(BadSample(self.shard, "", str(error)))
                continue
            with stream.inner:
                yield {"url": self.shard, "stream": stream}
                if stream.ended_early():
                    self._skip(BadSample(self.shard, "", "the shard is damaged or truncated: the samples before that were used"))

    def _handle(self, error: Exception) -> bool:
        """Record an error of webdataset, and tell it to go on."""
        reason = error.args[0] if error.args else ""  # webdataset appends its stream objects to args
        self._skip(BadSample(self.shard, "", f"{type(error).__name__}: {reason}"))
        return True

    def _skip(self, bad: BadSample) -> None:
        """Record a bad sample or shard that is skipped. Raises UserError if too many in a row are bad."""
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
        if len(self.head) < BLOCK:
            self.head += data[: BLOCK - len(self.head)]
        self.tail = (self.tail + data[-BLOCK:])[-BLOCK:]
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
            self.tail = (self.tail + data)[-BLOCK:]
        return bool(self.tail.strip(b"\0"))


def _open(url: str, allow_shell: bool) -> IO[bytes]:
    """Open a shard or a `pipe:` command as a stream that is read from front to back. Raises UserError and OSError."""
    if url.startswith(PIPE):
        if not allow_shell:
            raise UserError(SHELL.format(url))
        from webdataset.gopen import gopen

        return gopen(url, "rb")
    try:  # not with webdataset's gopen, which runs curl, gsutil or ais depending on the URL's scheme
        if not is_remote(url):
            return open(local_path(url), "rb")
        fs, path = filesystem(url)
        return fs.open(path, "rb")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"shard {url}: cannot be opened: {type(error).__name__}: {error}") from None
