"""The objectives' sections, `optimizer`, `train`, `engine` and `eval`: what is trained, and how a run goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from flexiclip.config.durations import Duration, parse_duration
from flexiclip.config.schema.checks import positive, require, seconds


@dataclass(frozen=True)
class LossConfig:
    """softmax: CLIP's InfoNCE; sigmoid: SigLIP's pairwise loss (needs model.logit_bias_init)."""

    kind: Literal["softmax", "sigmoid"] = "softmax"
    mask_identical: bool = False  # a caption that stands twice in the global batch is not its twin's negative
    widths: tuple[int, ...] = ()  # Matryoshka (arXiv 2205.13147): the first so many columns of the embeddings have the loss too

    def __post_init__(self) -> None:
        positive("loss", self, "widths")

    def all_widths(self, embed_dim: int) -> list[int]:
        """Of the embeddings that the loss is taken of: the whole one's is among them."""
        return sorted({*self.widths, embed_dim})


@dataclass(frozen=True)
class ClassificationConfig:
    """objective=classification: cross-entropy of an image tower alone; needs model.text=null, model.classes and data.labels."""

    loss: Literal["softmax", "sigmoid"] = "softmax"  # sigmoid: every class is a decision of its own; summed over the classes
    label_smoothing: float = 0.0  # share of the targets that is spread evenly over the classes

    def __post_init__(self) -> None:
        smoothing = self.label_smoothing
        require(0 <= smoothing < 1, f"classification.label_smoothing={smoothing} must be 0 or more and below 1")


@dataclass(frozen=True)
class DistillationConfig:
    """objective=distillation: the student, `model`, learns from a frozen teacher (arXiv 2106.05237; FlexiViT, section 3.5).

    Without a text tower both are classifiers, and the student's logits follow the teacher's. With one both have two towers, and
    what follows is, for each image, how the captions of the batch compare, and for each caption how the images do.
    """

    teacher: str | None = None  # a model folder or a run's; other libraries' models become one by `flexiclip import`
    seqhw: int | None = None  # the teacher's grid side; default: the longest that it was trained at
    temperature: float = 1.0  # divides the logits of both
    kl: float = 1.0  # weight of the Kullback-Leibler divergence, times temperature^2 so that its gradients keep their size
    cosine: float = 0.0  # weight of 1 - cosine between the student's and the teacher's embeddings, of images and of captions

    def __post_init__(self) -> None:
        positive("distillation", self, "seqhw", "temperature")
        require(
            min(self.kl, self.cosine) >= 0 and self.kl + self.cosine > 0,
            f"distillation.kl={self.kl} and distillation.cosine={self.cosine} must be 0 or more, and not both 0",
        )


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
        positive("optimizer", self, "lr", "eps", "grad_clip")
        require(self.weight_decay >= 0, f"optimizer.weight_decay={self.weight_decay} must be 0 or more")
        require(all(0 <= beta < 1 for beta in self.betas), f"optimizer.betas={self.betas} must be 0 or more and below 1")
        require(self.timescale.value > 0, f"optimizer.timescale={self.timescale} must be positive")


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
    save_every: Duration = parse_duration("10 minutes")  # 0: at the end only
    save_in_background: bool = True  # write checkpoints while training goes on; costs a copy of them in memory
    checkpoint_dir: str | None = None  # a folder or fsspec URL (s3://...); default: RUN_DIR/checkpoints
    keep_last: int = 2  # checkpoints kept
    keep_every: Duration | None = None  # and one every so often for good
    resume: str = "auto"  # auto | never | a checkpoint folder
    threads: int | None = None  # torch threads a rank on CPU; default: cores / local ranks
    rank_timeout_s: float = 40.0  # seconds without a sign of life after which a rank is lost and the others leave
    log_samples: bool = False  # write samples.jsonl: the samples and the length of every step

    def __post_init__(self) -> None:
        positive("train", self, "global_batch_size", "micro_batch_size", "micro_tokens", "keep_last", "threads")
        seconds("train", self, "rank_timeout_s")
        require(
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
    seqhw: tuple[int, ...] | None = None  # default: every length that the run trains at
    batch_size: int = 128

    def __post_init__(self) -> None:
        positive("eval", self, "batch_size")
