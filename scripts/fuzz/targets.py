"""Defines the fuzz targets: four readers of files from other sources, and the errors that each may raise.

A target writes the files of a case into its folder and reads them as a user's command would. It returns a few words about the
result.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.fuzz.case import Case, unpack, write

if TYPE_CHECKING:
    from flexiclip.formats.imported import Imported

CAPTIONS = ("txt", "json:caption", "json:a.b", "lines.txt:lines")
OPEN_CLIP_ARCH = "fuzz-tiny"


@dataclass(frozen=True)
class Target:
    """A reader under test. run(files, folder) reads a folder with just these files. documented: the errors that it may raise."""

    run: Callable[[Case, Path], str]
    documented: tuple[type[Exception], ...]

    def prepare(self, data: bytes, folder: Path) -> Callable[[], str]:
        """Empty `folder`, write the case into it, and return a function that runs the reader on it."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        files = unpack(data)
        write(files, folder)
        return lambda: self.run(files, folder)


def make_target(name: str) -> Target:
    """Return the target with this name. The code under test is imported here, so that an engine can instrument it."""
    from flexiclip.data.samples import BadSample
    from flexiclip.errors import UserError

    documented = {"index": (UserError, BadSample), "samples": (BadSample,), "recipe": (UserError,), "weights": (UserError,)}
    run = {"index": _index, "samples": _samples, "recipe": _recipe, "weights": _weights}
    return Target(run[name], documented[name])


def import_libraries() -> None:
    """Import the libraries that the weight readers use, so that their imports do not count for any input."""
    import open_clip
    import timm
    import torch
    import transformers

    assert all((open_clip, timm, torch, transformers.CLIPModel, transformers.AutoTokenizer))


TARGETS = ("index", "samples", "recipe", "weights")


def _index(files: Case, folder: Path) -> str:
    """Index shard.tar, with the file next to it as its cache, and read every member that the index names.

    Of a damaged shard, the samples before the damage are read, as in training.
    """
    from flexiclip.data.index import index_shards, require_whole
    from flexiclip.data.samples import BadSample, SampleStore

    if (folder / "shard.tar").is_file():
        # The caches in the seeds have this time stamp. With another one they would not be read.
        os.utime(folder / "shard.tar", ns=(1, 1))
    indices = index_shards([str(folder / "shard.tar")])
    store = SampleStore(indices, ("jpg", "png"), ())
    outcomes = set()
    for number in range(min(len(store), 50)):
        shard, sample = store.locate(number)
        try:
            members = [store.member(shard, sample, member.name) for member in store.indices[shard].members(sample)]
            outcomes.add(f"{min(len(members), 3)} members")
        except BadSample:
            outcomes.add("unreadable")
        assert store.key(shard, sample), "a sample has a key"
    require_whole(indices)
    return ", ".join(sorted(outcomes)) or "no samples"


def _samples(files: Case, folder: Path) -> str:
    """Decode, caption and crop a sample as in training. The files are its members, and their names the extensions."""
    from flexiclip.data.images import TrainTransform
    from flexiclip.data.samples import Members, build_sample
    from flexiclip.draws import Stream

    transform = TrainTransform((16, 16), (0.4, 1.0), (0.75, 4 / 3), True, "bicubic")
    sample = build_sample(Members("shard.tar", "key", files), ("jpg", "png", "webp"), CAPTIONS, transform.min_side)
    assert sample.image.mode == "RGB"
    assert sample.captions
    assert all(caption.strip() for caption in sample.captions)
    pixels = transform(sample.image, Stream(0))
    assert pixels.shape == (3, 16, 16)
    assert str(pixels.dtype) == "torch.uint8"
    return f"{min(len(sample.captions), 3)} captions{', json' if sample.json else ''}"


def _recipe(files: Case, folder: Path) -> str:
    """Load recipe.yaml with the lines of overrides.txt, turn it into plain data and back, and its durations into steps.

    One recipe in eight is also written as text and read back. That is only done for some, because it takes most of the time.
    """
    from flexiclip.config import Config, Duration, dump, from_dict, load, to_dict, to_steps
    from flexiclip.errors import UserError

    overrides = [line for line in files.get("overrides.txt", b"").decode("utf-8", "replace").split("\n") if line]
    config = load(folder / "recipe.yaml", overrides)
    plain = to_dict(config)
    again = from_dict(Config, plain)
    if zlib.crc32(files.get("recipe.yaml", b"")) % 8 == 0:
        (folder / "again.yaml").write_text(dump(config), encoding="utf-8")
        again = load(folder / "again.yaml")
    assert again == config or any(odd in str(plain) for odd in ("nan", "${")), "a recipe reads back equal"
    for section in (config.train, config.optimizer, config.eval):
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            if isinstance(value, Duration):
                try:
                    assert math.isfinite(to_steps(value, batch=config.train.global_batch_size, samples=1000, total=1000))
                except UserError:
                    continue  # minutes have no steps
    return "config"


def _weights(files: Case, folder: Path) -> str:
    """Read a weight file, a Hugging Face or open_clip folder, a model folder or checkpoints.

    The name of the case's first file decides which of these it is.
    """
    first = next(iter(files), "")
    text = folder / "text.model" if "text.model" in files else None
    if first.startswith("model/"):
        return _model_folder(folder / "model")
    if first.startswith("checkpoints/"):
        return _checkpoint(folder / "checkpoints")
    if first.startswith("local/"):
        from flexiclip.formats.open_clip_reader import import_open_clip

        return _built(import_open_clip(f"local-dir:{folder / 'local'}", text=text))
    if first.startswith("hf/"):
        from flexiclip.formats.transformers_reader import import_transformers

        return _built(import_transformers(folder / "hf", text))
    if first.endswith(".npz"):
        from flexiclip.formats.big_vision_reader import import_big_vision

        return _built(import_big_vision(folder / first, text))
    if first.startswith("open_clip."):
        from flexiclip.formats.open_clip_reader import import_open_clip

        return _built(import_open_clip(OPEN_CLIP_ARCH, str(folder / first), text))
    from flexiclip.formats.timm_reader import import_timm

    return _built(import_timm(folder / "timm" if first.startswith("timm/") else folder / (first or "nothing")))


def _built(imported: Imported) -> str:
    from flexiclip.formats.run import build_imported

    loaded = build_imported(imported, "the file")
    return "two towers" if loaded.config.model.text else "image tower"


def _model_folder(folder: Path) -> str:
    from flexiclip.model_folder import load_model

    loaded = load_model(folder)
    return f"model with {type(loaded.tokenizer).__name__}"


def _checkpoint(root: Path) -> str:
    from flexiclip.train.remote_store import open_store

    store = open_store(str(root), root / ".saving")
    latest = store.latest()
    if latest is None:
        return "no checkpoint"
    checkpoint = store.open(latest, root / ".fetched")
    return f"checkpoint of {min(len(checkpoint.weights()), 1)} weights, {min(len(checkpoint.moments()), 1)} moments"
