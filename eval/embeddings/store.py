"""Keeps embeddings on disk, so that a second evaluation of the same model and images decodes and encodes nothing.

    flexiclip eval MODEL --suite NAME --embeddings DIR

A file holds the embeddings of one model: those of the images of one data set at one length, or those of a list of texts. Its name
is a hash of everything that determines the numbers: the weights and settings of the model (not its path), the samples, how they
become pixels, and the length. Speeds, records and bad samples are kept with the rows. A file that is damaged, or does not fit the
others, is computed again, with a warning.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from flexiclip_eval.data.images import ImageBlock, Record, repr_without_addresses
from flexiclip_eval.models.protocol import EvalModel, Length
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import flexiclip
from flexiclip.distributed import gather_objects, rank
from flexiclip.errors import UserError

log = logging.getLogger("flexiclip.eval")


class StoreError(UserError):
    """The folder of the embeddings cannot be written, which stops the evaluation because it affects every data set."""


@dataclass(frozen=True)
class Kept:
    """The embeddings that the store has of a data set: unit rows [N, D] float32 and images/s by length.

    `samples` holds the records and the bad samples, which are the same for all of these lengths.
    """

    rows: dict[Length, Tensor] = field(default_factory=dict)
    speeds: dict[Length, float | None] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)


class EmbeddingStore:
    """The embeddings of one model in a folder. Every rank reads; rank 0 writes. Raises StoreError if it cannot write there."""

    def __init__(self, folder: Path, loaded: EvalModel) -> None:
        self.folder, self._loaded = folder, loaded
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):  # an existing folder may be read-only
                pass
        except OSError as error:
            raise StoreError(f"--embeddings {folder}: cannot write there: {error.strerror}") from None

    @functools.cached_property
    def weights(self) -> str:
        """The hash of the model's parameters, buffers and settings."""
        return model_fingerprint(self._loaded)

    def read_images(self, images: ImageBlock, lengths: Sequence[Length]) -> Kept:
        """Return the embeddings of those lengths that all ranks find. All ranks must call this.

        If all lengths are found, `images` takes over the kept records, so that no pass is needed. If the lengths were kept by
        passes that could not read the same samples, nothing is returned, with a warning.
        """
        found: dict[Length, tuple[Tensor, dict[str, Any]]] = {}
        for length in lengths:
            held = self._read(self._image_file(images, length))
            if held is not None:
                found[length] = held
        everywhere = set.intersection(*gather_objects(set(found)))
        found = {length: held for length, held in found.items() if length in everywhere}
        if not found:
            return Kept()
        rows = {length: held for length, (held, _) in found.items()}
        speeds = {length: about["images_per_s"] for length, (_, about) in found.items()}
        samples, *others = ({"records": about["records"], "bad": about["bad"]} for _, about in found.values())
        if not all(gather_objects(all(other == samples for other in others))):
            self._say_anew(images)
            return Kept()
        if len(found) == len(lengths):
            images.adopt([_record(data) for data in samples["records"]], samples["bad"])
        return Kept(rows, speeds, samples)

    def fits(self, images: ImageBlock, kept: Kept) -> bool:
        """Return whether a pass over `images` could read the same samples as those of the kept embeddings; warn if not.

        All ranks must call this, after the pass.
        """
        same = not kept.rows or kept.samples == _samples(images)
        if not all(gather_objects(same)):
            self._say_anew(images)
            return False
        return True

    def write_images(self, images: ImageBlock, rows: dict[Length, Tensor], speeds: dict[Length, float | None]) -> None:
        """Keep the embeddings and speeds of a pass over `images`. All ranks must call this; rank 0 writes. Raises StoreError."""
        about = _samples(images)
        for length, z in rows.items():
            self._write(self._image_file(images, length), z, {**about, "images_per_s": speeds[length]})

    def read_texts(self, tokens: Tensor) -> Tensor | None:
        """Return the unit rows [T, D] float32 of tokens [T, L], or None if a rank has not found them. All ranks call this."""
        held = self._read(self._text_file(tokens))
        return held[0] if all(gather_objects(held is not None)) and held is not None else None

    def write_texts(self, tokens: Tensor, rows: Tensor) -> None:
        """Keep the unit rows [T, D] of texts with tokens [T, L]; rank 0 writes. Raises StoreError."""
        self._write(self._text_file(tokens), rows, {})

    def _say_anew(self, images: ImageBlock) -> None:
        if rank() == 0:
            log.warning(
                "embeddings %s: data set %s computed anew: not all lengths are of the same readable samples",
                self.folder,
                images.config.name,
            )

    def _image_file(self, images: ImageBlock, length: Length) -> Path:
        return self.folder / f"images-{_hash(self.weights, images.fingerprint, length)}.safetensors"

    def _text_file(self, tokens: Tensor) -> Path:
        return self.folder / f"texts-{_hash(self.weights, list(tokens.shape), _digest(tokens))}.safetensors"

    def _read(self, path: Path) -> tuple[Tensor, dict[str, Any]] | None:
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                rows, about, said = file.get_tensor("rows"), file.get_tensor("about"), (file.metadata() or {}).get("sha256")
            if said != _digest(rows, about):
                raise ValueError("its content is not what was written")
            return rows, json.loads(about.numpy().tobytes())
        except (SafetensorError, OSError, ValueError) as error:
            log.warning("embeddings %s: computed anew: %s", path, error)
            return None

    def _write(self, path: Path, rows: Tensor, about: dict[str, Any]) -> None:
        """Write a file on rank 0: aside first and then renamed, so that no reader sees half a file. Raises StoreError."""
        if rank() != 0:
            return
        rows = rows.detach().cpu().contiguous()
        text = torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            save_file({"rows": rows, "about": text}, aside, metadata={"sha256": _digest(rows, text)})
            os.replace(aside, path)
        except (OSError, SafetensorError) as error:
            aside.unlink(missing_ok=True)
            raise StoreError(f"--embeddings {self.folder}: cannot write there: {error}") from None


def _samples(images: ImageBlock) -> dict[str, Any]:
    """Return the records and the bad samples of a pass as plain data, just as they come back from JSON."""
    records, bad = images.gather()
    plain: dict[str, Any] = json.loads(json.dumps({"records": [dataclasses.asdict(record) for record in records], "bad": bad}))
    return plain


def model_fingerprint(loaded: EvalModel) -> str:
    """Return the sha256 (hexadecimal) of all parameters and buffers by name, the model's settings, and flexiclip's version."""
    module = loaded.model
    settings = _said_by(module) if loaded.config is None else repr_without_addresses(loaded.config.model)
    digest = hashlib.sha256(f"{flexiclip.__version__}\n{settings}".encode())
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()], key=lambda item: item[0]):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)} {_digest(tensor)}".encode())
    return digest.hexdigest()


def _said_by(module: torch.nn.Module) -> str:
    """Return the settings of another library's model as text: the repr of its modules and their plain attributes.

    The repr alone is not enough; for example, it does not contain the number of attention heads.
    """
    plain = (bool, int, float, str, tuple, type(None))
    found = [
        (name, key, repr_without_addresses(value))
        for name, each in module.named_modules()
        for key, value in sorted(vars(each).items())
        if isinstance(value, plain) and key != "training"
    ]
    return f"{repr_without_addresses(module)}\n{found}"


def _record(data: dict[str, Any]) -> Record:
    """Return a record from its JSON data, with tuples in place of JSON's lists."""
    labels = {key: tuple(label) if isinstance(label, list) else label for key, label in data["labels"].items()}
    return Record(**{**data, "captions": tuple(data["captions"]), "labels": labels})


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
