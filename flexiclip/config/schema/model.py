"""The sections `model` and `tokenizer`: the two towers, their embedding space, and how pixels and captions are prepared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flexiclip.config.keys import Size, key, pair, positive, require, section


class _Lockable:
    """The keys that the sections of both towers share: `lock`, and its exception `unlock_last`."""

    lock: bool
    unlock_last: int

    @property
    def frozen(self) -> bool:
        """Whether the whole tower is locked."""
        return self.lock and self.unlock_last == 0

    @property
    def open_blocks(self) -> int | None:
        """How many of the last blocks of a locked tower train. None: the tower is not locked."""
        return self.unlock_last if self.lock else None


@dataclass(frozen=True)
class ImageTowerConfig(_Lockable):
    """FlexiViT (arXiv 2212.08013)."""

    variant: str | None = key(
        None,
        "Named size: Ti, S, B, L or So400m. Sizes that are given below replace those of the variant. null: width and depth must "
        "be given.",
    )
    width: int | None = key(None, "Width of the tower: numbers per token. null: the variant's.")
    depth: int | None = key(None, "Number of transformer blocks. null: the variant's.")
    heads: int | None = key(None, "Attention heads of each block; must divide width. null: the variant's, or width / 64.")
    mlp_dim: int | None = key(None, "Width of the hidden layer of each MLP. null: the variant's, or 4 x width.")
    image_size: Size = key(
        240, "Size of the input images in pixels: one side, or [height, width]; at most 16384. Every grid side must divide it."
    )
    base_patch_size: Size = key(32, "Size of the stored patch kernel in pixels, from which the kernel of each length is made.")
    base_grid: Size = key(7, "Size of the stored position grid in cells, from which the positions of each length are resampled.")
    flexible: Literal["patch", "stride"] = key(
        "patch",
        "What changes with the length. patch: the kernel is resized to the patch. stride: the kernel keeps its size, so that "
        "patches overlap (FlexiViT, section 7).",
    )
    exits: tuple[int, ...] = key(
        (),
        "Flexible depth: numbers of blocks after which the tower may also be left, in rising order. Each exit is trained with "
        "the same loss as the whole tower; empty: no exits.",
    )
    exit_heads: Literal["shared", "separate"] = key(
        "shared", "Norm, pool and projection after an exit: those of the whole tower (shared), or its own (separate)."
    )
    default_seqhw: Size | None = key(
        None,
        "Grid that is used when none is named: one side, or [height, width]. null: the one nearest to image_size / "
        "base_patch_size.",
    )
    pool: Literal["tok", "gap", "map"] = key(
        "gap", "How the tokens become one vector: a class token (tok), their mean (gap), or attention pooling (map)."
    )
    activation: Literal["gelu_tanh", "gelu", "quick_gelu"] = key(
        "gelu_tanh", "Activation of the MLPs: GELU with the tanh approximation, exact GELU, or x * sigmoid(1.702 x) as in CLIP."
    )
    norm_eps: float = key(1e-6, "Epsilon of each LayerNorm.")
    pre_norm: bool = key(False, "Whether a LayerNorm precedes the first block, as in CLIP.")
    patch_bias: bool = key(True, "Whether the patch embedding has a bias.")
    kernel_resize: Literal["bilinear", "bicubic"] = key(
        "bilinear",
        "Interpolation that PI-resize of the patch kernel is based on. Weights must be used with the resizes that they were "
        "trained with; the four defaults are big_vision's.",
    )
    kernel_antialias: bool = key(False, "Whether the interpolation of the patch kernel is antialiased.")
    grid_resize: Literal["bilinear", "bicubic"] = key("bilinear", "Interpolation that resamples the position grid.")
    grid_antialias: bool = key(True, "Whether the interpolation of the position grid is antialiased.")
    projection: Literal["linear", "none"] = key(
        "linear", "Layer from width to model.embed_dim. none: there is no layer, and model.embed_dim must equal width."
    )
    projection_bias: bool = key(False, "Whether the projection has a bias.")
    lock: bool = key(
        False, "Freeze the tower: it stays in eval mode and outside the optimizer. Its projection still trains. Needs init."
    )
    unlock_last: int = key(
        0, "Number of blocks at the end of a locked tower that train nevertheless, with everything that follows them. Needs lock."
    )
    init: str | None = key(
        None, "Model folder or run folder from which the weights of this tower are taken. null: the weights start random."
    )

    def __post_init__(self) -> None:
        positive("model.image", self, "width", "depth", "heads", "mlp_dim", "image_size", "base_patch_size", "base_grid")
        require(max(pair(self.image_size)) <= 2**14, f"model.image.image_size={self.image_size} exceeds {2**14} pixels a side")
        _check_lock("model.image", self.lock, self.unlock_last)
        exits = list(self.exits)
        require(not (exits and self.lock), f"model.image.exits={exits} need a tower that trains: model.image.lock=false")
        rising = exits == sorted(set(exits)) and min(exits, default=1) > 0
        require(rising, f"model.image.exits={exits} must be numbers of blocks, each above the one before")

    @property
    def widest_stride(self) -> Size | None:
        """The largest distance between patches, in pixels, at which no pixel is skipped. None if the kernel fits every patch."""
        return self.base_patch_size if self.flexible == "stride" else None


@dataclass(frozen=True)
class TextTowerConfig(_Lockable):
    """Our own transformer, or the encoder of another library."""

    kind: Literal["transformer", "huggingface", "open_clip"] = key(
        "transformer",
        "Our own transformer, an encoder from a Hugging Face folder or hub (huggingface), or the text half of an open_clip "
        "model.",
    )
    name: str | None = key(
        None,
        "The encoder of another library. huggingface: a folder, a hub name or package:MODULE/FOLDER; open_clip: NAME or "
        "NAME/PRETRAINED. null: only for kind=transformer.",
    )
    sha256: str | None = key(None, "SHA-256 that the weight file in the huggingface folder must have. null: it is not checked.")
    variant: str | None = key(None, "Named size of a transformer: Ti, S, B, L or So400m. null: width and depth must be given.")
    width: int | None = key(None, "Width of the tower: numbers per token. null: the variant's.")
    depth: int | None = key(None, "Number of transformer blocks. null: the variant's.")
    heads: int | None = key(None, "Attention heads of each block; must divide width. null: the variant's, or width / 64.")
    mlp_dim: int | None = key(None, "Width of the hidden layer of each MLP. null: the variant's, or 4 x width.")
    vocab_size: int | None = key(None, "Number of token ids. null: taken from the tokenizer.")
    pad_id: int | None = key(None, "Id of the padding token. null: taken from the tokenizer.")
    eos_id: int | None = key(None, "Id of the token that ends a caption (EOS). null: taken from the tokenizer.")
    context_length: int | None = key(None, "Longest caption, in tokens. null: tokenizer.context_length.")
    causal: bool = key(False, "Whether a token attends only to itself and the tokens before it, as in CLIP.")
    pad_mask: bool = key(True, "Whether padding is hidden from the attention.")
    pool: Literal["last", "eos", "mean", "map", "cls"] = key(
        "eos",
        "How the tokens become one vector: the last column (last), the EOS token (eos), the mean of the caption (mean), "
        "attention pooling (map), or the first token (cls, for huggingface only).",
    )
    activation: Literal["gelu_tanh", "gelu", "quick_gelu"] = key(
        "gelu_tanh", "Activation of the MLPs: GELU with the tanh approximation, exact GELU, or x * sigmoid(1.702 x) as in CLIP."
    )
    norm_eps: float = key(1e-6, "Epsilon of each LayerNorm.")
    projection: Literal["linear", "none"] = key(
        "linear", "Layer from the tower's width to model.embed_dim. none: there is no layer, and the two must be equal."
    )
    projection_bias: bool = key(False, "Whether the projection has a bias.")
    lock: bool = key(
        False,
        "Freeze the tower: it stays in eval mode and outside the optimizer. Its projection still trains. A transformer then "
        "needs init.",
    )
    unlock_last: int = key(
        0, "Number of blocks at the end of a locked tower that train nevertheless, with everything that follows them. Needs lock."
    )
    init: str | None = key(
        None,
        "Model folder or run folder from which the weights of this tower are taken. null: a transformer starts random, another "
        "library's encoder with its own weights.",
    )

    def __post_init__(self) -> None:
        positive("model.text", self, "width", "depth", "heads", "mlp_dim", "vocab_size", "context_length")
        _check_lock("model.text", self.lock, self.unlock_last)
        require(self.kind == "transformer" or bool(self.name), f"model.text.kind={self.kind} needs model.text.name")
        require(self.pool != "cls" or self.kind == "huggingface", "model.text.pool=cls is for model.text.kind=huggingface")


@dataclass(frozen=True)
class PreprocessConfig:
    """How an image becomes a tensor."""

    mean: tuple[float, float, float] = key((0.5, 0.5, 0.5), "Mean of each channel, subtracted from pixels between 0 and 1.")
    std: tuple[float, float, float] = key(
        (0.5, 0.5, 0.5), "Standard deviation of each channel, by which the difference to the mean is divided."
    )
    resize: Literal["shortest", "squash"] = key(
        "shortest",
        "How an image gets model.image.image_size outside of training. shortest: resize the short side, then crop the centre; "
        "squash: resize both sides.",
    )
    interpolation: Literal["bilinear", "bicubic"] = key("bicubic", "Interpolation that resizes images.")


@dataclass(frozen=True)
class ModelConfig:
    """Two towers with one embedding space, or an image tower alone, which may be a classifier: its projection is the head."""

    image: ImageTowerConfig = section(ImageTowerConfig, "The image tower, a FlexiViT (arXiv 2212.08013).")
    text: TextTowerConfig | None = section(TextTowerConfig, "The text tower. null: the model is an image tower alone.")
    preprocess: PreprocessConfig = section(
        PreprocessConfig, "How an image becomes a tensor. These settings are saved with the model."
    )
    embed_dim: int = key(
        512, "Size of the embeddings that both towers share. For an image tower alone it is the number of outputs."
    )
    classes: int | str | tuple[str, ...] | None = key(
        None,
        "Classes of a classifier: a list of names, a file with one name on each line, or their number. Sets embed_dim. null: the "
        "model is not a classifier.",
    )
    head_bias_init: float = key(
        0.0,
        "Initial bias of a classifier's head. Set it far below 0 for sigmoid over many classes (big_vision: -10 for 21,843).",
    )
    logit_scale_init: float = key(
        1 / 0.07, "Initial scale of the similarities in the contrastive loss, as a factor. The model stores its logarithm."
    )
    logit_scale_max: float = key(100.0, "Largest value that the scale may reach in training, as a factor.")
    logit_bias_init: float | None = key(
        None, "Initial bias of the similarities, which the sigmoid loss needs (SigLIP: -10). null: there is no bias."
    )

    def __post_init__(self) -> None:
        positive("model", self, "embed_dim", "logit_scale_init", "logit_scale_max")

    @property
    def text_frozen(self) -> bool:
        """Whether there is a text tower of which nothing trains."""
        return self.text is not None and self.text.frozen


def _check_lock(section: str, lock: bool, unlock_last: int) -> None:
    require(unlock_last >= 0, f"{section}.unlock_last={unlock_last} must be 0 or more")
    require(
        lock or unlock_last == 0, f"{section}.unlock_last={unlock_last} opens blocks of a locked tower: set {section}.lock=true"
    )


@dataclass(frozen=True)
class TokenizerConfig:
    """How captions become tokens."""

    kind: Literal["sentencepiece", "clip", "huggingface", "open_clip"] = key(
        "sentencepiece",
        "A sentencepiece model, CLIP's tokenizer, or the tokenizer of a Hugging Face folder or of an open_clip model.",
    )
    path: str | None = key(
        None,
        "Where the tokenizer is: a .model file (sentencepiece), a folder, hub name or package:MODULE/FOLDER (huggingface), or "
        "the name of a model (open_clip). null: a sentencepiece model is trained on the training captions when the run starts.",
    )
    vocab_size: int = key(4096, "Number of tokens of a sentencepiece model that is trained for the run.")
    context_length: int = key(32, "Tokens of a caption, EOS included. Longer captions are cut.")
    lowercase: bool = key(True, "Whether captions are lower-cased, for sentencepiece.")
    sticky_eos: bool = key(
        False, "Pad with EOS and end every caption with EOS, even one that is cut, as big_vision does. For sentencepiece."
    )

    def __post_init__(self) -> None:
        positive("tokenizer", self, "vocab_size", "context_length")
