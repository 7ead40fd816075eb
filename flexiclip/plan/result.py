"""The result of a plan: one object that the table, the JSON and the documentation share. Units: bytes, seconds, FLOPs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from flexiclip.errors import UserError
from flexiclip.models.flops import PairFlops
from flexiclip.plan.hardware import Device
from flexiclip.plan.memory import Memory
from flexiclip.plan.towers import Parameters


@dataclass(frozen=True)
class Cluster:
    """The cluster on which the recipe would run."""

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
        """Number of ranks: one per GPU, or on CPUs `gpus_per_node` per node."""
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class LengthPlan:
    """The figures of one sequence length."""

    seqhw: int
    tokens: int
    share: float  # of the run's steps
    flops: PairFlops  # per pair
    micro_batch: int
    micro_batches: int  # per step
    memory: Memory
    traffic: int  # bytes that a rank sends per step
    compute_s: float
    network_s: float  # seconds that are not hidden behind computation
    images_per_s: float  # of all ranks

    @property
    def step_s(self) -> float:
        """Seconds per step."""
        return self.compute_s + self.network_s


@dataclass(frozen=True)
class StagePlan:
    """The figures of one engine, at the length that takes most memory. A limit is None if not even one sample fits."""

    engine: str
    own: bool  # whether the recipe has this engine
    memory: Memory
    fits: bool
    micro_batch_size: int | None
    micro_tokens: int | None
    checkpointed_micro_batch_size: int | None  # with train.activation_checkpointing
    traffic: int


@dataclass(frozen=True)
class Plan:
    """All figures of one recipe on one cluster."""

    cluster: Cluster
    device: Device
    usable_memory: float  # bytes per rank
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
    tflops: float | None  # of the towers in the whole run, forward and backward, as train.steps="N TFLOPs" counts them
    hours: float | None
    text_features_hours: float | None  # for the features of a locked text tower, before the first step
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Every field, and the figures that follow from them, for JSON."""
        found = asdict(self)
        for row, length in zip(found["lengths"], self.lengths, strict=True):
            row["step_s"] = length.step_s
            row["flops"] |= {"model": length.flops.model, "total": length.flops.total}
        return found
