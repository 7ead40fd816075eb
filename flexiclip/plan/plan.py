"""Making a plan: one recipe on one cluster, by the formulas of this package.

    plan = make_plan(load("flexiclip_b"), Cluster(nodes=2, gpus_per_node=8, device="h100"), samples=400_000_000)

The time of a step is `total FLOPs / (peak x MFU)`, plus the time of the update and of the embeddings' traffic. The traffic of
the gradients (under ZeRO-3, of the gathers as well) runs during the backward passes, and only what exceeds these is added.
Stragglers, evaluation, checkpoints and a loader that cannot keep up are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from flexiclip.config import Config
from flexiclip.errors import UserError
from flexiclip.files import size_text
from flexiclip.models.flops import image_model_flops, loss_flops
from flexiclip.plan.hardware import USABLE_MEMORY, Device, device_of
from flexiclip.plan.memory import Memory, step_memory
from flexiclip.plan.result import Cluster, LengthPlan, Plan, StagePlan
from flexiclip.plan.states import FLOAT, Engine, states
from flexiclip.plan.towers import Model, build
from flexiclip.plan.traffic import step_collectives, visible_traffic_s
from flexiclip.schedules import TERA, Cost, Horizon, SeqhwSchedule, horizon_of, micro_batches, within_budget


def make_plan(config: Config, cluster: Cluster, samples: int | None = None) -> Plan:
    """Plan a recipe. samples: per epoch, for train.steps in epochs. Raises UserError if the recipe cannot run there."""
    _check(config, cluster)
    device = device_of(cluster.device, cluster.gpus_per_node, cluster.mfu)
    train = replace(config.train, precision=device.precision(config.train.precision))
    model = build(replace(config, train=train), samples)
    config = model.config
    engine = Engine.of(config.engine, cluster.world)
    cost = partial(image_model_flops, config.model)
    horizon = _horizon(model, cost)
    known = horizon or Horizon(1, train.global_batch_size, None)
    shares = SeqhwSchedule(config.patch, config.seed, known, cost).shares()
    usable = USABLE_MEMORY * device.memory
    lengths = tuple(_length(model, engine, cluster, device, s, share) for s, share in shares.items())
    mean_step = sum(length.share * length.step_s for length in lengths)
    work = horizon.steps * horizon.batch * sum(length.share * length.flops.model for length in lengths) if horizon else None
    return Plan(
        cluster=cluster,
        device=device,
        usable_memory=usable,
        global_batch_size=train.global_batch_size,
        local_batch=train.global_batch_size // cluster.world,
        precision=train.precision,
        activation_checkpointing=train.activation_checkpointing,
        parameters=model.parts,
        caption_tokens=model.caption_tokens,
        lengths=lengths,
        stages=tuple(_stage(model, other, tuple(shares), usable, other == engine) for other in _engines(engine)),
        mean_tokens=sum(length.share * length.tokens for length in lengths),
        mean_step_s=mean_step,
        images_per_s=train.global_batch_size / mean_step,
        steps=horizon.steps if horizon else None,
        tflops=None if work is None else work / TERA,
        hours=horizon.steps * mean_step / 3600 if horizon else None,
        text_features_hours=_text_features_hours(model, cluster, device),
        notes=_notes(model, engine, horizon),
    )


def peak_memory(config: Config, world: int, samples: int | None = None) -> Memory:
    """Return the peak memory of a rank, at the length that takes most. train.precision must be fp32 or bf16.

    Raises UserError if the recipe cannot be planned.
    """
    _check_objective(config)
    model, engine = build(config, samples), Engine.of(config.engine, world)
    micro = micro_batches(config.train, model.pair_tokens, world)
    found = [step_memory(model, engine, s, micro(s), config.train.activation_checkpointing) for s in config.patch.all_seqhw]
    return max(found, key=lambda memory: memory.peak)


def _check_objective(config: Config) -> None:
    if config.objective != "contrastive":
        raise UserError(
            f"objective={config.objective}: a plan knows contrastive training alone; of other runs, metrics.jsonl has tflops"
        )


def _check(config: Config, cluster: Cluster) -> None:
    _check_objective(config)
    batch, world = config.train.global_batch_size, cluster.world
    if batch % world:
        below, above = batch // world * world, (batch // world + 1) * world
        near = f"{below} or {above}" if below else str(above)
        raise UserError(f"train.global_batch_size={batch} does not divide by the {world} ranks: {near} would")


def _horizon(model: Model, cost: Cost) -> Horizon | None:
    """The length of the run. None if train.steps is in epochs and --samples is missing."""
    train, patch, samples = model.config.train, model.config.patch, model.samples
    if train.steps.unit == "epochs" and samples is None:
        if patch.stages or patch.curriculum == "clipa":
            raise UserError(f"train.steps={train.steps}: a curriculum needs the size of an epoch; give --samples")
        return None
    return horizon_of(train, patch, samples, cost, lambda seqhw: model.pair_flops(seqhw).model)


def _length(model: Model, engine: Engine, cluster: Cluster, device: Device, seqhw: int, share: float) -> LengthPlan:
    train = model.config.train
    local = train.global_batch_size // cluster.world
    micro = min(local, micro_batches(train, model.pair_tokens, cluster.world)(seqhw))
    count = -(-local // micro)
    flops = model.pair_flops(seqhw, count > 1, train.activation_checkpointing)
    loss = loss_flops(model.config, local, cluster.world)
    peak, fp32 = device.peak(train.precision) * device.mfu, device.fp32_flops * device.mfu
    compute = local * flops.total / peak + loss / fp32
    collectives = step_collectives(model, engine, count)
    network = visible_traffic_s(collectives, engine, cluster.nodes, device, local * flops.total / peak, count)
    memory = step_memory(model, engine, seqhw, micro, train.activation_checkpointing)
    network += update_s(memory, device)
    return LengthPlan(
        seqhw=seqhw,
        tokens=model.image_tokens(seqhw),
        share=share,
        flops=flops,
        micro_batch=micro,
        micro_batches=count,
        memory=memory,
        traffic=sum(round(c.sent(cluster.world)) for c in collectives),
        compute_s=compute,
        network_s=network,
        images_per_s=train.global_batch_size / (compute + network),
    )


def update_s(memory: Memory, device: Device) -> float:
    """Seconds of the update: AdamW reads and writes states and gradients once, and offloaded ones are also sent to the host."""
    kept = memory.states
    moved = 2 * kept.optimizer + 2 * kept.gradients
    return moved / device.memory_bandwidth + kept.host / device.host_link


def _engines(own: Engine) -> list[Engine]:
    """The engine of the recipe, and every ZeRO stage for comparison, each with as much of the offloading as it has."""
    states = "none" if own.offload == "none" else "optimizer"
    staged = [
        replace(own, kind="deepspeed", stage=stage, offload=offload)
        for stage, offload in enumerate(("none", states, states, own.offload))
    ]
    return staged if own.kind == "deepspeed" else [own, *staged]


def _stage(model: Model, engine: Engine, lengths: tuple[int, ...], usable: float, own: bool) -> StagePlan:
    train = model.config.train
    local = train.global_batch_size // engine.world
    checkpointing = train.activation_checkpointing
    micro = micro_batches(train, model.pair_tokens, engine.world)

    def peak(size: Callable[[int], int], recompute: bool = checkpointing) -> Memory:
        found = [step_memory(model, engine, s, min(local, size(s)), recompute) for s in lengths]
        return max(found, key=lambda memory: memory.peak)

    def fixed(recompute: bool) -> int | None:
        return _largest(lambda size: peak(lambda _: size, recompute).peak <= usable, local)

    longest = model.pair_tokens(max(lengths))
    tokens = _largest(lambda budget: peak(within_budget(model.pair_tokens, budget)).peak <= usable, local * longest)
    memory = peak(micro)
    count = -(-local // min(local, micro(max(lengths))))
    return StagePlan(
        engine=engine.name,
        own=own,
        memory=memory,
        fits=memory.peak <= usable,
        micro_batch_size=fixed(checkpointing),
        micro_tokens=tokens if tokens is not None and tokens >= longest else None,
        checkpointed_micro_batch_size=fixed(True),
        traffic=sum(round(c.sent(engine.world)) for c in step_collectives(model, engine, count)),
    )


def _largest(fits: Callable[[int], bool], limit: int) -> int | None:
    """The largest number up to `limit` that fits, by bisection. None if 1 does not fit."""
    if fits(limit):
        return limit
    low, high = 0, limit
    while high - low > max(1, low // 256):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low or None


def _text_features_hours(model: Model, cluster: Cluster, device: Device) -> float | None:
    text = model.text_cost()
    if model.samples is None or not text.cached:
        return None
    peak = device.peak(model.config.train.precision) * device.mfu
    return model.samples * text.tower.forward / (peak * cluster.world) / 3600


def _notes(model: Model, engine: Engine, horizon: Horizon | None) -> tuple[str, ...]:
    found = []
    if horizon is None:
        found.append(f"train.steps={model.config.train.steps}: give --samples, the size of an epoch, for the hours")
    if model.text_config.kind != "transformer":
        found.append("a foreign text tower's activations are taken for those of our own of its size")
    buffers = states(model, engine, several=False).buffers
    if engine.stage and buffers > FLOAT * model.total("trained"):
        found.append(
            f"DeepSpeed's buckets take {size_text(buffers)}, more than the gradients: set "
            "engine.deepspeed.zero_optimization.reduce_bucket_size (elements), for example 5e7"
        )
    if engine.offload != "none":
        found.append("the update on the host is counted as its transfers alone")
    return tuple(found)
