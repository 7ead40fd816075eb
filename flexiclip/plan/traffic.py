"""The collectives of one step, and how long they take.

In an all-gather or a reduce-scatter of n bytes, each of W ranks sends (W - 1) / W n bytes, and in an all-reduce twice as many.
This is what NCCL's rings do, and no algorithm sends less (Patarasuk and Yuan, doi 10.1016/j.jpdc.2008.09.002). P is the number
of parameters in the engine, T of them trained, k the number of micro-batches, N the pairs of the global batch, and D the size of
an embedding. All are float32.

    loss       all-gather N D; reduce-scatter N D; all-reduce of three numbers and, for softmax, of 2 N (the normalizers of all
               captions: their maxima and their sums)
    torch      all-reduce T, with the last micro-batch
    ZeRO 0, 1  all-reduce T with the last micro-batch; ZeRO 1 all-gathers T after the update
    ZeRO 2     all-reduce k T (gradients are not kept whole: they are sent with each micro-batch), all-gather T after the update
    ZeRO 3     reduce-scatter k T; all-gather P once for one micro-batch (P + T if it does not keep them, see states.py), else
               k (2 P + T) for the forward pass of the gradient cache, the forward pass and the backward pass. Parameters below
               stage3_param_persistence_threshold are whole on every rank and gathered only once, which is left out. This is an
               upper bound, because what is still whole from the pass before is not gathered again (13 % of a small model).

tests/plan/test_traffic.py counts the bytes of running engines. Under ZeRO 1 and 2, DeepSpeed all-reduces buckets that belong to
several ranks, which is twice the traffic of the paper's reduce-scatter.
"""

from __future__ import annotations

from dataclasses import dataclass

from flexiclip.plan.hardware import LINK_EFFICIENCY, Device
from flexiclip.plan.states import FLOAT, Engine, trained
from flexiclip.plan.towers import Model

_SENDS = {"all_gather": 1, "reduce_scatter": 1, "all_reduce": 2}


@dataclass(frozen=True)
class Collective:
    """One collective. `bytes` is the size of the whole tensor: the result of an all-gather, the input of the others."""

    kind: str  # all_gather | reduce_scatter | all_reduce
    what: str  # loss | gradients | parameters
    bytes: int

    def sent(self, world: int) -> float:
        """Bytes that each rank sends."""
        return _SENDS[self.kind] * (world - 1) / world * self.bytes


def step_collectives(model: Model, engine: Engine, micro_batches: int) -> list[Collective]:
    """All collectives of a step of `micro_batches`. A single rank has none."""
    if engine.world == 1:
        return []
    return _loss(model) + _engine(model, engine, micro_batches)


def _loss(model: Model) -> list[Collective]:
    config = model.config
    rows, dim = config.train.global_batch_size, config.model.embed_dim
    found = [Collective("all_gather", "loss", FLOAT * rows * dim)]
    if config.loss.mask_identical:
        found.append(Collective("all_gather", "loss", 8 * rows))
    return [
        *found,
        Collective("reduce_scatter", "loss", FLOAT * rows * dim),
        Collective("all_reduce", "loss", FLOAT * (3 + 2 * rows * (config.loss.kind == "softmax"))),
    ]


def _engine(model: Model, engine: Engine, micro_batches: int) -> list[Collective]:
    gradients, parameters = FLOAT * trained(model), FLOAT * model.total("in_engine")
    if engine.stage == 3:
        gathers = parameters if engine.keeps_gathered(model.total("in_engine")) else parameters + gradients
        if micro_batches > 1:
            gathers = micro_batches * (2 * parameters + gradients)
        return [
            Collective("reduce_scatter", "gradients", gradients * micro_batches),
            Collective("all_gather", "gathers", gathers),
        ]
    found = [Collective("all_reduce", "gradients", gradients * (micro_batches if engine.stage == 2 else 1))]
    if engine.stage in (1, 2):
        found.append(Collective("all_gather", "parameters", gradients))
    return found


def seconds(collectives: list[Collective], engine: Engine, nodes: int, device: Device, *what: str) -> float:
    """Seconds of the named parts over the slowest link on their way, which is the network if there are several nodes."""
    link = device.node_link if nodes == 1 else device.network_link
    return sum(c.sent(engine.world) for c in collectives if c.what in what) / (link * LINK_EFFICIENCY)


def visible_traffic_s(
    collectives: list[Collective], engine: Engine, nodes: int, device: Device, towers_s: float, count: int
) -> float:
    """Return the seconds of traffic that computation does not hide.

    Traffic that belongs to the last micro-batch can only be hidden by the backward pass of that micro-batch. towers_s: seconds of
    the towers' computation in a step. count: number of micro-batches.
    """
    window = 2 / 3 * towers_s / (1 if engine.stage >= 2 else count)  # the backward pass
    hidden = seconds(collectives, engine, nodes, device, "gradients", "gathers")
    open_ = seconds(collectives, engine, nodes, device, "loss", "parameters")
    return open_ + max(0.0, hidden - window)
