"""What a plan says: one object that the table, the JSON and the documents share. Units: bytes, seconds, FLOPs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from flexiclip.errors import UserError
from flexiclip.models.training_flops import PairFlops
from flexiclip.plan.hardware import Device
from flexiclip.plan.memory import Memory
from flexiclip.plan.towers import Parameters


@dataclass(frozen=True)
class Cluster:
    """Where the recipe would run."""

    nodes: int
    gpus_per_node: int
    device: str
    mfu: float | None = None

    def __post_init__(self) -> None:
        for option, number in (("--nodes", self.nodes), ("--gpus-per-node", self.gpus_per_node)):
            if number < 1:
                raise UserError(f"{option} {number}: give 1 or more")

    @property
    def world(self) -> int:
        """Ranks: one a GPU, or on CPUs as many as `gpus_per_node` says."""
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class LengthPlan:
    """One sequence length."""

    seqhw: int
    tokens: int
    share: float  # of the run's steps
    flops: PairFlops  # a pair
    micro_batch: int
    micro_batches: int  # a step
    memory: Memory
    traffic: int  # bytes that a rank sends
    compute_s: float
    network_s: float  # that is not hidden behind computation
    images_per_s: float  # over all ranks

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return self.compute_s + self.network_s


@dataclass(frozen=True)
class StagePlan:
    """One engine with this recipe, at the length that takes most memory. What fits is None where nothing does."""

    engine: str
    own: bool  # the recipe's
    memory: Memory
    fits: bool
    micro_batch_size: int | None
    micro_tokens: int | None
    checkpointed_micro_batch_size: int | None  # with train.activation_checkpointing
    traffic: int


@dataclass(frozen=True)
class Plan:
    """All figures of one recipe on one cluster; the table, the JSON and the documents show this."""

    cluster: Cluster
    device: Device
    usable_memory: float  # bytes a rank
    global_batch_size: int
    local_batch: int
    precision: str
    activation_checkpointing: bool
    parameters: tuple[Parameters, ...]
    caption_tokens: int
    lengths: tuple[LengthPlan, ...]
    stages: tuple[StagePlan, ...]
    mean_tokens: float
    mean_step_s: float
    images_per_s: float
    steps: int | None
    tflops: float | None  # of the towers, forward and backward, over the run; what train.steps="N TFLOPs" counts
    hours: float | None
    text_features_hours: float | None  # of a locked text tower, before the first step
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: every field, and what follows from them."""
        found = asdict(self)
        for row, length in zip(found["lengths"], self.lengths, strict=True):
            row["step_s"] = length.step_s
            row["flops"] |= {"model": length.flops.model, "total": length.flops.total}
        return found
