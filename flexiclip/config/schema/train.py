"""The sections of the objectives, and `optimizer`, `train`, `engine` and `eval`: what is learned, and how a run proceeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from flexiclip.config.keys import Duration, key, parse_duration, positive, require, seconds, section


@dataclass(frozen=True)
class LossConfig:
    """The contrastive loss."""

    kind: Literal["softmax", "sigmoid"] = key(
        "softmax", "CLIP's cross-entropy over the batch (softmax), or SigLIP's decision for each pair (sigmoid)."
    )
    mask_identical: bool = key(
        False, "Do not count an image and a caption as a negative pair if the image's own caption is the same text."
    )
    widths: tuple[int, ...] = key(
        (),
        "Matryoshka embeddings (arXiv 2205.13147): also take the loss of the first N columns of the embeddings, for each N "
        "listed. Empty: of the whole embeddings only.",
    )

    def __post_init__(self) -> None:
        positive("loss", self, "widths")

    def all_widths(self, embed_dim: int) -> list[int]:
        """The widths of the embeddings that have a loss, rising; the last one is that of the whole embeddings."""
        return sorted({*self.widths, embed_dim})


@dataclass(frozen=True)
class ClassificationConfig:
    """The loss of a classifier."""

    loss: Literal["softmax", "sigmoid"] = key(
        "softmax", "Cross-entropy over the classes (softmax), or a decision for each class, summed over the classes (sigmoid)."
    )
    label_smoothing: float = key(0.0, "Share of the target that is spread evenly over all classes. From 0 (none) to below 1.")

    def __post_init__(self) -> None:
        smoothing = self.label_smoothing
        require(0 <= smoothing < 1, f"classification.label_smoothing={smoothing} must be 0 or more and below 1")


@dataclass(frozen=True)
class DistillationConfig:
    """The teacher, and how the student follows it."""

    teacher: str | None = key(
        None,
        "Model folder or run folder of the teacher; `flexiclip import` makes one from another library's model. null: no teacher.",
    )
    seqhw: int | None = key(None, "Grid side at which the teacher encodes. null: the longest that the teacher was trained at.")
    temperature: float = key(1.0, "Divides the logits of teacher and student. Above 1 it softens their distributions.")
    kl: float = key(
        1.0,
        "Weight of the Kullback-Leibler divergence. It is multiplied by temperature^2, which keeps the size of its gradients.",
    )
    cosine: float = key(
        0.0,
        "Weight of 1 - cosine between the embeddings of student and teacher, of images and of captions. Must be 0 without a text "
        "tower.",
    )

    def __post_init__(self) -> None:
        positive("distillation", self, "seqhw", "temperature")
        require(
            min(self.kl, self.cosine) >= 0 and self.kl + self.cosine > 0,
            f"distillation.kl={self.kl} and distillation.cosine={self.cosine} must be 0 or more, and not both 0",
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning-rate schedule."""

    lr: float = key(1e-3, "Peak learning rate, after the warm-up.")
    weight_decay: float = key(0.1, "Weight decay. As in torch, it is multiplied by the learning rate.")
    betas: tuple[float, float] = key((0.9, 0.98), "Decay rates of AdamW's two moments, each from 0 to below 1.")
    eps: float = key(1e-8, "Epsilon in AdamW's denominator.")
    grad_clip: float | None = key(1.0, "Largest norm of all gradients together; larger ones are scaled down. null: no clipping.")
    schedule: Literal["cosine", "rsqrt", "constant"] = key(
        "cosine", "How the learning rate changes after the warm-up: by a cosine to 0, by an inverse square root, or not at all."
    )
    warmup: Duration = key(
        parse_duration("5%"),
        "How long the learning rate rises linearly from 0 at the start: steps, epochs, samples or a percentage of the run.",
    )
    cooldown: Duration = key(
        parse_duration(0),
        "How long the learning rate falls linearly to 0 at the end: steps, epochs, samples or a percentage of the run. 0: not "
        "at all.",
    )
    timescale: Duration = key(
        parse_duration(10_000),
        "Time after the warm-up at which schedule=rsqrt has fallen to 0.71 of the peak: steps, epochs, samples or a percentage "
        "of the run.",
    )

    def __post_init__(self) -> None:
        positive("optimizer", self, "lr", "eps", "grad_clip")
        require(self.weight_decay >= 0, f"optimizer.weight_decay={self.weight_decay} must be 0 or more")
        require(all(0 <= beta < 1 for beta in self.betas), f"optimizer.betas={self.betas} must be 0 or more and below 1")
        require(self.timescale.value > 0, f"optimizer.timescale={self.timescale} must be positive")


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch and bookkeeping. global_batch_size = ranks x local batch; a local batch runs in micro-batches."""

    steps: Duration = key(
        parse_duration(1000),
        "Length of the run: steps, epochs, samples, or FLOPs such as 30 TFLOPs. A resumed run may be longer than before, not "
        "shorter.",
        resume=True,
    )
    global_batch_size: int = key(
        256, "Samples of a step over all ranks; in contrastive training every other pair of them is a negative."
    )
    micro_batch_size: int | None = key(
        None,
        "Samples encoded at once per rank. Smaller values need less memory and one more forward pass (GradCache, arXiv "
        "2101.06983); the loss stays the same. null: the rank's whole share of the batch.",
        resume=True,
    )
    micro_tokens: int | None = key(
        None,
        "Tokens encoded at once per rank, instead of micro_batch_size: shorter lengths then have larger micro-batches. Captions "
        "count if the text tower trains. null: micro_batch_size decides.",
        resume=True,
    )
    activation_checkpointing: bool = key(
        False,
        "Recompute the activations of each block in the backward pass. Saves memory and costs about a third more time.",
        resume=True,
    )
    compile: bool = key(
        False, "Compile the blocks of both towers with torch.compile, once for all lengths. Needs a C++ compiler.", resume=True
    )
    on_nonfinite: Literal["stop", "skip"] = key(
        "stop",
        "What happens at a step whose loss or gradients hold a NaN or Inf: the run ends (stop), or the step is left out (skip).",
        resume=True,
    )
    precision: Literal["fp32", "bf16", "auto"] = key(
        "bf16",
        "Precision of the towers' matrix products; parameters are float32. auto: bf16 if the hardware of every rank supports it, "
        "else fp32.",
    )
    log_every: Duration = key(
        parse_duration(10), "How often metrics are logged: steps, epochs, samples or a percentage of the run.", resume=True
    )
    save_every: Duration = key(
        parse_duration("10 minutes"),
        "How often a checkpoint is written: minutes, steps, epochs, samples or a percentage of the run. 0: only at the end.",
        resume=True,
    )
    save_in_background: bool = key(
        True, "Write checkpoints while training goes on, from a copy in the main rank's memory.", resume=True
    )
    checkpoint_dir: str | None = key(
        None, "Folder or fsspec URL (s3://...) for the checkpoints. null: RUN_DIR/checkpoints.", resume=True
    )
    keep_last: int = key(2, "How many of the newest checkpoints are kept.", resume=True)
    keep_every: Duration | None = key(
        None,
        "Also keep the first checkpoint of each such interval for good: steps, epochs, samples or a percentage of the run. "
        "null: only keep_last applies.",
        resume=True,
    )
    resume: str = key(
        "auto",
        "Which checkpoint to continue from: the newest of the run if there is one (auto), none (never; the old run is moved "
        "aside), or a checkpoint's folder or URL.",
        resume=True,
    )
    threads: int | None = key(
        None, "Torch threads of each rank, on CPU. null: the cores divided by the ranks of the machine.", resume=True
    )
    rank_timeout_s: float = key(
        40.0, "Seconds without a sign of life after which a rank counts as lost and the run ends.", resume=True
    )
    log_samples: bool = key(
        False, "Write samples.jsonl, which names the samples and the sequence length of every step.", resume=True
    )

    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = key(
        ("tensorboard",),
        "What draws the metrics of the run as curves: files for TensorBoard, Weights & Biases, or trackio. Empty: nothing.",
        resume=True,
    )

    def __post_init__(self) -> None:
        positive("train", self, "global_batch_size", "micro_batch_size", "micro_tokens", "keep_last", "threads")
        seconds("train", self, "rank_timeout_s")
        require(len(set(self.trackers)) == len(self.trackers), f"train.trackers={list(self.trackers)} names one twice")
        require(
            self.micro_batch_size is None or self.micro_tokens is None,
            "train.micro_batch_size and train.micro_tokens both say how much is encoded at once: give one of them",
        )


@dataclass(frozen=True)
class EngineConfig:
    """DeepSpeed or plain torch."""

    kind: Literal["deepspeed", "torch"] = key(
        "deepspeed", "DeepSpeed with any ZeRO stage, or torch's DistributedDataParallel. Both give the same losses."
    )
    zero_stage: Literal[0, 1, 2, 3] = key(
        1,
        "What DeepSpeed shards over the ranks: nothing (0), the optimizer's states (1), gradients as well (2), or parameters as "
        "well (3).",
    )
    offload: Literal["none", "optimizer", "parameters"] = key(
        "none",
        "What DeepSpeed keeps in host memory: nothing, the optimizer's states and the update (ZeRO stages 1 to 3), or the "
        "parameters as well (stage 3).",
    )
    deepspeed: dict[str, Any] = section(
        dict,
        "DeepSpeed settings, merged over those that are generated. Settings that other keys of the recipe decide are refused.",
    )


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation during the run."""

    suites: tuple[str, ...] = key((), "Suites to score, by installed name or file. Empty: the run is not evaluated.")
    every: Duration | None = key(
        None, "How often the suites are scored: steps, epochs, samples or a percentage of the run. null: only at the end."
    )
    seqhw: tuple[int, ...] | None = key(
        None, "Grid sides at which the model is scored. null: every length that the run trains at."
    )
    batch_size: int = key(128, "Images and captions encoded at once per rank.")

    def __post_init__(self) -> None:
        positive("eval", self, "batch_size")
