"""Where an export comes from, and the facts that an exported encoder carries (config/encoder.py)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from flexiclip.bundle import WEIGHTS, LoadedModel, load_model, model_folder
from flexiclip.config.encoder import FORMAT, EncoderFacts, ImageFacts, TextFacts
from flexiclip.config.schema import pair
from flexiclip.export.encoders import ImageEncoder, TextEncoder
from flexiclip.models.exits import split_exit
from flexiclip.models.flops import image_model_flops
from flexiclip.models.variants import tower_name


@dataclass(frozen=True)
class Origin:
    """The model that is exported, and where it lies."""

    loaded: LoadedModel
    folder: Path  # of the model
    exit: int | None = None  # the block after which its image tower was left; None: it is whole

    @classmethod
    def open(cls, model: str) -> Origin:
        """What `load_model` takes. Raises UserError."""
        plain, depth = split_exit(model)
        return cls(load_model(model), model_folder(plain), depth)

    @property
    def name(self) -> str:
        """That of the model folder, or of the run whose `model` it is."""
        folder = self.folder.resolve()
        return folder.parent.name if folder.name == "model" else folder.name

    def facts(self, encoder: ImageEncoder | TextEncoder, quantize: str | None) -> EncoderFacts:
        """What is said of one encoder."""
        model = self.loaded.config.model
        return EncoderFacts(
            format=FORMAT,
            role="image" if isinstance(encoder, ImageEncoder) else "text",
            architecture=tower_name(model.image),
            source=self.name if self.exit is None else f"{self.name}+exit{self.exit}",
            weights_sha256=_sha256(self.folder / WEIGHTS),
            embed_dim=model.embed_dim,
            quantize="int8" if quantize else None,
            image=self._image(encoder) if isinstance(encoder, ImageEncoder) else None,
            text=self._text(encoder) if isinstance(encoder, TextEncoder) else None,
        )

    def _image(self, encoder: ImageEncoder) -> ImageFacts:
        baked = encoder.tower.config  # of this length
        grid = pair(baked.base_grid)
        return ImageFacts(
            image_size=pair(baked.image_size),
            grid=grid,
            patch_size=pair(baked.base_patch_size),
            gflops=image_model_flops(self.loaded.config.model, grid) / 1e9,
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


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
