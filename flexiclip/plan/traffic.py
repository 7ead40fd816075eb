"""Collectives of one step, and how long they take.

A collective over n bytes makes each of W ranks send (W - 1) / W n as an all-gather or a reduce-scatter, twice that as an
all-reduce: what NCCL's rings do, and no algorithm less (Patarasuk and Yuan, doi 10.1016/j.jpdc.2008.09.002). P parameters in the
engine, T of them trained, k micro-batches, N pairs in the global batch, D the joint space, all float32:

    loss       all-gather N D; reduce-scatter N D; all-reduce of three numbers and, for softmax, of 2 N (the normalisers of all
               captions: their maxima and their sums)
    torch      all-reduce T, with the last micro-batch
    ZeRO 0, 1  all-reduce T with the last micro-batch; ZeRO 1 all-gathers T after the update
    ZeRO 2     all-reduce k T (gradients that are not kept whole leave with each micro-batch), all-gather T after the update
    ZeRO 3     reduce-scatter k T; all-gather P once for one micro-batch (P + T where it does not keep them, states.py), else
               k (2 P + T): forward of the gradient cache, forward, backward. Parameters smaller than
               stage3_param_persistence_threshold are whole on every rank and gathered once; that is left out. An upper bound:
               what is still whole from the pass before is not gathered again (13 % of a small model).

tests/plan/test_traffic.py counts the bytes of running engines. Under ZeRO 1 and 2 DeepSpeed all-reduces buckets that belong
to several ranks, twice as much as the paper's reduce-scatter.
"""

from __future__ import annotations

from dataclasses import dataclass

from flexiclip.plan.hardware import LINK_EFFICIENCY, Device
from flexiclip.plan.states import FLOAT, Engine, trained
from flexiclip.plan.towers import Model

_SENDS = {"all_gather": 1, "reduce_scatter": 1, "all_reduce": 2}


@dataclass(frozen=True)
class Collective:
    """`bytes` is the whole tensor's: what an all-gather ends with, what the others start from."""

    kind: str  # all_gather | reduce_scatter | all_reduce
    what: str  # loss | gradients | parameters
    bytes: int

    def sent(self, world: int) -> float:
        """Bytes that each rank sends."""
        return _SENDS[self.kind] * (world - 1) / world * self.bytes


def step_collectives(model: Model, engine: Engine, micro_batches: int) -> list[Collective]:
    """All collectives of a step of `micro_batches`; none on a single rank."""
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
    """Time of the named parts over the slowest link on their way: the network when there are several nodes."""
    link = device.node_link if nodes == 1 else device.network_link
    return sum(c.sent(engine.world) for c in collectives if c.what in what) / (link * LINK_EFFICIENCY)
