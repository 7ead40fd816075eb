"""Comparison of an exported encoder with the model: the inputs, and how far apart the embeddings are.

There are two kinds of inputs, because each hides some faults. Noise reaches every weight, but it has no structure that a
wrong resize or a wrong order of colours would spoil. Pictures and sentences are what the encoder will be used for.

Shapes: N inputs, [H, W] image, L tokens, E joint space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from flexiclip.config import DataConfig
from flexiclip.config.schema import Size
from flexiclip.data.images import ImageError, decode_image, normalize
from flexiclip.data.remote import expand_shards
from flexiclip.data.samples import BadSample, open_samples
from flexiclip.errors import UserError
from flexiclip.model_folder import LoadedModel

Encode = Callable[[Tensor], Tensor]
COUNT = 8  # number of inputs of each kind
CAPTIONS = (
    "a red apple on a white table",
    "two dogs running along a beach at sunset",
    "smiling face with sunglasses",
    "an old map of the city",
    "rain",
    "the word OPEN in neon letters above a door",
    "a flag with a blue cross",
    "macro photograph of a bee on a purple flower, shallow depth of field, morning light, dew on the petals",
)


@dataclass(frozen=True)
class Tolerance:
    """The limits within which two encoders count as the same.

    `difference` is the largest allowed difference of a component of unit embeddings, and `cosine` is the smallest allowed
    cosine.
    """

    difference: float
    cosine: float


EXACT = Tolerance(1e-4, 0.99999)
INT8 = Tolerance(2.0, 0.99)  # rounding changes all components, so only the direction is compared


@dataclass(frozen=True)
class Agreement:
    """The measured agreement of two encoders on `n` inputs of one kind."""

    inputs: str
    n: int
    difference: float
    cosine: float

    def within(self, tolerance: Tolerance) -> bool:
        """Return whether the agreement is within the tolerance. A NaN is not."""
        return self.difference <= tolerance.difference and self.cosine >= tolerance.cosine

    def __str__(self) -> str:
        return f"{self.n} {self.inputs}: largest difference {self.difference:.1e}, smallest cosine {self.cosine:.7f}"


class Disagreement(Exception):  # noqa: N818 (the outcome of a measurement)
    """Raised if the exported encoder does not agree with the model. The message has the figures."""

    def __init__(self, what: str, found: list[Agreement], tolerance: Tolerance) -> None:
        figures = "; ".join(map(str, found))
        super().__init__(
            f"{what} is not the model, and was not kept: {figures}; allowed: {tolerance.difference:g}, {tolerance.cosine:g}"
        )


@dataclass(frozen=True)
class Case:
    """Inputs [N, ...] of one kind, and the embeddings [N, E] that the model computes for them."""

    inputs: str
    x: Tensor
    expected: Tensor


@torch.no_grad()
def measure(encode: Encode, cases: list[Case]) -> list[Agreement]:
    """Measure how well `encode` agrees with the model in each case."""
    return [agreement(case.inputs, case.expected, encode(case.x)) for case in cases]


def check(what: str, encode: Encode, cases: list[Case], tolerance: Tolerance) -> list[Agreement]:
    """Measure as `measure` does, and raise Disagreement if a case is not within the tolerance."""
    found = measure(encode, cases)
    if not agreed(found, tolerance):
        raise Disagreement(what, found, tolerance)
    return found


def agreed(found: list[Agreement], tolerance: Tolerance) -> bool:
    """Return whether all measurements are within the tolerance."""
    return all(one.within(tolerance) for one in found)


def agreement(inputs: str, expected: Tensor, found: Tensor) -> Agreement:
    """Compare embeddings [N, E] in float64, after scaling them to unit length."""
    assert expected.shape == found.shape, f"{inputs}: {list(found.shape)} where the model gives {list(expected.shape)}"
    a, b = (F.normalize(z.detach().double(), dim=-1) for z in (expected, found))
    return Agreement(inputs, len(a), float((a - b).abs().max()), float((a * b).sum(dim=-1).min()))


def image_inputs(loaded: LoadedModel, source: str | None = None) -> dict[str, Tensor]:
    """Return images to compare on, as a dict from their kind to uint8 pixels [N, 3, H, W].

    The kinds are noise, and pictures from `source` (a folder or shards) or, without a source, pictures that are drawn
    here.
    """
    height, width = loaded.transform.image_size
    noise = torch.randint(0, 256, (COUNT, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    kind, pictures = ("real images", _read(source)) if source else ("drawn images", _drawn())
    return {"random images": noise, kind: torch.stack([loaded.transform.pixels(picture) for picture in pictures])}


def normalized(loaded: LoadedModel, pixels: Tensor) -> Tensor:
    """Normalise uint8 pixels as the model's transform does, to float32."""
    return normalize(pixels, loaded.transform.preprocess.mean, loaded.transform.preprocess.std)


def text_inputs(loaded: LoadedModel) -> dict[str, Tensor]:
    """Return texts to compare on, as a dict from their kind to tokens [N, L].

    The kinds are random ids, which end and are padded as captions are, and sentences.
    """
    tokenizer, length = loaded.tokenizer, loaded.tokenizer.context_length
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(0, tokenizer.vocab_size, (COUNT, length)))
    ids[ids == tokenizer.eos_id] = tokenizer.eos_id - 1 if tokenizer.eos_id else 1  # another EOS would end the caption early
    for row, end in zip(ids, rng.permutation(np.linspace(0, length - 1, COUNT).astype(int)), strict=True):
        row[end] = tokenizer.eos_id
        row[end + 1 :] = tokenizer.pad_id
    return {"random texts": ids, "sentences": tokenizer(CAPTIONS)}


@torch.no_grad()
def image_cases(loaded: LoadedModel, seqhw: Size | None, source: str | None = None) -> list[Case]:
    """Normalised images, and the embeddings that the model computes for them at one length."""
    inputs = {kind: normalized(loaded, pixels) for kind, pixels in image_inputs(loaded, source).items()}
    return [Case(kind, images, loaded.model.encode_image(images, seqhw, normalize=True)) for kind, images in inputs.items()]


@torch.no_grad()
def text_cases(loaded: LoadedModel) -> list[Case]:
    """Tokens, and the embeddings that the model computes for them."""
    return [Case(kind, tokens, loaded.model.encode_text(tokens, normalize=True)) for kind, tokens in text_inputs(loaded).items()]


def _read(source: str) -> list[Image.Image]:
    """Return the first images of a folder or of shards. Raises UserError if there are none or if one cannot be decoded."""
    try:
        found = _first(source)
    except (ImageError, BadSample) as error:
        raise UserError(f"--images {source}: {error}; name images that decode") from None
    if not found:
        raise UserError(f"--images {source}: no images there (looked for {', '.join(DataConfig().image_keys)})")
    return found


def _first(source: str) -> list[Image.Image]:
    """Return the first images of a folder or of shards, decoded."""
    if Path(source).is_dir():
        files = [path for path in sorted(Path(source).rglob("*")) if path.suffix.lower().lstrip(".") in DataConfig().image_keys]
        return [decode_image(path.read_bytes()) for path in files[:COUNT]]
    store = open_samples(expand_shards(source), DataConfig().image_keys, ())
    return [store[number].image for number in range(min(COUNT, len(store)))]


def _drawn() -> Iterator[Image.Image]:
    """Draw the same pictures at every call.

    They have what noise lacks and photographs have: smooth areas, edges, fine structure, and matching colours.
    """
    bases = [Image.linear_gradient("L"), Image.radial_gradient("L"), Image.effect_mandelbrot((256, 256), (-2, -1.2, 1, 1.2), 60)]
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        bands = [bases[(number + i) % 3].rotate(90 * ((number + i) % 4)) for i in range(3)]
        picture = Image.merge("RGB", bands)
        for _ in range(3):
            left, top, side = (int(v) for v in rng.integers(0, 160, 3))
            colour = tuple(int(v) for v in rng.integers(0, 256, 3))
            picture.paste(colour, (left, top, left + side // 2 + 8, top + side // 3 + 8))
        yield picture.resize((320, 256 + 32 * (number % 3)), Image.Resampling.BICUBIC)
