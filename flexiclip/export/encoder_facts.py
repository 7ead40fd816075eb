"""The facts that an exported encoder carries for other software. export/ writes them, and eval/ reads them back.

    import json, onnxruntime
    session = onnxruntime.InferenceSession("image-5.onnx")
    json.loads(session.get_modelmeta().custom_metadata_map["flexiclip"])

The facts are one JSON object. In an ONNX file it is in the metadata_props, under KEY. It contains no path of the
exporter's disk. `Origin` is the model that an export comes from, and collects the facts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from flexiclip.config.load import from_dict, to_dict
from flexiclip.config.schema import PreprocessConfig, TokenizerConfig, pair
from flexiclip.errors import UserError
from flexiclip.export.encoders import ImageEncoder, TextEncoder
from flexiclip.files import sha256_of
from flexiclip.model_folder import LoadedModel, load_parsed
from flexiclip.model_source import LOADED, WEIGHTS, parse_model
from flexiclip.models.flops import image_gflops
from flexiclip.models.variants import tower_name

KEY, FORMAT = "flexiclip", 1
LARGEST = 2**14  # limit for pixels of a side and for tokens of a text


@dataclass(frozen=True)
class ImageFacts:
    """Facts about an image encoder, which has a single length. Pairs are (height, width)."""

    image_size: tuple[int, int]  # pixels
    grid: tuple[int, int]  # patches; their product is the length
    patch_size: tuple[int, int]  # pixels
    gflops: float  # for one image; a multiply-add counts as 2
    preprocess: PreprocessConfig
    normalize_inside: bool  # true: the input is uint8 pixels; false: float32, normalised as `preprocess` says
    trained_seqhw: tuple[int, ...]  # the lengths that the model was trained at

    def __post_init__(self) -> None:
        if not all(0 < side <= LARGEST for side in (*self.image_size, *self.grid, *self.patch_size)):
            raise UserError(f"image sizes {self.image_size}, {self.grid}, {self.patch_size}: expected 1 to {LARGEST}")

    @property
    def seqhw(self) -> int | None:
        """The side of the grid, None if it is not square."""
        return self.grid[0] if self.grid[0] == self.grid[1] else None


@dataclass(frozen=True)
class TextFacts:
    """Facts about a text encoder. The files of its tokenizer are in a folder next to it (`tokenizer_folder`)."""

    tokenizer: TokenizerConfig  # kind and settings, without a path
    tokenizer_sha256: str  # hash of its settings and files
    vocab_size: int
    pad_id: int
    eos_id: int
    open_length: bool  # whether the encoder takes fewer columns than tokenizer.context_length

    def __post_init__(self) -> None:
        if self.tokenizer.context_length > LARGEST:
            raise UserError(f"tokenizer.context_length={self.tokenizer.context_length} exceeds {LARGEST}")


@dataclass(frozen=True)
class EncoderFacts:
    """Which encoder of which model a file holds, and the facts about it."""

    format: int
    role: Literal["image", "text"]
    architecture: str
    source: str  # name of the run or model folder
    weights_sha256: str  # hash of the model folder's weights, so it is equal in both halves of a model
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
        """Return the facts of an image encoder. Only for role=image."""
        assert self.image is not None, "asked of an image encoder"
        return self.image

    def texts(self) -> TextFacts:
        """Return the facts of a text encoder. Only for role=text."""
        assert self.text is not None, "asked of a text encoder"
        return self.text


def facts_to_json(facts: EncoderFacts) -> str:
    """Return the facts as the JSON text that is written into a file."""
    return json.dumps(to_dict(facts))


def facts_from_json(text: str) -> EncoderFacts:
    """Read the facts from a JSON text. Raises UserError that says what is wrong in it."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not a JSON text: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"expected an object, not a {type(data).__name__}")
    return from_dict(EncoderFacts, data)


def tokenizer_folder(stem: str) -> str:
    """Return the name of the folder with the tokenizer of a text encoder: text (for text.onnx) -> text_tokenizer."""
    return f"{stem}_tokenizer"


@dataclass(frozen=True)
class Origin:
    """The model that is exported, and its location."""

    loaded: LoadedModel
    folder: Path  # the model folder
    exit: int | None = None  # the block after which its image tower is left; None for the whole tower

    @classmethod
    def open(cls, model: str) -> Origin:
        """Load the model that `load_model` finds under this name. Raises UserError as `load_model` does."""
        source = parse_model(model, LOADED)
        return cls(load_parsed(source), source.path, source.exit)

    @property
    def name(self) -> str:
        """The name of the model folder or, for the `model` folder of a run, the name of the run."""
        folder = self.folder.resolve()
        return folder.parent.name if folder.name == "model" else folder.name

    def facts(self, encoder: ImageEncoder | TextEncoder, quantize: str | None) -> EncoderFacts:
        """Collect the facts about one encoder of the model."""
        model = self.loaded.config.model
        return EncoderFacts(
            format=FORMAT,
            role="image" if isinstance(encoder, ImageEncoder) else "text",
            architecture=tower_name(model.image),
            source=self.name if self.exit is None else f"{self.name}+exit{self.exit}",
            weights_sha256=sha256_of(self.folder / WEIGHTS),
            embed_dim=model.embed_dim,
            quantize="int8" if quantize else None,
            image=self._image(encoder) if isinstance(encoder, ImageEncoder) else None,
            text=self._text(encoder) if isinstance(encoder, TextEncoder) else None,
        )

    def _image(self, encoder: ImageEncoder) -> ImageFacts:
        baked = encoder.tower.config  # the config of this length
        grid = pair(baked.base_grid)
        return ImageFacts(
            image_size=pair(baked.image_size),
            grid=grid,
            patch_size=pair(baked.base_patch_size),
            gflops=image_gflops(self.loaded.config.model, grid),
            preprocess=self.loaded.transform.preprocess,
            normalize_inside=encoder.pixels,
            trained_seqhw=self.loaded.config.trained_seqhw,
        )

    def _text(self, encoder: TextEncoder) -> TextFacts:
        tokenizer = self.loaded.tokenizer
        return TextFacts(
            tokenizer=replace(self.loaded.config.tokenizer, path=None),
            tokenizer_sha256=tokenizer.fingerprint(),
            vocab_size=tokenizer.vocab_size,
            pad_id=tokenizer.pad_id,
            eos_id=tokenizer.eos_id,
            open_length=encoder.dynamic_length,
        )
