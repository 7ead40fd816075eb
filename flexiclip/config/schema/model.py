"""The sections `model` and `tokenizer`: the two towers, what joins them, and how pixels and texts are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from flexiclip.config.schema.checks import Size, pair, positive, require


class _Lockable:
    """What both towers' sections have: `lock`, and `unlock_last`, its exception."""

    lock: bool
    unlock_last: int

    @property
    def frozen(self) -> bool:
        """Whether the whole tower is locked."""
        return self.lock and self.unlock_last == 0

    @property
    def open_blocks(self) -> int | None:
        """Blocks that train in a locked tower, from its end; None: the whole tower trains."""
        return self.unlock_last if self.lock else None


@dataclass(frozen=True)
class ImageTowerConfig(_Lockable):
    """FlexiViT (arXiv 2212.08013). Give `variant`, or `width`, `depth` and `heads`; what is given beats the variant."""

    variant: str | None = None  # Ti | S | B | L | So400m
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    mlp_dim: int | None = None  # default 4 x width
    image_size: Size = 240  # pixels
    base_patch_size: Size = 32  # side of the stored kernel, pixels
    base_grid: Size = 7  # side of the stored position grid, cells
    # What changes with the length. stride: the kernel keeps its size, and patches overlap where they are closer (section 7).
    flexible: Literal["patch", "stride"] = "patch"
    exits: tuple[int, ...] = ()  # flexible depth: the tower may also be left after so many blocks; each exit has the loss too
    exit_heads: Literal["shared", "separate"] = "shared"  # norm, pool and projection after an exit: the tower's, or its own
    default_seqhw: Size | None = None  # grid used when a caller names none; default: nearest image_size / base_patch_size
    pool: Literal["tok", "gap", "map"] = "gap"
    activation: Literal["gelu_tanh", "gelu", "quick_gelu"] = "gelu_tanh"
    norm_eps: float = 1e-6
    pre_norm: bool = False  # LayerNorm before the blocks, as in CLIP
    patch_bias: bool = True
    # The resize is part of a checkpoint's contract: big_vision resizes the kernel bilinearly without antialias, the grid with it.
    kernel_resize: Literal["bilinear", "bicubic"] = "bilinear"
    kernel_antialias: bool = False
    grid_resize: Literal["bilinear", "bicubic"] = "bilinear"
    grid_antialias: bool = True
    projection: Literal["linear", "none"] = "linear"  # from width to model.embed_dim
    projection_bias: bool = False
    lock: bool = False  # a locked tower is frozen, in eval mode, and outside the optimiser; its projection still trains
    unlock_last: int = 0  # of a locked tower: its last N blocks, and what follows them, train after all
    init: str | None = None  # a model folder to take this tower's weights from

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
        """Pixels between patches that leave none out; None where the kernel is as wide as any patch."""
        return self.base_patch_size if self.flexible == "stride" else None


@dataclass(frozen=True)
class TextTowerConfig(_Lockable):
    """`transformer` is our own; `huggingface` an encoder from a folder or hub; `open_clip` the text half of one of its models."""

    kind: Literal["transformer", "huggingface", "open_clip"] = "transformer"
    name: str | None = None  # huggingface: a folder, a hub name or package:MODULE/FOLDER; open_clip: NAME[/PRETRAINED]
    sha256: str | None = None  # of the huggingface folder's model.safetensors, checked when given
    variant: str | None = None  # transformer: Ti | S | B | L | So400m, or width, depth and heads
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    mlp_dim: int | None = None
    vocab_size: int | None = None  # this and the ids below are filled in from the tokenizer
    pad_id: int | None = None
    eos_id: int | None = None
    context_length: int | None = None  # tokens; filled in from tokenizer.context_length
    causal: bool = False
    pad_mask: bool = True  # padding is not attended to
    pool: Literal["last", "eos", "mean", "map", "cls"] = "eos"  # cls: huggingface only
    activation: Literal["gelu_tanh", "gelu", "quick_gelu"] = "gelu_tanh"
    norm_eps: float = 1e-6
    projection: Literal["linear", "none"] = "linear"
    projection_bias: bool = False
    lock: bool = False
    unlock_last: int = 0
    init: str | None = None

    def __post_init__(self) -> None:
        positive("model.text", self, "width", "depth", "heads", "mlp_dim", "vocab_size", "context_length")
        _check_lock("model.text", self.lock, self.unlock_last)
        require(self.kind == "transformer" or bool(self.name), f"model.text.kind={self.kind} needs model.text.name")
        require(self.pool != "cls" or self.kind == "huggingface", "model.text.pool=cls is for model.text.kind=huggingface")


@dataclass(frozen=True)
class PreprocessConfig:
    """How an image becomes a tensor when the model is used; saved with the model."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resize: Literal["shortest", "squash"] = "shortest"  # shortest: resize the short side, then centre crop
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"


@dataclass(frozen=True)
class ModelConfig:
    """Two towers and the joint space. logit_scale is stored as a log; logit_bias exists only when its start is given.

    An image tower alone may be a classifier: its projection is the head, and `classes` are what its outputs stand for.
    """

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig | None = field(default_factory=TextTowerConfig)  # null: an image tower alone
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    embed_dim: int = 512  # of the joint space; an image tower alone has as many outputs
    classes: int | str | tuple[str, ...] | None = (
        None  # of a classifier: names, a file with one a line, or how many; sets embed_dim
    )
    head_bias_init: float = 0.0  # of a classifier; far below 0 for sigmoid over many classes (big_vision: -10 for 21,843)
    logit_scale_init: float = 1 / 0.07  # as a factor, not a log
    logit_scale_max: float = 100.0
    logit_bias_init: float | None = None

    def __post_init__(self) -> None:
        positive("model", self, "embed_dim", "logit_scale_init", "logit_scale_max")

    @property
    def text_frozen(self) -> bool:
        """Whether there is a text tower and it is locked whole."""
        return self.text is not None and self.text.frozen


def _check_lock(section: str, lock: bool, unlock_last: int) -> None:
    require(unlock_last >= 0, f"{section}.unlock_last={unlock_last} must be 0 or more")
    require(
        lock or unlock_last == 0, f"{section}.unlock_last={unlock_last} opens blocks of a locked tower: set {section}.lock=true"
    )


@dataclass(frozen=True)
class TokenizerConfig:
    """`sentencepiece` with no path is trained on the training captions when a run starts."""

    kind: Literal["sentencepiece", "clip", "huggingface", "open_clip"] = "sentencepiece"
    path: str | None = None  # sentencepiece: a .model file; huggingface: as model.text.name; open_clip: a model name
    vocab_size: int = 4096  # of a sentencepiece model trained here
    context_length: int = 32  # tokens, EOS included
    lowercase: bool = True  # sentencepiece
    sticky_eos: bool = False  # sentencepiece, big_vision: pad with EOS and end every caption with it, cut ones too

    def __post_init__(self) -> None:
        positive("tokenizer", self, "vocab_size", "context_length")
