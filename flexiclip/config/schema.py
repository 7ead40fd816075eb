"""Every key of a recipe, with its default, its unit and what it means.

Each section checks itself in `__post_init__`; rules that cross sections stand in validate.py. This package imports nothing of
the framework but the error type, so that every floor may import it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from flexiclip.config.durations import Duration, parse_duration
from flexiclip.errors import UserError

Size = int | tuple[int, int]
"""A side in pixels or cells, or (height, width)."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def _positive(section: str, obj: object, *names: str) -> None:
    for name in names:
        value = getattr(obj, name)
        if value is not None:
            values = value if isinstance(value, tuple) else (value,)
            _require(all(v > 0 for v in values), f"{section}.{name}={value} must be positive")


def _check_lock(section: str, lock: bool, unlock_last: int) -> None:
    _require(unlock_last >= 0, f"{section}.unlock_last={unlock_last} must be 0 or more")
    _require(
        lock or unlock_last == 0, f"{section}.unlock_last={unlock_last} opens blocks of a locked tower: set {section}.lock=true"
    )


def pair(size: Size) -> tuple[int, int]:
    """(height, width) of a size given as one side or as both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


class _Lockable:
    """What both towers' sections have: `lock`, and `unlock_last`, its exception."""

    lock: bool
    unlock_last: int

    @property
    def frozen(self) -> bool:
        """Whether the whole tower is locked."""
        return self.lock and self.unlock_last == 0


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
    default_seqhw: Size | None = None  # grid used when a caller names none; default: the valid one nearest the base kernel
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
        _positive("model.image", self, "width", "depth", "heads", "mlp_dim", "image_size", "base_patch_size", "base_grid")
        _require(max(pair(self.image_size)) <= 2**14, f"model.image.image_size={self.image_size} exceeds {2**14} pixels a side")
        _check_lock("model.image", self.lock, self.unlock_last)


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
        _positive("model.text", self, "width", "depth", "heads", "mlp_dim", "vocab_size", "context_length")
        _check_lock("model.text", self.lock, self.unlock_last)
        _require(self.kind == "transformer" or bool(self.name), f"model.text.kind={self.kind} needs model.text.name")
        _require(self.pool != "cls" or self.kind == "huggingface", "model.text.pool=cls is for model.text.kind=huggingface")


@dataclass(frozen=True)
class PreprocessConfig:
    """How an image becomes a tensor when the model is used; saved with the model."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resize: Literal["shortest", "squash"] = "shortest"  # shortest: resize the short side, then centre crop
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"


@dataclass(frozen=True)
class ModelConfig:
    """Two towers and the joint space. logit_scale is stored as a log; logit_bias exists only when its start is given."""

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig | None = field(default_factory=TextTowerConfig)  # null: an imported image tower alone
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    embed_dim: int = 512
    logit_scale_init: float = 1 / 0.07  # as a factor, not a log
    logit_scale_max: float = 100.0
    logit_bias_init: float | None = None

    def __post_init__(self) -> None:
        _positive("model", self, "embed_dim", "logit_scale_init", "logit_scale_max")

    @property
    def text_frozen(self) -> bool:
        """Whether there is a text tower and it is locked whole."""
        return self.text is not None and self.text.frozen


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
        _positive("tokenizer", self, "vocab_size", "context_length")


@dataclass(frozen=True)
class SourceConfig:
    """One training source of a weighted mixture."""

    shards: str | tuple[str, ...]
    weight: float = 1.0

    def __post_init__(self) -> None:
        _positive("data.train", self, "weight")


@dataclass(frozen=True)
class DataConfig:
    """Training shards and how a sample is read. Caption choice and augmentation depend on (seed, epoch, sample) alone."""

    train: str | tuple[str | SourceConfig, ...] = ()  # a glob, a brace range, a list of them, or a list of {shards, weight}
    image_keys: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    captions: tuple[str, ...] = ("txt",)  # members or json fields (`json:caption`); one is drawn when there are several
    sequential: bool = False  # webdataset's own pipeline, for sources that cannot seek; does not resume exactly
    allow_shell: bool = False  # permits pipe: sources
    window_shards: int = 16  # shards read at once; samples are shuffled inside the window
    workers: int = 2  # processes a rank
    prefetch: int = 4  # batches a worker keeps ready
    crop_scale: tuple[float, float] = (0.4, 1.0)  # area of the random crop, as a fraction of the image
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: bool = False  # horizontal, with probability 1/2; off because captions may say left and right
    index_cache: str | None = None  # folder for shard indices; default: beside the shard, else a user cache folder
    read_attempts: int = 4  # of a read that fails, waiting longer each time; after them the sample is replaced
    read_timeout_s: float = 60.0  # seconds that one attempt at a remote read may take
    stall_s: float = 300.0  # seconds without a batch after which the run says what its workers are at
    max_bad_fraction: float = 0.1  # of the samples read that cannot be used: a larger share ends the run

    def __post_init__(self) -> None:
        _positive("data", self, "window_shards", "prefetch", "read_attempts", "read_timeout_s", "stall_s")
        _require(0 <= self.max_bad_fraction <= 1, f"data.max_bad_fraction={self.max_bad_fraction} must lie between 0 and 1")
        _require(self.workers >= 0, f"data.workers={self.workers} must be 0 or more")
        _require(bool(self.captions), "data.captions is empty: name a member such as txt, or json:caption")
        low, high = self.crop_scale
        _require(0 < low <= high <= 1, f"data.crop_scale={self.crop_scale} must satisfy 0 < low <= high <= 1")


@dataclass(frozen=True)
class PatchStage:
    """A part of a patch-size curriculum: from `start` on, these lengths and weights."""

    start: Duration
    seqhw: tuple[int, ...]
    weights: str | tuple[float, ...] = "uniform"


@dataclass(frozen=True)
class PatchConfig:
    """The sequence lengths drawn in training: one seqhw (grid side) a step, a pure function of (seed, step)."""

    seqhw: tuple[int, ...] = (5, 6, 8, 10, 12, 15, 16, 20, 24, 30)
    weights: str | tuple[float, ...] = "uniform"  # uniform | inverse_cost | one number a length
    stages: tuple[PatchStage, ...] = ()  # later stages override the two keys above from their start on

    def __post_init__(self) -> None:
        for seqhw, weights in [(self.seqhw, self.weights), *((s.seqhw, s.weights) for s in self.stages)]:
            _check_lengths(seqhw, weights)


def _check_lengths(seqhw: tuple[int, ...], weights: str | tuple[float, ...]) -> None:
    _require(bool(seqhw), "patch.seqhw is empty: name at least one length")
    _require(all(s > 0 for s in seqhw), f"patch.seqhw={list(seqhw)} must be positive")
    if isinstance(weights, str):
        _require(weights in ("uniform", "inverse_cost"), f"patch.weights={weights}: uniform, inverse_cost or a list of numbers")
        return
    _require(len(weights) == len(seqhw), f"patch.weights has {len(weights)} numbers for {len(seqhw)} lengths in patch.seqhw")
    _require(all(w >= 0 for w in weights) and sum(weights) > 0, f"patch.weights={list(weights)} must be 0 or more, not all 0")


@dataclass(frozen=True)
class LossConfig:
    """softmax: CLIP's InfoNCE; sigmoid: SigLIP's pairwise loss (needs model.logit_bias_init)."""

    kind: Literal["softmax", "sigmoid"] = "softmax"
    mask_identical: bool = False  # a caption that stands twice in the global batch is not its twin's negative


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (decay is multiplied by lr, as in torch). Norms, biases, scalars and embeddings of positions are not decayed."""

    lr: float = 1e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    grad_clip: float | None = 1.0  # global norm over the towers; null: no clipping
    schedule: Literal["cosine", "rsqrt", "constant"] = "cosine"
    warmup: Duration = parse_duration("5%")
    cooldown: Duration = parse_duration(0)  # linear to 0 at the end
    timescale: Duration = parse_duration(10_000)  # of rsqrt

    def __post_init__(self) -> None:
        _positive("optimizer", self, "lr", "eps", "grad_clip")
        _require(self.weight_decay >= 0, f"optimizer.weight_decay={self.weight_decay} must be 0 or more")
        _require(self.timescale.value > 0, f"optimizer.timescale={self.timescale} must be positive")


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch and bookkeeping. global_batch_size = ranks x local batch; a local batch runs in micro-batches."""

    steps: Duration = parse_duration(1000)
    global_batch_size: int = 256
    micro_batch_size: int | None = None  # samples a rank encodes at once; default: the whole local batch
    micro_tokens: int | None = None  # or tokens, those of captions that train too: shorter lengths, larger micro-batches
    activation_checkpointing: bool = False  # recompute a block's activations in backward: less memory, a third more time
    compile: bool = False  # torch.compile of each block, for all lengths at once
    on_nonfinite: Literal["stop", "skip"] = "stop"  # what a step with a NaN or Inf loss or gradient does
    precision: Literal["fp32", "bf16", "auto"] = "bf16"  # auto: bf16 where the hardware of every rank has it, else fp32
    log_every: Duration = parse_duration(10)
    save_every: Duration = parse_duration("10 minutes")
    save_in_background: bool = True  # write checkpoints while training goes on; costs a copy of them in memory
    checkpoint_dir: str | None = None  # a folder or fsspec URL (s3://...); default: RUN_DIR/checkpoints
    keep_last: int = 2  # checkpoints kept
    keep_every: Duration | None = None  # and one every so often for good
    resume: str = "auto"  # auto | never | a checkpoint folder
    threads: int | None = None  # torch threads a rank on CPU; default: cores / local ranks
    rank_timeout_s: float = 40.0  # seconds without a sign of life after which a rank is lost and the others leave
    log_samples: bool = False  # write samples.jsonl: the samples and the length of every step

    def __post_init__(self) -> None:
        _positive("train", self, "global_batch_size", "micro_batch_size", "micro_tokens", "keep_last", "threads")
        _positive("train", self, "rank_timeout_s")
        _require(
            self.micro_batch_size is None or self.micro_tokens is None,
            "train.micro_batch_size and train.micro_tokens both say how much is encoded at once: give one of them",
        )


@dataclass(frozen=True)
class EngineConfig:
    """deepspeed: any ZeRO stage; torch: plain DistributedDataParallel. Both train the same model on CPU or GPU."""

    kind: Literal["deepspeed", "torch"] = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] = 1
    offload: Literal["none", "optimizer", "parameters"] = "none"  # kept in host memory; parameters: stage 3, optimiser as well
    deepspeed: dict[str, Any] = field(default_factory=dict)  # merged over the DeepSpeed config that we generate


@dataclass(frozen=True)
class EvalConfig:
    """In-loop evaluation, sharded over the ranks."""

    suites: tuple[str, ...] = ()
    every: Duration | None = None  # null: at the end only
    seqhw: tuple[int, ...] | None = None  # default: every length of patch.seqhw
    batch_size: int = 128


@dataclass(frozen=True)
class Config:
    """A whole recipe."""

    run_dir: str = "runs/default"
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    patch: PatchConfig = field(default_factory=PatchConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        _require(self.seed >= 0, f"seed={self.seed} must be 0 or more")
