"""The memory that a rank keeps between steps under each engine: parameters, gradients, optimizer states and buffers.

The table is in bytes, for P parameters in the engine, T of them trained, on W ranks. All are float32, because bf16 is only an
autocast.

                     parameters        gradients           optimizer            buffers
    torch, W > 1     4 P               views of buckets    8 T                  4 T: DistributedDataParallel's buckets
    ZeRO 0           4 P               4 T                 8 T                  4 min(T, bucket)
    ZeRO 1           4 P               4 T + 4 T/W         12 T/W               bucket (two with overlap_comm)
    ZeRO 2           4 P               4 T/W               12 T/W               the same; gradients pass through it
    ZeRO 3           4 P/W + gathered  4 T/W               12 T/W               one bucket

The 12 bytes of the optimizer are two moments and DeepSpeed's own copy of the weights, which it keeps although these are float32
already. A bucket has `reduce_bucket_size` elements (5e8, which is 2 GB, unless engine.deepspeed sets it), however small the
model. ZeRO-3 gathers the parameters that it runs. In a step of one micro-batch these are all parameters at once, because
DeepSpeed keeps what it will use again within 1e9 parameters; with several micro-batches they are those of a block. A tower that
is locked as a whole is kept in addition, on every rank.

Sources: ZeRO (arXiv 1910.02054, section 5); DeepSpeed 0.19 runtime/zero/stage_1_and_2.py, stage3.py and
partitioned_param_coordinator.py. tests/plan/test_traffic.py reads the parameters and the optimizer's states from running engines.
Gradients and buffers follow the sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flexiclip.config import EngineConfig
from flexiclip.models.variants import Shape
from flexiclip.plan.towers import Model

FLOAT = 4
BUCKET, PREFETCH, REUSE = 500_000_000, 50_000_000, 1_000_000_000
"""DeepSpeed's defaults, in elements: reduce_bucket_size, stage3_prefetch_bucket_size, stage3_max_reuse_distance."""


@dataclass(frozen=True)
class States:
    """Bytes per rank. `host` is the rank's share of what offloading moves to host memory."""

    parameters: int
    gradients: int
    optimizer: int
    buffers: int
    host: int = 0

    @property
    def device(self) -> int:
        """Everything except the gradients: memory.py decides when those exist."""
        return self.parameters + self.optimizer + self.buffers


@dataclass(frozen=True)
class Engine:
    """An engine of a plan: `torch`, or `deepspeed` at a stage, over `world` ranks."""

    kind: str
    stage: int
    world: int
    offload: str = "none"
    settings: Mapping[str, object] | None = None  # zero_optimization of engine.deepspeed

    @classmethod
    def of(cls, config: EngineConfig, world: int) -> Engine:
        """The engine of a recipe."""
        stage = config.zero_stage if config.kind == "deepspeed" else 0
        return cls(config.kind, stage, world, config.offload, config.deepspeed.get("zero_optimization", {}))

    @property
    def name(self) -> str:
        """The name that tables show."""
        offloaded = "" if self.offload == "none" else f", {self.offload} on the host"
        return ("torch" if self.kind == "torch" else f"ZeRO-{self.stage}") + offloaded

    def setting(self, key: str, default: int) -> int:
        """A number (or a truth value) in zero_optimization of the recipe, or the default."""
        value = (self.settings or {}).get(key)
        return int(value) if isinstance(value, (int, float)) else default

    def keeps_gathered(self, parameters: int) -> bool:
        """Whether ZeRO-3 keeps what it gathered until the backward pass, in a step of one micro-batch."""
        return parameters <= min(
            self.setting("stage3_max_reuse_distance", REUSE), self.setting("stage3_max_live_parameters", REUSE)
        )


def states(model: Model, engine: Engine, several: bool) -> States:
    """Return the bytes that a rank keeps. several: whether a step has more than one micro-batch."""
    held, open_, world = model.total("in_engine"), trained(model), engine.world
    outside = FLOAT * (model.total("total") - held)
    own = -(-open_ // world)
    if engine.stage == 0:
        gradients, buffers = FLOAT * open_, FLOAT * min(open_, BUCKET)
        if world == 1:
            buffers = 0
        elif engine.kind == "torch":
            gradients, buffers = 0, FLOAT * open_
        return States(FLOAT * held + outside, gradients, 2 * FLOAT * open_, buffers)
    bucket = FLOAT * engine.setting("reduce_bucket_size", BUCKET)
    if engine.stage == 3:
        shard = FLOAT * -(-held // world)
        found = States(shard + outside + FLOAT * gathered(model, engine, several), FLOAT * own, 3 * FLOAT * own, bucket)
    else:
        buffers = bucket * (2 if engine.setting("overlap_comm", False) else 1)
        gradients = FLOAT * own + (FLOAT * open_ if engine.stage == 1 else 0)
        found = States(FLOAT * held + outside, gradients, 3 * FLOAT * own, buffers)
    return _offloaded(found, engine, FLOAT * own, FLOAT * -(-held // world))


def gathered(model: Model, engine: Engine, several: bool) -> int:
    """Number of parameters that ZeRO-3 holds unsharded on a rank at the same time."""
    held = model.total("in_engine")
    if not several and engine.keeps_gathered(held):
        return held
    largest = max(block_weights(model.image), block_weights(model.text))
    return min(held, engine.setting("stage3_prefetch_bucket_size", PREFETCH) + largest)


def block_weights(shape: Shape) -> int:
    """Number of weights in the matrices of a block."""
    return 4 * shape.width * shape.width + 2 * shape.width * shape.mlp_dim


def trained(model: Model) -> int:
    """Number of parameters that the engine trains: all that train, except the scalars of the loss."""
    return sum(part.trained for part in model.parts if part.part != "scalars")


def _offloaded(found: States, engine: Engine, own: int, shard: int) -> States:
    """The states with offloading. Moments, the copy of the weights and its gradients move to the host, or also the shards."""
    if engine.offload == "none":
        return found
    host = found.optimizer + own
    parameters = found.parameters
    if engine.offload == "parameters":
        host, parameters = host + shard, parameters - shard
    return States(parameters, found.gradients - own, 0, found.buffers, host)
