"""Runs exported encoders as a model: the .onnx files of `flexiclip export image|text`, with onnxruntime on the CPU.

    flexiclip export image MODEL --seqhw 5,8,15 --output out/m.onnx && flexiclip export text MODEL --output out/m-text.onnx
    flexiclip eval out --suite openmoji         # every .onnx file of the folder; out/m takes those whose names begin with m

Each image file has one length. The metadata of a file say what it is, how its images are prepared and which tokenizer its texts
need (flexiclip/export/encoder_facts.py). They are read first. The graph is loaded when it is first used, so a length that is not
evaluated takes no memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from flexiclip_eval.models.protocol import ForeignModel, Geometry, Length, side
from torch import Tensor, nn

from flexiclip.config import TokenizerConfig
from flexiclip.data.images import EvalTransform
from flexiclip.data.tokenizers import AbsentTokenizer, Tokenizer, load_tokenizer
from flexiclip.errors import UserError
from flexiclip.export.encoder_facts import KEY, EncoderFacts, ImageFacts, facts_from_json, tokenizer_folder
from flexiclip.export.onnx import open_session
from flexiclip.files import sha256_of
from flexiclip.libraries import library_errors, require

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Run = Callable[[Tensor], Tensor]
_AGAIN = "; export it again"


def load_onnx(source: str, files: Sequence[Path]) -> ForeignModel:
    """Open exported files as one model: image encoders of different lengths, and at most one text encoder. Raises UserError."""
    for package in ("onnx", "onnxruntime"):
        require(package, "flexiclip[export]", f"{source}: exported encoders")
    found: dict[tuple[str, Length], _Encoder] = {}
    for file in files:
        encoder = _Encoder(file, _read_facts(file))
        role, about = encoder.facts.role, encoder.facts.image
        twin = found.setdefault((role, about.seqhw if about is not None else None), encoder)
        if twin is not encoder:
            what = "a text encoder" if about is None else f"the image encoder at seqhw {about.seqhw}"
            raise UserError(f"{twin.path} and {file.name} are both {what}: move one away, or give a prefix of the others")
    images = {length: encoder for (role, length), encoder in found.items() if role == "image"}
    if not images:
        raise UserError(f"{source}: no image encoder among {', '.join(file.name for file in files)}; export one next to them")
    _check_kinship(list(found.values()), list(images.values()))
    return _joined(dict(sorted(images.items(), key=lambda item: item[0] or 0)), found.get(("text", None)))


def _joined(images: dict[Length, _Encoder], text: _Encoder | None) -> ForeignModel:
    first = next(iter(images.values())).facts
    about = first.images()
    transform = EvalTransform(about.image_size, about.preprocess)
    return ForeignModel(
        _Encoders(images, text).eval(),
        transform.pixels if about.normalize_inside else transform.__call__,
        AbsentTokenizer(TokenizerConfig(), {}) if text is None else _tokenizer(text),
        {length: _geometry(encoder.facts.images()) for length, encoder in images.items()},
        tuple(images),
        name=first.architecture,
        trained=about.trained_seqhw,
    )


def _geometry(about: ImageFacts) -> Geometry:
    return Geometry(side(*about.image_size), side(*about.patch_size), about.gflops)


def _tokenizer(text: _Encoder) -> Tokenizer:
    about = text.facts.texts()
    folder = text.path.with_name(tokenizer_folder(text.path.stem))
    try:
        return load_tokenizer(folder, about.tokenizer, about.tokenizer_sha256)
    except UserError as error:
        raise UserError(f"{text.path}: its tokenizer: {error}") from None


def _check_kinship(encoders: list[_Encoder], images: list[_Encoder]) -> None:
    """Raise UserError unless all files come from one model and take equally prepared images, which are decoded only once."""
    first, about = encoders[0], images[0].facts.images()
    alike = (about.image_size, about.preprocess, about.normalize_inside)
    for other in encoders:
        if (other.facts.weights_sha256, other.facts.embed_dim) != (first.facts.weights_sha256, first.facts.embed_dim):
            raise UserError(f"{first.path} and {other.path.name} come from different models: give a folder or a prefix for each")
    for other in images:
        about = other.facts.images()
        if (about.image_size, about.preprocess, about.normalize_inside) != alike:
            raise UserError(f"{images[0].path} and {other.path.name} take differently prepared images: export them alike")


@dataclass(frozen=True)
class _Encoder:
    """An exported file and the facts in its metadata."""

    path: Path
    facts: EncoderFacts

    @functools.cached_property
    def run(self) -> Run:
        """A function from a batch [B, ...] to its embeddings [B, D] float32 on the same device. Raises UserError."""
        session = _open(self)
        batch = session.get_inputs()[0].shape[0]
        fixed = batch if isinstance(batch, int) else None

        def run(x: Tensor) -> Tensor:
            parts = [x] if fixed is None else x.split(fixed)
            return torch.cat([_call(session, self.path, part, fixed or len(part)) for part in parts]).to(x.device)

        return run


class _Encoders(nn.Module):
    """The files as a torch module. Its repr has the hashes of the files, so that kept embeddings are found by their content."""

    def __init__(self, images: dict[Length, _Encoder], text: _Encoder | None) -> None:
        super().__init__()
        self._images, self._text = images, text

    def encode_image(self, images: Tensor, seqhw: Length = None, normalize: bool = True) -> Tensor:
        """Encode images [B, 3, H, W], prepared by the transform: unit rows [B, D] float32.

        seqhw: a length that one of the files has; None: the length of the first file.
        """
        length = next(iter(self._images)) if seqhw is None else seqhw
        return self._images[length].run(images)

    def encode_text(self, tokens: Tensor, normalize: bool = True) -> Tensor:
        """Encode tokens [B, L]: unit rows [B, D] float32."""
        assert self._text is not None, "the harness asks has_text first"
        return self._text.run(tokens)

    def extra_repr(self) -> str:
        """Return the sha256 of every file, one per line."""
        files = [*self._images.values(), *([] if self._text is None else [self._text])]
        return "\n".join(sorted(sha256_of(encoder.path) for encoder in files))


def _read_facts(path: Path) -> EncoderFacts:
    """Read the facts from the metadata of a file, without loading it into onnxruntime. Raises UserError."""
    import onnx

    with library_errors(f"{path}: cannot be read as ONNX", _AGAIN):
        properties = onnx.load_model(str(path), load_external_data=False).metadata_props
    found = [entry.value for entry in properties if entry.key == KEY]
    if not found:
        raise UserError(f"{path}: it does not say what it is: only what this version's `flexiclip export` writes can be scored")
    try:
        return facts_from_json(found[0])
    except UserError as error:
        raise UserError(f"{path}: its metadata {KEY!r}: {error}") from None


def _open(encoder: _Encoder) -> InferenceSession:
    """Open an onnxruntime session. Raises UserError if the input or output of the graph differs from the facts."""
    with library_errors(f"{encoder.path}: onnxruntime cannot load it", _AGAIN):
        session = open_session(encoder.path)
    facts, given, found = encoder.facts, session.get_inputs(), session.get_outputs()
    wanted: tuple[object, ...] = ("tensor(int64)", 2, facts.embed_dim)
    seen: tuple[object, ...] = (given[0].type, len(given[0].shape), found[0].shape[-1])
    if facts.image is not None:
        kind = "tensor(uint8)" if facts.image.normalize_inside else "tensor(float)"
        wanted, seen = (kind, [3, *facts.image.image_size], facts.embed_dim), (seen[0], given[0].shape[1:], seen[2])
    if len(given) != 1 or len(found) != 1 or wanted != seen:
        raise UserError(f"{encoder.path}: its graph is {seen}, its metadata say {wanted}; export it again")
    return session


def _call(session: InferenceSession, path: Path, batch: Tensor, rows: int) -> Tensor:
    """Return the embeddings [B, D] of a batch [B, ...], padded to `rows` for the run, as a file of a fixed batch size needs."""
    given = batch.detach().cpu()
    if len(given) < rows:
        given = torch.cat([given, given[:1].expand(rows - len(given), *given.shape[1:])])
    with library_errors(f"{path}: onnxruntime cannot run it", _AGAIN):
        (found,) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
    return torch.from_numpy(found)[: len(batch)]
