"""What an exported encoder says of itself, so that others can feed it: written by export/, read back by the harness.

    import json, onnxruntime
    session = onnxruntime.InferenceSession("image-5.onnx")
    json.loads(session.get_modelmeta().custom_metadata_map["flexiclip"])

One JSON object, in an ONNX file under the key KEY of its metadata_props. It names no place on the exporter's disk.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from flexiclip.config.load import from_dict, to_dict
from flexiclip.config.schema import PreprocessConfig, TokenizerConfig
from flexiclip.errors import UserError

KEY, FORMAT = "flexiclip", 1
LARGEST = 2**14  # pixels of a side, tokens of a text


@dataclass(frozen=True)
class ImageFacts:
    """An image encoder at its one length. Pairs are (height, width)."""

    image_size: tuple[int, int]  # pixels
    grid: tuple[int, int]  # patches; their product is the length
    patch_size: tuple[int, int]  # pixels
    gflops: float  # one image, a multiply-add counting 2
    preprocess: PreprocessConfig
    normalize_inside: bool  # the input is uint8 pixels; else float32, normalised as `preprocess` says
    trained_seqhw: tuple[int, ...]  # the lengths that the model was made for

    def __post_init__(self) -> None:
        if not all(0 < side <= LARGEST for side in (*self.image_size, *self.grid, *self.patch_size)):
            raise UserError(f"image sizes {self.image_size}, {self.grid}, {self.patch_size}: expected 1 to {LARGEST}")

    @property
    def seqhw(self) -> int | None:
        """The side of a square grid."""
        return self.grid[0] if self.grid[0] == self.grid[1] else None


@dataclass(frozen=True)
class TextFacts:
    """A text encoder. Its tokenizer's files lie beside it, in the folder that is named after it (`tokenizer_folder`)."""

    tokenizer: TokenizerConfig  # kind and settings; no path
    tokenizer_sha256: str  # over its settings and files
    vocab_size: int
    pad_id: int
    eos_id: int
    open_length: bool  # fewer columns than tokenizer.context_length may be given

    def __post_init__(self) -> None:
        if self.tokenizer.context_length > LARGEST:
            raise UserError(f"tokenizer.context_length={self.tokenizer.context_length} exceeds {LARGEST}")


@dataclass(frozen=True)
class EncoderFacts:
    """Which encoder of which model a file holds, and what that half needs."""

    format: int
    role: Literal["image", "text"]
    architecture: str
    source: str  # name of the run or the model folder
    weights_sha256: str  # of the model folder's weights: the two halves of a model agree in it
    embed_dim: int
    quantize: Literal["int8"] | None = None
    image: ImageFacts | None = None
    text: TextFacts | None = None

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise UserError(f"format={self.format}: this version reads {FORMAT}; update flexiclip, or export again")
        if (self.image is not None, self.text is not None) != (self.role == "image", self.role == "text"):
            raise UserError(f"role={self.role}: exactly the section of that name must be given")

    def images(self) -> ImageFacts:
        """The section of an image encoder."""
        assert self.image is not None, "asked of an image encoder"
        return self.image

    def texts(self) -> TextFacts:
        """The section of a text encoder."""
        assert self.text is not None, "asked of a text encoder"
        return self.text


def facts_to_json(facts: EncoderFacts) -> str:
    """The text that stands in a file."""
    return json.dumps(to_dict(facts))


def facts_from_json(text: str) -> EncoderFacts:
    """The facts of such a text. UserError that says what is wrong in it."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"no JSON: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"expected an object, not a {type(data).__name__}")
    return from_dict(EncoderFacts, data)


def tokenizer_folder(stem: str) -> str:
    """The folder of the tokenizer's files beside a text encoder: text.onnx -> text_tokenizer."""
    return f"{stem}_tokenizer"
