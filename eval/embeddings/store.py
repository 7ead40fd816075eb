"""Keeps embeddings on disk, so that a second evaluation of the same model and images decodes and encodes nothing.

    flexiclip eval MODEL --suite NAME --embeddings DIR

A file holds the embeddings of one model: those of the images of one data set at one length, or those of a list of texts. Its name
is a hash of everything that determines the numbers: the weights and settings of the model (not its path), the samples, how they
become pixels, and the length. Speeds, records and bad samples are kept with the rows. A file that is damaged, or does not fit the
others, is computed again, with a warning.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from flexiclip_eval.data.images import ImageBlock, Record, Samples, repr_without_addresses, tensor_bytes
from flexiclip_eval.models.protocol import EvalModel, Length
from safetensors import SafetensorError, safe_open
from torch import Tensor

import flexiclip
from flexiclip.distributed import gather_objects, rank
from flexiclip.errors import UserError
from flexiclip.files import save_tensors

log = logging.getLogger("flexiclip.eval")


class StoreError(UserError):
    """The folder of the embeddings cannot be written, which stops the evaluation because it affects every data set."""


class Encoded(NamedTuple):
    """The embeddings of the images of a data set at one length."""

    rows: Tensor
    """Unit rows [N, D] float32, one per image that could be read, over all ranks."""
    images_per_s: float | None
    """The speed of all ranks together; None if it could not be measured."""


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

    def images(
        self, images: ImageBlock, lengths: Sequence[Length], encode: Callable[[Sequence[Length]], dict[Length, Encoded]]
    ) -> dict[Length, Encoded]:
        """Return the embeddings of a data set at `lengths`: those that are kept, and those of `encode`, which are then kept too.

        If all lengths are kept, `images` takes over the kept records, so that no pass is needed. If the passes for the kept
        lengths and for the others could not read the same samples, all lengths are encoded again, with a warning.

        encode: some of the lengths -> their embeddings, from one pass over `images`. All ranks must call this. Raises StoreError.
        """
        kept, samples = self._read_images(images, lengths)
        missing = [length for length in lengths if length not in kept]
        if samples and not missing:
            images.adopt(*samples)
            return kept
        made = encode(missing)
        if samples and not self._agree(images, samples == images.gather()):
            kept, made = {}, encode(lengths)
        records, bad = images.gather()
        about = {"records": [asdict(record) for record in records], "bad": bad}
        for length, encoded in made.items():
            self._write(self._image_file(images, length), encoded.rows, {**about, "images_per_s": encoded.images_per_s})
        return kept | made

    def _read_images(self, images: ImageBlock, lengths: Sequence[Length]) -> tuple[dict[Length, Encoded], Samples | None]:
        """Return (the embeddings of those lengths that all ranks find, the samples of the passes that made them).

        Nothing is returned, with a warning, if these passes could not read the same samples.
        """
        files = {length: self._read(self._image_file(images, length)) for length in lengths}
        everywhere = set.intersection(*gather_objects({length for length, file in files.items() if file is not None}))
        kept: dict[Length, Encoded] = {}
        passes: list[Samples] = []
        for length, file in files.items():
            if file is not None and length in everywhere:
                rows, about = file
                kept[length] = Encoded(rows, about["images_per_s"])
                passes.append(([_record(data) for data in about["records"]], about["bad"]))
        if not passes or not self._agree(images, all(samples == passes[0] for samples in passes)):
            return {}, None
        return kept, passes[0]

    def _agree(self, images: ImageBlock, same: bool) -> bool:
        """Return whether `same` is true on all ranks; if not, warn that the embeddings of `images` are computed again."""
        agreed = all(gather_objects(same))
        if not agreed and rank() == 0:
            reason = "not all lengths have the same readable samples"
            log.warning("embeddings %s: data set %s is computed again: %s", self.folder, images.config.name, reason)
        return agreed

    def texts(self, tokens: Tensor, encode: Callable[[], Tensor]) -> Tensor:
        """Return the embeddings of texts, unit rows [T, D] float32: those that are kept, else those of `encode`.

        The result of `encode` is kept. tokens: [T, L], those of the texts. All ranks must call this. Raises StoreError.
        """
        path = self.folder / f"texts-{_hash(self.weights, list(tokens.shape), _digest(tokens))}.safetensors"
        found = self._read(path)
        if all(gather_objects(found is not None)) and found is not None:
            return found[0]
        rows = encode()
        self._write(path, rows, {})
        return rows

    def _image_file(self, images: ImageBlock, length: Length) -> Path:
        return self.folder / f"images-{_hash(self.weights, images.fingerprint, length)}.safetensors"

    def _read(self, path: Path) -> tuple[Tensor, dict[str, Any]] | None:
        """Return (the rows of a file, the JSON object with them); None if there is none or, with a warning, if it is damaged."""
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                rows, about, stated = file.get_tensor("rows"), file.get_tensor("about"), (file.metadata() or {}).get("sha256")
            if stated != _digest(rows, about):
                raise ValueError("its content has changed since it was written")
            return rows, json.loads(about.numpy().tobytes())
        except (SafetensorError, OSError, ValueError) as error:
            log.warning("embeddings %s is computed again: %s", path, error)
            return None

    def _write(self, path: Path, rows: Tensor, about: Mapping[str, object]) -> None:
        """Write a file on rank 0: aside first and then renamed, so that no reader sees half a file. Raises StoreError."""
        if rank() != 0:
            return
        rows = rows.detach().cpu().contiguous()
        text = torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            save_tensors({"rows": rows, "about": text}, aside, {"sha256": _digest(rows, text)})
            os.replace(aside, path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise StoreError(f"--embeddings {self.folder}: cannot write there: {error.strerror}") from None


def model_fingerprint(loaded: EvalModel) -> str:
    """Return the sha256 (hexadecimal) of all parameters and buffers by name, the model's settings, and flexiclip's version."""
    module = loaded.model
    settings = _settings(module) if loaded.config is None else repr_without_addresses(loaded.config.model)
    digest = hashlib.sha256(f"{flexiclip.__version__}\n{settings}".encode())
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()], key=lambda item: item[0]):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)} {_digest(tensor)}".encode())
    return digest.hexdigest()


def _settings(module: torch.nn.Module) -> str:
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


def _record(data: Mapping[str, Any]) -> Record:
    """Return a record from its JSON data, with tuples in place of JSON's lists."""
    labels = {key: tuple(label) if isinstance(label, list) else label for key, label in data["labels"].items()}
    return Record(**{**data, "captions": tuple(data["captions"]), "labels": labels})


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
